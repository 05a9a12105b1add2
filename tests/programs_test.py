"""Forked programs find what an interpreter of their own would have."""

import json
import os
import subprocess

import pytest

from tests import programs

_STATE = """
import json, os, sys
import tensorflow as tf
from tensorflow.python.eager import context
print(json.dumps({
    "arguments": sys.argv, "folder": os.getcwd(), "path": sys.path[:2],
    "given": os.environ.get("GIVEN"), "home": os.environ.get("HOME"),
    "imported": sorted({name.split(".")[0] for name in sys.modules}),
    "started": context.context()._initialized,
    "main": __name__, "input": sys.stdin.read(),
}))
print("a word", file=sys.stderr)
"""


def test_a_program_begins_with_nothing_of_others(tmp_path):
    dirty = "import tf_dpfp, tensorflow as tf; tf.zeros([]); A = 1"
    programs.run(["-c", dirty], tmp_path, check=True)
    done = programs.run(
        ["-c", _STATE, 3, "x"],
        tmp_path,
        cwd=tmp_path,
        env={"GIVEN": "this", "PYTHONPATH": "/somewhere"},
        check=True,
    )
    assert done.stderr.endswith("a word\n")
    found = json.loads(done.stdout)
    assert found["arguments"] == ["-c", "3", "x"]
    assert found["folder"] == str(tmp_path)
    assert found["path"] == [str(tmp_path), "/somewhere"]
    assert (found["given"], found["home"]) == ("this", None)
    assert not found["started"]
    assert found["main"] == "__main__" and found["input"] == ""
    # What tests of imports ask for.
    others = {"tf_dpfp", "tests", "dp_accounting", "keras_hub"}
    assert others.isdisjoint(found["imported"])


@pytest.mark.parametrize(
    ("program", "code", "error"),
    [
        ("pass", 0, ""),
        ("import sys; sys.exit(3)", 3, ""),
        ("import sys; sys.exit('why')", 1, "why"),
        ("raise KeyError('lost')", 1, "KeyError: 'lost'"),
        ("import os; os.kill(os.getpid(), 9)", -9, ""),
    ],
)
def test_the_end_of_a_program_is_told(tmp_path, program, code, error):
    done = programs.run(["-c", program], tmp_path)
    assert done.returncode == code
    assert done.stderr.rstrip().endswith(error)
    assert bool(done.stderr) == bool(error)


def test_a_program_that_takes_too_long_is_killed(tmp_path):
    sleep = "import time; time.sleep(600)"
    with pytest.raises(subprocess.TimeoutExpired):
        programs.run(["-c", sleep], tmp_path, timeout=0.2)
    process = programs.start(["-c", sleep], tmp_path / "log")
    os.kill(process.pid, 0)
    process.kill()
    assert process.wait() == -9


def test_a_module_is_run_as_by_the_interpreter(tmp_path):
    (tmp_path / "own.py").write_text("import sys; print(__name__, *sys.argv)")
    done = programs.run(["-m", "own", "x"], tmp_path, cwd=tmp_path)
    assert done.stdout == f"__main__ {tmp_path / 'own.py'} x\n"
