"""`fit` under XLA: few compilations, and the steps of one without it."""

import re

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import tf_dpfp
from tf_dpfp import sampling
from tf_dpfp.mechanisms import gradients

pytestmark = pytest.mark.usefixtures("without_trial")

STEPS = 30
POPULATION = 120


def _data():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(POPULATION, 4)).astype("float32")
    return x, rng.integers(0, 3, POPULATION)


def _batches(**kwargs):
    return tf_dpfp.poisson_batches(
        *_data(),
        expected_batch_size=16,
        steps_per_epoch=STEPS,
        seed=1,
        **kwargs,
    )


def _model(jit_compile, dropout=0.0, **kwargs):
    keras.utils.set_random_seed(1)
    inner = [layers.Dense(5, activation="tanh")]
    if dropout:
        inner.append(layers.Dropout(dropout))
    model = keras.Sequential([keras.Input((4,)), *inner, layers.Dense(3)])
    kwargs = {"noise_multiplier": 0.0, **kwargs}
    tf_dpfp.make_private(model)
    model.compile(
        tf_dpfp.DPSGD(0.5, l2_norm_clip=0.3, **kwargs),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
        weighted_metrics=["accuracy"],
        jit_compile=jit_compile,
    )
    return model


@pytest.fixture
def seen(monkeypatch):
    """Sizes of the batches that steps were given, and how often one was traced.

    XLA compiles once for each size of a trace.
    """
    seen = {"sizes": [], "traces": 0}
    in_buckets = sampling.in_buckets
    train_step = gradients.Gradients.train_step

    def count(x, y, weight):
        seen["sizes"].append(len(x))
        return x, y, weight

    def recorded(*args):
        batches = in_buckets(*args)
        dtypes = [spec.dtype for spec in batches.element_spec]

        def record(*batch):
            kept = tf.numpy_function(count, batch, dtypes)
            for tensor, given in zip(kept, batch, strict=True):
                tensor.set_shape(given.shape)
            return tuple(kept)

        return batches.map(record)

    def traced(*args):
        seen["traces"] += 1
        return train_step(*args)

    monkeypatch.setattr(sampling, "in_buckets", recorded)
    monkeypatch.setattr(gradients.Gradients, "train_step", traced)
    return seen


@pytest.mark.parametrize("microbatch_size", [None, 12])
def test_a_step_is_compiled_for_few_sizes(seen, microbatch_size, capfd):
    compiled = _model(True, microbatch_size=microbatch_size)
    history = compiled.fit(_batches(), verbose=2)
    assert len(seen["sizes"]) >= STEPS  # Some are fetched ahead.
    assert len(set(seen["sizes"])) <= 4 and seen["traces"] == 1
    assert all(size % (microbatch_size or 8) == 0 for size in seen["sizes"])
    plain = _model(False, microbatch_size=microbatch_size)
    expected = plain.fit(_batches(), verbose=0)
    assert len(seen["sizes"]) < 2 * STEPS
    for mine, other in zip(compiled.weights, plain.weights, strict=True):
        np.testing.assert_allclose(mine, other, rtol=1e-4, atol=1e-5)
    for name, values in expected.history.items():
        np.testing.assert_allclose(history.history[name], values, rtol=1e-4)
    assert compiled.optimizer.ledger_entries == plain.optimizer.ledger_entries
    (entry,) = compiled.optimizer.ledger_entries
    assert entry.steps == STEPS and entry.sampling.overflow_probability == 0.0
    # Nothing that is printed tells which size a step had.
    printed = "".join(capfd.readouterr())
    assert not re.search(r"\bshape|\(16|bucket|padded", printed.lower())
