"""Private steps of Keras models, forward and backward, are proved."""

import keras
import pytest

from benchmarks import proof_models
from tf_dpfp.independence import Category
from tf_dpfp.independence import Dependence

SLOW = ("LSTM, masked", "Bidirectional", "GRU", "SimpleRNN")
LAYERS = proof_models.layer_cases()
LOSSES = proof_models.loss_cases()
MIXING = proof_models.mixing_cases()


def _proof(case):
    build, data, loss = case
    keras.utils.set_random_seed(0)
    model = build()
    batch = data(4)
    if not model.built:
        model(batch[0])
    return proof_models.prove_step(model, loss, batch)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(n, marks=[pytest.mark.slow] if n in SLOW else [])
        for n in LAYERS
    ],
)
def test_layer_is_proved(name):
    proof = _proof(LAYERS[name])
    refusals = proof.refusals([Category.ABORT])
    assert not refusals, str(refusals[0])
    assert proof.batch_size is None
    assert proof.dependences[0] is Dependence.PER_EXAMPLE


@pytest.mark.parametrize("name", LOSSES)
def test_loss_is_proved(name):
    proof = _proof(LOSSES[name])
    assert not proof.refusals([Category.ABORT])


@pytest.mark.parametrize("name", MIXING)
def test_mixing_is_refused(name):
    assert _proof(MIXING[name]).refusals([Category.ABORT])


def test_dropout_is_noted_with_the_origin_of_its_seed():
    proof = _proof(LAYERS["noise and dropout"])
    assert len(proof.draws) >= 4
    assert all(draw.seeds for draw in proof.draws)
    assert any("dropout" in draw.layer for draw in proof.draws)
