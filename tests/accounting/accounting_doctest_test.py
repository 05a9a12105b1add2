"""The examples in the docstrings of accounting give what they say."""

import doctest
import importlib
import pkgutil

import pytest

from tf_dpfp import accounting

MODULES = sorted(
    info.name
    for info in pkgutil.iter_modules(accounting.__path__)
    if info.name != "__main__"
)
# Modules whose examples the documentation rests on.
WITH_EXAMPLES = {
    "bands",
    "calibration",
    "claimed",
    "entries",
    "epsilon",
    "events",
    "joint",
    "samplings",
    "tradeoff",
}


@pytest.mark.parametrize("name", MODULES)
def test_examples_of_docstrings(name):
    module = importlib.import_module(f"tf_dpfp.accounting.{name}")
    results = doctest.testmod(module)
    assert results.failed == 0
    assert (results.attempted > 0) == (name in WITH_EXAMPLES)
