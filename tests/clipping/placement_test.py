"""What crosses from device to device, and where state is."""

import collections
import contextlib
from unittest import mock

import keras
import numpy as np
import pytest
import tensorflow as tf

import tf_dpfp
from tests.clipping import placed
from tests.training import crossings
from tf_dpfp import compilation
from tf_dpfp.clipping import clipped_sum
from tf_dpfp.clipping import placement
from tf_dpfp.step import microbatch
from tf_dpfp.training import compiling

pytestmark = pytest.mark.usefixtures("seeded", "without_trial")

MICROBATCH = 4


def _expected_crossings(devices=placed.DEVICES, size=None):
    """Activations and their gradients, and which examples take part."""
    widths = (19, 23, 29, 31, 37)
    first, second = devices
    hidden = ("float32", (size, widths[1]))
    logits = ("float32", (size, placed.CLASSES))
    return collections.Counter(
        [
            ("CPU:0", first, "float32", (size, placed.FEATURES)),
            (first, second, *hidden),
            (second, "CPU:0", *logits),
            ("CPU:0", second, *logits),
            (second, first, *hidden),
            ("CPU:0", first, "bool", (size,)),
            ("CPU:0", second, "bool", (size,)),
        ]
    )


def _not_scalars(found):
    # The batch size is forgotten in a step; some operations find it again.
    batch = (None, placed.BATCH, MICROBATCH)
    return collections.Counter(
        (
            c.source,
            c.to,
            c.dtype.name,
            (None, *c.shape[1:])
            if c.shape and c.shape[0] in batch
            else c.shape,
        )
        for c in found
        if c.shape != ()
    )


def test_only_activations_and_their_gradients_cross():
    step = placed.step(placed.noisy(), *placed.data())
    assert not [c for c in step.crossings if c.carries], step.crossings
    assert _not_scalars(step.crossings) == _expected_crossings()
    # Every device draws the noise of its variables, all at once, and updates
    # them.
    for device in placed.DEVICES:
        operations = step.operations[device]
        assert len(operations["StatelessRandomUniformFullIntV2"]) == 1
        assert len(operations["AssignSubVariableOp"]) == 4
    for device, operations in step.operations.items():
        names = [n for several in operations.values() for n in several]
        for scope in (clipped_sum.EXAMPLES_SCOPE, clipped_sum.SUM_SCOPE):
            found = {n.split("/")[0] for n in names if scope in n}
            expected = {"CPU:1": {scope}, "CPU:2": {f"{scope}_1"}}
            assert found == expected.get(device, set()), (device, found)


def test_micro_batches_send_sums_and_nothing_of_single_examples():
    model = placed.noisy(microbatch_size=MICROBATCH)
    step = placed.step(model, *placed.data())
    assert not [c for c in step.crossings if "examples" in c.carries]
    sums = [c.shape for c in step.crossings if c.carries and c.shape]
    variables = [tuple(v.shape) for v in model.trainable_variables]
    assert collections.Counter(sums) <= collections.Counter(variables), sums
    # The first micro-batch is outside of the loop, where shapes are known.
    expected = _expected_crossings()
    found = _not_scalars(step.crossings)
    assert all(found[key] >= 1 for key in expected), found


@pytest.mark.filterwarnings("ignore:The fractions that adaptive")
@pytest.mark.parametrize("rescale", [True, False])
def test_only_counts_cross_where_thresholds_adapt(rescale):
    adaptive = tf_dpfp.clipping.PerDevice(
        thresholds=tf_dpfp.clipping.Adaptive(rescale=rescale)
    )
    step = placed.step(placed.noisy(adaptive), *placed.data())
    assert _not_scalars(step.crossings) == _expected_crossings()
    counts = [c for c in step.crossings if c.carries]
    assert [c.source for c in counts] == list(placed.DEVICES), counts
    assert {c.carries for c in counts} == {frozenset({"sum"})}, counts


def test_what_crosses_shows_what_is_planted():
    x, y = placed.data()
    # Norms that are added up over devices.
    flat = placed.step(placed.noisy("flat"), x, y).crossings
    assert [c for c in flat if c.carries]

    # Clipping that is left to TensorFlow.
    def nowhere(device):
        return contextlib.nullcontext()

    with mock.patch.object(placement, "on", nowhere):
        left = placed.step(placed.noisy(), x, y).crossings
    assert [c for c in left if c.carries]
    # A backward pass that is.
    with mock.patch.object(
        microbatch,
        "backward",
        lambda tape, total, sources, plan: tape.gradient(total, sources),
    ):
        taped = placed.step(placed.noisy(), x, y).crossings
    assert _not_scalars(taped) != _expected_crossings()


def _by_hand(model, x, y):
    @tf.function(autograph=False)
    def step(x, y):
        model.optimizer.apply(tf_dpfp.loops.clipped_gradients(model, x, y))

    step(tf.constant(x), tf.constant(y))


def _by_fit(model, x, y):
    model.fit(x, y, batch_size=None, verbose=0)


@pytest.mark.parametrize(
    "train", [_by_hand, _by_fit, keras.Model.train_on_batch]
)
def test_state_and_updates_are_on_the_device_of_the_variable(train):
    model = placed.noisy(use_ema=True)
    train(model, *placed.data())
    found = collections.Counter(
        crossings.short(v.value.device)
        for v in model.optimizer.variables
        if "on_device" in v.path
    )
    # Momentum, velocity and average of four variables.
    assert found == {"CPU:1": 12, "CPU:2": 12}, found


def test_a_saved_model_is_loaded_onto_its_devices(tmp_path):
    x, y = placed.data()
    chosen = {"CPU:1": 0.3, "CPU:2": 0.4}
    model = placed.noisy(tf_dpfp.clipping.PerDevice(thresholds=chosen))
    model.train_on_batch(x, y)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    tf_dpfp.make_private(loaded)
    assert loaded.optimizer.clipping == model.optimizer.clipping
    assert placed.groups(loaded) == placed.groups(model)
    assert tf_dpfp.ledger(loaded) == tf_dpfp.ledger(model)
    for mine, theirs in zip(
        loaded.optimizer.variables, model.optimizer.variables, strict=True
    ):
        assert mine.value.device == theirs.value.device, mine.path
        np.testing.assert_array_equal(mine.numpy(), theirs.numpy())
    loaded.train_on_batch(x, y)


def test_xla_over_several_devices_is_refused():
    model = placed.private(placed.mlp(), run={"jit_compile": True})
    with pytest.raises(ValueError, match="jit_compile=False") as error:
        model.train_on_batch(*placed.data())
    assert all(device in str(error.value) for device in placed.DEVICES)
    # Where Keras turns XLA on by itself, it stays off.
    with mock.patch.object(compilation, "has_accelerator", lambda: True):
        assert not compiling._suits_xla(model.optimizer)
        flat = tf_dpfp.DPSGD(noise_multiplier=1.0)
        assert compiling._suits_xla(flat)
        assert not placed.private(placed.mlp()).jit_compile
