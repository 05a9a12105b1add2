# Every target makes its own environment first: nothing to set up by hand.
#
#   make train       train on MNIST with differential privacy
#   make test        run the tests
#   make lint        check style, formatting and types
#   make format      apply the formatting
#   make benchmark   time private against non-private steps
#   make accuracy    train every row of the table of accuracies
#   make docs        build the documents as a site, in build/site
#   make notebooks   write the tutorials as notebooks, in build/notebooks
#   make clean       remove the environment and what the tools left
#
# ARGS= goes to the command behind the target, for example
#   make train ARGS="--dataset=fashion_mnist --epochs=5"
#   make test ARGS="tests/accounting -x"
#   make test ARGS="-m slow"
# WORKERS= is how many processes share the tests, each file in one of them.
# PYTHON= names the interpreter (3.11 to 3.13), VENV= the environment's folder.

VENV ?= .venv
ARGS ?=
WORKERS ?= 2

# The first interpreter that runs and is of a supported version. Asking it
# matters: a version manager's shim can be on the path and yet not run.
SUPPORTED := import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))
PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3 python; do \
	$$p -c '$(SUPPORTED)' >/dev/null 2>&1 && echo $$p && break; done)

BIN := $(VENV)/bin

# The tests compare with TensorFlow Privacy, which stops at Python 3.11 and
# pins old versions of what it needs: installed without them.
TF_PRIVACY = $(BIN)/python -c 'import sys; sys.exit(sys.version_info >= (3, 12))' \
	|| exit 0; $(BIN)/python -m pip install -qq --disable-pip-version-check \
	--no-deps tensorflow-privacy==0.9.0
export TF_CPP_MIN_LOG_LEVEL ?= 2

.DEFAULT_GOAL := help
.PHONY: help train test lint format benchmark accuracy docs notebooks clean

help:
	@sed -n '/^#/!q; s/^# \{0,1\}//p' Makefile

train: $(VENV)/.installed-examples
	@$(BIN)/python -m examples.trainers.train $(ARGS)

# Agg draws without a display.
test: $(VENV)/.installed-all
	@MPLBACKEND=Agg $(BIN)/python -m pytest -n $(WORKERS) \
		--dist=loadfile --no-loadscope-reorder $(ARGS)

lint: $(VENV)/.installed-all
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

format: $(VENV)/.installed-all
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

benchmark: $(VENV)/.installed-examples
	@$(BIN)/python -m benchmarks.step_time $(ARGS)

accuracy: $(VENV)/.installed-all
	@$(BIN)/python -m benchmarks.accuracy_table $(ARGS)

# Strict: a link that leads nowhere fails.
docs: $(VENV)/.installed-docs
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict
	@echo "The site is in build/site: open build/site/index.html"

notebooks: $(VENV)/.installed-docs
	@$(BIN)/python -m examples.notebooks $(ARGS)

clean:
	rm -rf $(VENV) build dist *.egg-info .hypothesis .mypy_cache \
		.pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The stamps are touched last, so an interrupted step is done again.
$(VENV)/.created:
	@test -n "$(PYTHON)" || { echo "No Python 3.11, 3.12 or 3.13 found;" \
		"name one: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	@$(PYTHON) -c '$(SUPPORTED)' || { echo "$(PYTHON) is not Python 3.11," \
		"3.12 or 3.13; name another: make PYTHON=..." >&2; exit 1; }
	@echo "Creating $(VENV) with $$($(PYTHON) --version)"
	@$(PYTHON) -m venv $(VENV)
	@touch $@

# Installed anew only when what it is made from changes; the package itself is
# installed in place, so its source may change freely.
$(VENV)/.installed-%: setup.cfg pyproject.toml $(VENV)/.created
	@echo "Installing tf_dpfp[$*] into $(VENV) (a few minutes the first time)"
	@$(BIN)/python -m pip install -qq --disable-pip-version-check \
		--editable '.[$*]'
	@$(if $(filter all test,$*),$(TF_PRIVACY))
	@touch $@
