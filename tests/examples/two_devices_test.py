import pathlib
import re

from tests import programs

ROOT = pathlib.Path(__file__).resolve().parents[2]

# In a process of its own, for logical devices are made before all else.
_PROGRAM = """
import runpy
import numpy as np
from examples.trainers import datasets

def digits(name):
    rng = np.random.default_rng(0)
    x = rng.uniform(0, 1, (600, 28, 28, 1)).astype("float32")
    y = rng.integers(0, 10, 600)
    return (x, y), (x[:50], y[:50])

datasets.load = digits
runpy.run_module(
    "examples.trainers.two_devices", run_name="__main__", alter_sys=True
)
"""


def _run(folder, *arguments):
    return programs.run(["-c", _PROGRAM, *arguments], folder, cwd=ROOT)


def test_it_trains_on_both_devices(tmp_path):
    done = _run(
        tmp_path,
        "--devices=CPU:1,CPU:0",
        "--epochs=2",
        "--batch_size=100",
        "--thresholds=by_dimension",
        "--epsilon=8",
        "--delta=1e-4",
    )
    assert done.returncode == 0, done.stderr
    groups = re.findall(
        r"^(CPU:\d): (\d+) weights, clipped at ([\d.]+)$",
        done.stdout,
        re.MULTILINE,
    )
    # Before and after the training. The bound is 0.1.
    assert (
        groups
        == [
            ("CPU:1", "9264", "0.0597"),
            ("CPU:0", "16746", "0.0802"),
        ]
        * 2
    )
    assert "12 steps with noise multiplier" in done.stdout
    epsilon = float(re.findall(r"- epsilon: ([\d.]+)", done.stdout)[-1])
    assert 7.5 < epsilon <= 8.0
    # The model is checked, and placed as it should be.
    assert "made-up inputs" not in done.stderr
    assert "clips like Flat()" not in done.stderr


def test_it_refuses_devices_that_are_not_there(tmp_path):
    for devices in ("GPU:7,CPU:0", "CPU:1,CPU:1"):
        done = _run(tmp_path, f"--devices={devices}")
        assert done.returncode == 2, devices
        assert "error: --devices names two of ['CPU:0'" in done.stderr
        assert "Traceback" not in done.stderr
