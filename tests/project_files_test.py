"""What CITATION.cff, setup.cfg and the hooks of pre-commit say holds."""

import ast
import configparser
import pathlib
import re
import sys

from tf_dpfp.version import __version__

ROOT = pathlib.Path(__file__).resolve().parent.parent


def test_the_citation_has_the_version_of_the_package():
    text = (ROOT / "CITATION.cff").read_text()
    assert re.findall(r"^version: (.+)$", text, re.MULTILINE) == [__version__]


def test_the_changelog_begins_with_the_version_of_the_package():
    text = (ROOT / "CHANGELOG.md").read_text()
    assert re.findall(r"^## \[(.+?)\]", text, re.MULTILINE)[0] == __version__


def test_the_hooks_fetch_nothing():
    text = (ROOT / ".pre-commit-config.yaml").read_text()
    assert re.findall(r"^ +- repo: (.+)$", text, re.MULTILINE) == ["local"]
    hooks = text.count("- id: ")
    assert text.count("language: system") == hooks > 0


def test_make_lint_runs_every_tool_of_the_hooks():
    hooks = (ROOT / ".pre-commit-config.yaml").read_text()
    _, _, lint = (ROOT / "Makefile").read_text().partition("\nlint:")
    lint, _, _ = lint.partition("\n\n")
    tools = re.findall(r"entry: \.venv/bin/(\w+(?: \w+)?)", hooks)
    assert len(tools) == hooks.count("- id: ")
    assert [tool for tool in tools if f"/{tool}" not in lint] == []


def test_no_file_of_the_library_is_above_400_lines():
    lengths = {
        path.relative_to(ROOT).as_posix(): len(path.read_text().splitlines())
        for path in (ROOT / "tf_dpfp").rglob("*.py")
    }
    assert {path: n for path, n in lengths.items() if n > 400} == {}


def _requirements(section, option):
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    lines = setup[section][option].splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def test_a_plain_install_is_small():
    assert _requirements("options", "install_requires") == [
        "tensorflow>=2.18",
        "keras>=3.8",
        "absl-py",
        "dp-accounting>=0.6",
        "numpy",
        "scipy",
    ]


def test_nothing_else_is_imported_when_the_package_is():
    required = {"absl", "dp_accounting", "keras", "numpy", "scipy"}
    # TensorFlow installs h5py, which writes Keras's files.
    known = required | {"tensorflow", "h5py", "tf_dpfp"}
    found = {}
    for path in (ROOT / "tf_dpfp").rglob("*.py"):
        # Imports inside of functions are of extras.
        for node in ast.parse(path.read_text()).body:
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [node.module]
            for name in names:
                found.setdefault(name.partition(".")[0], path.name)
    standard = sys.stdlib_module_names
    assert {n: found[n] for n in found if n not in known | standard} == {}


def test_tf_privacy_is_installed_past_its_pins():
    pinned = "--no-deps tensorflow-privacy==0.9.0"
    assert pinned in (ROOT / "Makefile").read_text()
    extra = _requirements("options.extras_require", "tf_privacy")
    assert not [line for line in extra if line.startswith("tensorflow")]
