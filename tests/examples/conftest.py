import ast
import pathlib

import pytest

from tests import trials

_TUTORIALS = pathlib.Path(__file__).parents[2] / "examples" / "tutorials"


@pytest.fixture
def run(monkeypatch, tmp_path):
    """Runs a tutorial, statement by statement, with stand-ins for names."""
    # Late: TensorFlow is for the processes that run tests.
    from tf_dpfp.independence import gradients

    monkeypatch.setattr(gradients, "check", trials.once(gradients.check))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TF_DPFP_TUTORIAL_EPOCHS", "1")

    def run_statements(name, **values):
        path = _TUTORIALS / f"{name}.py"
        namespace = {"__name__": "__main__"}
        for node in ast.parse(path.read_text()).body:
            statement = ast.Module([node], type_ignores=[])
            exec(compile(statement, str(path), "exec"), namespace)
            # As soon as the tutorial has made its own.
            namespace |= {k: v for k, v in values.items() if k in namespace}
        return namespace

    return run_statements
