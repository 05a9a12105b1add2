"""Whole private steps of reparametrised models."""

import dataclasses

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import tf_dpfp
from tests import helpers
from tests.oracles import reference
from tf_dpfp import low_rank
from tf_dpfp import step as step_lib
from tf_dpfp.independence import gradients as trial_lib

CLIP, EXPECTED, RATE, RANK = 0.4, 7.0, 0.5, 2


# The trial of a model takes most of the time, and is tested elsewhere.
pytestmark = pytest.mark.usefixtures("without_trial")


def _model():
    """Convolutions, an einsum, and a dense layer that is called twice."""
    inputs = keras.Input((6, 6, 2))
    h = layers.Conv2D(4, 3, activation="tanh")(inputs)
    h = layers.Conv2D(6, 2, groups=2, activation="tanh")(h)
    h = layers.Reshape((9, 6))(h)
    shared = layers.Dense(6, activation="tanh")
    h = shared(shared(h))
    h = layers.EinsumDense("abc,cde->abde", (9, 2, 4))(h)
    return keras.Model(inputs, layers.Dense(5)(layers.Flatten()(h)))


def _small_model():
    return keras.Sequential(
        [
            keras.Input((6, 6, 2)),
            layers.Reshape((12, 6)),
            layers.Dense(6, activation="tanh"),
            layers.EinsumDense("abc,cde->abde", (12, 2, 4)),
            layers.Flatten(),
            layers.Dense(5),
        ]
    )


def _data(count=6, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(count, 6, 6, 2)).astype(np.float32)
    return x, rng.normal(size=(count, 5)).astype(np.float32)


def _private(model, rank=RANK, compile_arguments=None, **arguments):
    options = {
        name: arguments.pop(name)
        for name in ("left_only", "warmup_steps", "carrier_source")
        if name in arguments
    }
    if rank:
        tf_dpfp.reparametrize(model, rank, **options)
    tf_dpfp.make_private(model)
    settings = dict(
        l2_norm_clip=CLIP, noise_multiplier=0.0, expected_batch_size=EXPECTED
    )
    model.compile(
        tf_dpfp.DPSGD(RATE, **settings | arguments),
        loss="mse",
        **compile_arguments or {},
    )
    return model


def _released(gradient, carriers, view):
    """What is released of one kernel's gradient, and the way back."""
    left, right = (
        None if c is None else c.numpy().astype(np.float64) for c in carriers
    )
    matrix = view.to_matrix(tf.constant(gradient)).numpy()
    of_right = left.T @ matrix
    if right is None:
        return [of_right], left @ of_right
    projected = left @ of_right + (matrix - left @ of_right) @ right @ right.T
    return [matrix @ right, of_right], projected


def _reference_step(model, twin, x, y):
    """The weights after a step, by a float64 loop over examples."""
    variables = model.trainable_variables
    carriers = model.optimizer.carriers(variables)
    marks = [low_rank.mark_of(v) for v in variables]
    groups = model.optimizer.groups(step_lib.owned_variables(model))
    released, moves = [], []
    for gradients in twin.gradients(x, y)[0]:
        parts, back = list(gradients), list(gradients)
        for k, mark in enumerate(marks):
            if mark is not None:
                of_kernel, projected = _released(
                    gradients[k], carriers[k], mark.view
                )
                parts[k] = np.concatenate([p.ravel() for p in of_kernel])
                back[k] = mark.view.to_kernel(tf.constant(projected)).numpy()
        released.append(parts)
        moves.append(back)
    members = [group.members for group in groups]
    factors = reference.clip_factors(
        reference.norms(released, members), [g.clip_norm for g in groups]
    )
    return [
        v.numpy() - RATE * total / EXPECTED
        for v, total in zip(
            variables, reference.sums(moves, members, factors), strict=True
        )
    ]


@dataclasses.dataclass(frozen=True)
class Case:
    clipping: str | tf_dpfp.clipping.Clipping = "flat"
    left_only: bool = False
    microbatch_size: int | None = None
    jit_compile: bool = False
    carrier_source: str = "weight"


@pytest.mark.parametrize(
    "case",
    [
        Case(),
        Case(clipping="per_layer", microbatch_size=4),
        Case(left_only=True, carrier_source="history"),
        Case(clipping="per_layer", jit_compile=True, carrier_source="random"),
    ],
    ids=str,
)
def test_a_step_is_that_of_a_loop_over_examples(case):
    keras.utils.set_random_seed(0)
    build = _small_model if case.jit_compile else _model
    model = _private(
        build(),
        warmup_steps=1,
        clipping=case.clipping,
        left_only=case.left_only,
        microbatch_size=case.microbatch_size,
        carrier_source=case.carrier_source,
        compile_arguments={
            "jit_compile": case.jit_compile,
            "run_eagerly": not case.jit_compile,
        },
    )
    twin = reference.Reference(
        build,
        model,
        keras.optimizers.SGD,
        reference.flat_group,
        CLIP,
        EXPECTED,
        lambda: {"loss": "mse"},
    )
    x, y = _data()
    for _ in range(2):
        twin.take_weights(model)
        expected = _reference_step(model, twin, x, y)
        before = [v.numpy() for v in model.trainable_variables]
        model.train_on_batch(x, y)
        for v, wanted, old in zip(
            model.trainable_variables, expected, before, strict=True
        ):
            np.testing.assert_allclose(
                v.numpy(), wanted, atol=2e-6, err_msg=v.path
            )
            assert np.max(np.abs(wanted - old)) > 1e-5, v.path


def test_with_full_rank_it_is_dp_sgd():
    x, y = _data()
    models = []
    for rank in (None, 1000):
        keras.utils.set_random_seed(0)
        model = _private(_model(), rank, clipping="per_layer")
        for _ in range(2):
            model.optimizer.apply(tf_dpfp.loops.clipped_gradients(model, x, y))
        models.append(model)
    for plain, full in zip(*(m.get_weights() for m in models), strict=True):
        np.testing.assert_allclose(plain, full, atol=1e-5)


def _sums_of(model):
    @tf.function(
        input_signature=[
            tf.TensorSpec([None, 6, 6, 2], tf.float32),
            tf.TensorSpec([None, 5], tf.float32),
        ],
        autograph=False,
    )
    def sums(x, y):
        return tf_dpfp.loops.clipped_gradients(model, x, y).sums

    return lambda x, y: [
        s.numpy().astype(np.float64).ravel() for s in sums(x, y)
    ]


def _length(sums):
    return np.sqrt(sum(np.sum(s**2) for s in sums))


NASTY = [0.0, 1e-38, 1e-10, 1e5, 1e10, 1e19, 1e30, 3e38, np.nan, -np.inf]


@pytest.mark.filterwarnings("ignore:overflow encountered in cast")
@pytest.mark.parametrize(
    "clipping, left_only", [("flat", False), ("per_layer", True)]
)
def test_no_neighbour_moves_the_release_by_more_than_the_bound(
    clipping, left_only
):
    keras.utils.set_random_seed(0)
    model = _private(_model(), left_only=left_only, clipping=clipping)
    # A scale at which rounding of sums of few examples does not show.
    sums, rng = _sums_of(model), np.random.default_rng(0)
    x, y = _data(4)
    groups = model.optimizer.groups(step_lib.owned_variables(model))
    without = sums(x[1:], y[1:])
    for scale in (1e-3, 1.0, 1e3, *NASTY):
        x[0] = rng.normal(size=x[0].shape) * scale
        y[0] = rng.normal(size=y[0].shape) * rng.choice(NASTY + [1.0])
        moved = [a - b for a, b in zip(sums(x, y), without, strict=True)]
        for group in groups:
            length = _length([moved[k] for k in group.members])
            assert length <= group.clip_norm * (1 + 1e-5), (scale, group.name)
        alone = sums(x[:1], y[:1])
        assert _length(alone) <= CLIP
    # The bound is reached: a larger one would not have been noticed.
    x[0], y[0] = rng.normal(size=x[0].shape), 1e3
    assert _length(sums(x[:1], y[:1])) > 0.99 * CLIP


def test_the_released_sums_are_the_carriers_laid_end_to_end():
    model = _private(_model(), left_only=True)
    clipped = tf_dpfp.loops.clipped_gradients(model, *_data())
    for variable, total in zip(clipped.variables, clipped.sums, strict=True):
        size = low_rank.released_size(variable)
        assert total.shape == (variable.shape if size is None else (size,))


D, P, NOISE_RANK = 120, 90, 8
STD = 1.3 * CLIP / EXPECTED


@pytest.mark.parametrize("left_only", [False, True])
def test_noise_goes_on_the_carriers_and_nowhere_else(left_only):
    """What a step without gradients does to one kernel and its bias."""
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((D,)), layers.Dense(P)])
    model = _private(
        model,
        NOISE_RANK,
        left_only=left_only,
        noise_multiplier=1.3,
        microbatch_size=2,
        carrier_source="random",
    )
    model.compile(
        model.optimizer, loss=lambda y, y_pred: tf.reduce_sum(0.0 * y_pred)
    )
    kernel, bias = model.trainable_variables
    of_left, of_right, energies, of_bias = [], [], [], []
    for _ in range(40):
        left, right = (
            None if c is None else c.numpy().astype(np.float64)
            for c in model.optimizer.carriers([kernel, bias])[0]
        )
        before = kernel.numpy(), bias.numpy()
        model.train_on_batch(np.zeros((5, D)), np.zeros((5, P)))
        move = (before[0] - kernel.numpy()).astype(np.float64) / RATE
        energies.append(np.sum(move**2) / STD**2)
        of_bias.append((before[1] - bias.numpy()) / RATE)
        # The noise of dR, and of what of dL is not in it.
        of_right.append((left.T @ move).ravel())
        outside = move - left @ (left.T @ move)
        if right is not None:
            of_left.append((_complement(left).T @ move @ right).ravel())
            outside -= outside @ right @ right.T
        assert np.linalg.norm(outside) < 1e-4 * np.linalg.norm(move)
    # How far off a scale is told apart at these sample sizes.
    for sample, ratio in (
        (of_right, 1.1),
        (of_left, 1.1),
        (of_bias, np.sqrt(2)),
    ):
        if sample:
            sample = np.concatenate(sample)
            helpers.assert_normal(sample, STD, (ratio, 1 / ratio))
    expected = NOISE_RANK * (P if left_only else D + P - NOISE_RANK)
    error = np.sqrt(2 * expected / len(energies))
    assert abs(np.mean(energies) - expected) < 4.5 * error
    if not left_only:
        # Noise on the kernel would have energy d p before a projection, and
        # the published sign of the third term 4 r^2 more than this.
        assert 4 * NOISE_RANK**2 > 4.5 * error
    # Fresh in every step and for both carriers.
    samples = [s[: 8 * 80] for s in of_right + of_left]
    correlations = np.corrcoef(samples) - np.eye(len(samples))
    assert np.max(np.abs(correlations)) < 0.25


def _complement(basis):
    """An orthonormal basis of what the columns of one do not span."""
    return np.linalg.svd(basis)[0][:, basis.shape[1] :]


def _loss(model, x, y):
    # `evaluate` would be traced.
    return float(np.mean((np.float64(model(x)) - y) ** 2))


@pytest.mark.parametrize(
    "arguments",
    [
        {
            "clipping": tf_dpfp.PerLayer(thresholds="adaptive"),
            "policy": "mixed_float16",
        },
        {
            "clipping": tf_dpfp.Flat(thresholds="automatic"),
            "policy": "mixed_bfloat16",
        },
        {
            "clipping": tf_dpfp.PerLayer(
                thresholds="by_dimension", noise_allocation="by_dimension"
            )
        },
        {"clipping": "per_device"},
    ],
    ids=str,
)
@pytest.mark.filterwarnings("ignore:The fractions that adaptive")
def test_it_goes_with_every_threshold_and_policy(arguments):
    arguments = dict(arguments)
    keras.config.set_dtype_policy(arguments.pop("policy", "float32"))
    model = _private(
        _small_model(),
        warmup_steps=1,
        noise_multiplier=0.01,
        microbatch_size=3,
        **arguments,
    )
    x, y = _data(8)
    before = _loss(model, x, y)
    model.fit(x, y, batch_size=4, epochs=6, verbose=0)
    assert _loss(model, x, y) < before
    assert tf_dpfp.ledger(model)[0].steps == 12


def test_marked_layers_of_every_type_train_privately(
    monkeypatch, without_trial
):
    monkeypatch.setattr(trial_lib, "check", without_trial)
    keras.utils.set_random_seed(0)
    settings = dict(rank=2, warmup_steps=1)
    model = keras.Sequential(
        [
            keras.Input((6, 6, 2)),
            layers.Conv2D(4, 3, activation="tanh"),
            layers.Reshape((16, 4)),
            layers.Conv1D(5, 3, activation="tanh"),
            layers.EinsumDense("abc,cd->abd", (14, 6)),
            layers.Flatten(),
            tf_dpfp.RGPDense(5, **settings),
        ]
    )
    marked = "conv|einsum"
    tf_dpfp.reparametrize(model, include=marked, **settings)
    model = _private(model, rank=None)
    x, y = _data()
    sums = tf_dpfp.loops.clipped_gradients(model, x, y).sums
    assert [s.shape.rank for s in sums] == [1] * len(sums)
    before = _loss(model, x, y)
    model.fit(x, y, batch_size=6, epochs=5, verbose=0)
    assert _loss(model, x, y) < before


def test_lora_after_the_mark_is_refused_at_the_first_step():
    model = keras.Sequential([keras.Input((6,)), layers.Dense(5)])
    _private(model)
    model.layers[0].enable_lora(2)
    with pytest.raises(ValueError, match="LoRA trains other weights"):
        model.fit(np.ones((4, 6)), np.ones((4, 5)), verbose=0)


def test_a_keras_hub_bert_trains_through_carriers():
    keras_hub = pytest.importorskip("keras_hub")
    keras.utils.set_random_seed(0)
    backbone = keras_hub.models.BertBackbone(
        vocabulary_size=50,
        num_layers=1,
        num_heads=2,
        hidden_dim=16,
        intermediate_dim=32,
        max_sequence_length=12,
    )
    model = keras_hub.models.BertTextClassifier(
        backbone, num_classes=5, preprocessor=None
    )
    tf_dpfp.reparametrize(model, RANK, exclude="logits")
    released = [
        low_rank.released_size(v)
        for v in model.trainable_variables
        if low_rank.released_size(v)
    ]
    # Query, key, value and output of attention, feed forward, pooling.
    assert released == [RANK * 32] * 4 + [RANK * 48] * 2 + [RANK * 32]
    tf_dpfp.make_private(model)
    model.compile(
        tf_dpfp.DPSGD(0.1, noise_multiplier=0.0, expected_batch_size=4),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        run_eagerly=True,
    )
    rng = np.random.default_rng(0)
    x = {
        "token_ids": rng.integers(1, 50, (4, 12)),
        "segment_ids": np.zeros((4, 12), np.int64),
        "padding_mask": np.ones((4, 12), bool),
    }
    before = model.get_weights()
    model.train_on_batch(x, rng.integers(0, 5, 4))
    for variable, old in zip(model.weights, before, strict=True):
        if low_rank.released_size(variable):
            move = variable.numpy() - old
            view = low_rank.mark_of(variable).view
            sizes = np.linalg.svd(view.to_matrix(tf.constant(move)))[1]
            assert sizes[0] > 0.0
            # An update of rank 2 r at most, but for rounding of the weights.
            assert sizes[2 * RANK] < 1e-4 * sizes[0] + 1e-7
