"""Importing the package leaves out what training does not need."""

import pytest
from scipy import stats

from tests import programs
from tf_dpfp import late_imports

_IMPORTED = """
import sys
import tensorflow, keras
before = set(sys.modules)
import tf_dpfp
print(*sorted(set(sys.modules) - before))
"""


@pytest.fixture(scope="module")
def imported(tmp_path_factory):
    folder = tmp_path_factory.mktemp("imported")
    done = programs.run(["-c", _IMPORTED], folder, check=True)
    return set(done.stdout.split())


@pytest.mark.parametrize(
    "name",
    [
        "dp_accounting",
        "scipy.optimize",
        "scipy.signal",
        "scipy.special",
        "scipy.stats",
        "tf_dpfp.auditing",
    ],
)
def test_an_import_does_without(imported, name):
    assert "tf_dpfp.late_imports" in imported
    assert name not in imported


@pytest.mark.parametrize("name", late_imports.__all__)
def test_a_name_of_a_late_module_is_that_of_the_module(name):
    late = getattr(late_imports, name)
    with pytest.raises(AttributeError, match="no_such_name"):
        late.no_such_name  # noqa: B018
    assert late.__name__.rpartition(".")[2] == name


def test_a_late_module_gives_what_the_module_has():
    assert late_imports.stats.norm is stats.norm
