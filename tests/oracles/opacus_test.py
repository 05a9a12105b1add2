"""Steps without noise against Opacus, in its own process.

Opacus comes with PyTorch and is no requirement of the tests: they are skipped
without it. TF_DPFP_OPACUS_PYTHON names an interpreter that has it.
"""

import os
import sys

import pytest

from tests.oracles import comparison
from tests.oracles import problems


@pytest.fixture(scope="module")
def opacus(tmp_path_factory):
    return comparison.run_worker(
        "tests.oracles.opacus_worker",
        tmp_path_factory.mktemp("opacus"),
        python=os.environ.get("TF_DPFP_OPACUS_PYTHON", sys.executable),
    )


@pytest.mark.parametrize("name", problems.MODELS)
def test_flat_clipping_equals_opacus(opacus, name):
    comparison.assert_same(comparison.train(name), opacus[name])


def _mlp_without_biases(keras):
    return keras.Sequential(
        [
            keras.layers.InputLayer((6,)),
            keras.layers.Dense(8, activation="tanh", use_bias=False),
            keras.layers.Dense(3, use_bias=False),
        ]
    )


def test_per_layer_clipping_equals_opacus(opacus):
    build = _mlp_without_biases
    model = comparison.train("mlp", build, clipping="per_layer")
    comparison.assert_same(model, opacus["mlp per layer"])
    flat = comparison.train("mlp", build)
    comparison.assert_differs(flat, opacus["mlp per layer"])
