"""Runs another library in a process of its own and compares weights."""

import os
import pathlib
import subprocess
import sys

import keras
import numpy as np
import pytest

import tf_dpfp
from tests.oracles import problems

_ROOT = pathlib.Path(__file__).resolve().parents[2]


def run_worker(
    module: str,
    folder: pathlib.Path,
    python: str = sys.executable,
    **environment: str,
) -> dict[str, list[np.ndarray]]:
    """Runs a worker and returns the weights of each of its runs.

    Skips the test if the worker says that its library is not installed; any
    other failure is one.
    """
    result = folder / "weights.npz"
    process = subprocess.run(
        [python, "-m", module, str(result)],
        cwd=_ROOT,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    if process.returncode == problems.NOT_INSTALLED:
        pytest.skip(process.stderr.strip().splitlines()[-1])
    assert process.returncode == 0, process.stderr
    return problems.load(result)


def train(
    name: str,
    build=None,
    optimizer=tf_dpfp.DPSGD,
    l2_norm_clip: float = problems.CLIP,
    **arguments,
) -> keras.Model:
    """Trains one of the problems privately, without noise."""
    model = tf_dpfp.make_private((build or problems.MODELS[name])(keras))
    model.set_weights(
        problems.weights(name, [v.shape for v in model.trainable_variables])
    )
    model.compile(
        optimizer=optimizer(
            problems.LEARNING_RATE,
            l2_norm_clip=l2_norm_clip,
            noise_multiplier=0.0,
            **arguments,
        ),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    x, y = problems.data(name)
    model.fit(x, y, batch_size=problems.BATCH, shuffle=False, verbose=0)
    return model


def assert_same(model: keras.Model, weights: list[np.ndarray]) -> None:
    """Compares a model's weights with those of another library."""
    for mine, theirs in zip(model.trainable_variables, weights, strict=True):
        np.testing.assert_allclose(
            mine.numpy(), theirs, atol=1e-5, rtol=1e-5, err_msg=mine.path
        )


def assert_differs(model: keras.Model, weights: list[np.ndarray]) -> None:
    """Every variable is another: the comparison could have failed."""
    for mine, theirs in zip(model.trainable_variables, weights, strict=True):
        assert np.max(np.abs(mine.numpy() - theirs)) > 1e-3, mine.path
