"""The examples in the docstrings of auditing give what they say."""

import doctest
import importlib

import pytest


@pytest.mark.parametrize(
    "name", ["bounds", "canaries", "membership", "one_run", "releases"]
)
def test_examples_of_docstrings(name):
    module = importlib.import_module(f"tf_dpfp.auditing.{name}")
    results = doctest.testmod(module)
    assert results.failed == 0 < results.attempted
