"""What one example can do to sums and counts together.

Both are released in one step, so what counts is the length of the whole
shift, each part measured in the noise that it gets. That noise is read from
what an optimizer does to its variables, not computed by its formula.
"""

import dataclasses

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given
from hypothesis import settings
from hypothesis import strategies as st
from keras import layers

import tf_dpfp
from tf_dpfp import noise as noise_lib

pytestmark = pytest.mark.usefixtures("without_trial")

CLIP, MULTIPLIER, EXPECTED, SEED = 0.5, 0.8, 100.0, 5
FEATURES, OUTPUTS, BATCH = 6, 2, 4
NASTY = [0.0, 1e-45, 1e-38, 3e-20, 1e-10, 1.0, 1e5, 1e10, 1e19, 1e30, 3e38]
NASTY = NASTY + [-v for v in NASTY] + [np.nan, np.inf, -np.inf]


def _adaptive(**kwargs):
    # A learning rate that makes the noise of counts easy to read.
    return tf_dpfp.clipping.Adaptive(
        **{"learning_rate": 9.0, "budget_share": 0.3} | kwargs
    )


SUBJECTS = {
    "per_layer": tf_dpfp.PerLayer(thresholds=_adaptive()),
    "free": tf_dpfp.PerLayer(
        thresholds=_adaptive(rescale=False, initial=0.3),
        noise_allocation="by_dimension",
    ),
    "flat": tf_dpfp.Flat(thresholds=_adaptive(rescale=False)),
    "shared": tf_dpfp.PerLayer(
        thresholds=_adaptive(shared=True, rescale=False),
        noise_allocation="equal_budget",
    ),
    "by_dimension": tf_dpfp.PerLayer(
        thresholds=_adaptive(initial="by_dimension"),
        noise_allocation="by_dimension",
    ),
    "automatic": tf_dpfp.PerLayer(
        thresholds=tf_dpfp.clipping.Automatic(
            stability=1e-6, split="by_dimension"
        ),
        noise_allocation="equal_budget",
    ),
}


def _model(clipping, microbatch_size=None, policy="float32"):
    keras.utils.set_random_seed(0)
    keras.config.set_dtype_policy(policy)
    model = keras.Sequential(
        [
            keras.Input((FEATURES,)),
            layers.Reshape((3, 2)),
            layers.Conv1D(3, 2, activation="relu", use_bias=False),
            layers.Flatten(),
            layers.Dense(4, use_bias=False),
            layers.PReLU(),
            layers.Dense(OUTPUTS),
        ]
    )
    keras.config.set_dtype_policy("float32")
    tf_dpfp.make_private(model)
    model.compile(
        tf_dpfp.DPSGD(
            1.0,
            l2_norm_clip=CLIP,
            noise_multiplier=MULTIPLIER,
            expected_batch_size=EXPECTED,
            clipping=clipping,
            microbatch_size=microbatch_size,
            seed=SEED,
        ),
        loss="mse",
    )
    return model


def _stored(optimizer):
    return [v for v in optimizer.variables if v.name == "clip_estimates"]


def _noise_of_sums(optimizer, clipped):
    """What a step without examples does to the variables."""
    optimizer.apply(
        dataclasses.replace(
            clipped, sums=[tf.zeros_like(s) for s in clipped.sums]
        )
    )
    return [v.numpy().astype(np.float64) for v in clipped.variables]


def _measured_deviations(model, clipped) -> np.ndarray:
    """The deviations of the noise of each group.

    With one seed, the noise of two optimizers in the same step is the same
    but for its scale. The other one clips at 1 and adds noise of 1.
    """
    optimizer, variables = model.optimizer, clipped.variables
    weights = [v.numpy() for v in variables]
    estimates = [v.numpy() for v in _stored(optimizer)]

    def to_zero():
        for v in variables:
            v.assign(tf.zeros_like(v.value))

    # Public: how many steps there were decides which noise comes next.
    steps = sum(entry.steps for entry in optimizer.ledger_entries)
    to_zero()
    zero_counts = None
    if clipped.counts is not None:
        zero_counts = tf.zeros_like(clipped.counts)
    drawn = _noise_of_sums(
        optimizer, dataclasses.replace(clipped, counts=zero_counts)
    )
    unit = tf_dpfp.DPSGD(
        1.0,
        l2_norm_clip=1.0,
        noise_multiplier=1.0,
        expected_batch_size=EXPECTED,
        seed=SEED,
    )
    unit.build(list(variables))
    whole = dataclasses.replace(
        clipped.groups[0],
        members=tuple(range(len(variables))),
        clip_norm=1.0,
        estimate=None,
    )
    # No optimizer of the model's counts this one's steps.
    plain = dataclasses.replace(
        clipped, groups=[whole], counts=None, owner=None
    )
    for _ in range(steps + 1):
        to_zero()
        of_unit = _noise_of_sums(unit, plain)
    scales = []
    for group in clipped.groups:
        ratios = np.concatenate(
            [(drawn[i] / of_unit[i]).ravel() for i in group.members]
        )
        np.testing.assert_allclose(ratios, ratios[0], rtol=1e-4)
        scales.append(np.median(ratios))
    kept = [*zip(variables, weights, strict=True)]
    for v, value in [*kept, *zip(_stored(optimizer), estimates, strict=True)]:
        v.assign(value)
    return np.array(scales)


def _released_counts(
    optimizer, clipped, counts
) -> tuple[np.ndarray, np.ndarray]:
    """The counts that one step releases, and the normals of their noise."""
    (stored,) = _stored(optimizer)
    before = stored.numpy()
    steps = sum(entry.steps for entry in optimizer.ledger_entries)
    optimizer.apply(dataclasses.replace(clipped, counts=counts))
    after = stored.numpy().astype(np.float64)
    stored.assign(before)
    old = np.array([float(g.estimate) for g in clipped.groups])
    new = np.array([after[g.members[0]] for g in clipped.groups])
    adaptive = optimizer.clipping.thresholds
    released = -np.log(new / old) / adaptive.learning_rate * EXPECTED
    source = noise_lib.NoiseSource(SEED)
    key = source.key_of(
        source.next_step(tf.constant(steps, tf.int64)), len(clipped.variables)
    )
    count = 1 if adaptive.shared else len(old)
    return released, noise_lib.gaussian_noise([count], 1.0, key).numpy()


def _measured_count_deviation(optimizer, clipped) -> float:
    """Of the noise of the counts, in units of what one count adds to them."""
    zeros = tf.zeros_like(clipped.counts)
    released, normals = _released_counts(optimizer, clipped, zeros)
    ratios = released / normals
    np.testing.assert_allclose(ratios, ratios[0], rtol=1e-3)
    deviation = np.median(ratios)
    # Whether counts are added up or averaged, the estimates tell.
    released, normals = _released_counts(optimizer, clipped, zeros + 10.0)
    gains = (released - deviation * normals) / 10.0
    np.testing.assert_allclose(gains, gains[0], rtol=1e-3)
    return deviation / np.median(gains)


class Subject:
    """A model some steps into its training, and the noise of the next one."""

    def __init__(self, clipping, **kwargs):
        self.model = _model(clipping, **kwargs)
        x, y = _batch(7)
        for _ in range(3):
            clipped = tf_dpfp.loops.clipped_gradients(self.model, x, y)
            self.model.optimizer.apply(clipped)
        # The noise of training may have led anywhere.
        for v in self.model.trainable_variables:
            v.assign(keras.random.normal(v.shape, stddev=0.5, seed=v.shape[0]))
        thresholds = clipping.thresholds
        self.shared = getattr(thresholds, "shared", False)
        clipped = tf_dpfp.loops.clipped_gradients(self.model, x, y)
        self.groups = clipped.groups
        self.scales = _measured_deviations(self.model, clipped)
        self.count_scale = None
        if clipped.counts is not None:
            self.count_scale = _measured_count_deviation(
                self.model.optimizer, clipped
            )
        self._release = tf.function(
            self._released,
            input_signature=[
                tf.TensorSpec([None, FEATURES], tf.float32),
                tf.TensorSpec([None, OUTPUTS], tf.float32),
                tf.TensorSpec([None], tf.float32),
            ],
            autograph=False,
        )

    def _released(self, x, y, weights):
        clipped = tf_dpfp.loops.clipped_gradients(self.model, x, y, weights)
        counts = [] if clipped.counts is None else clipped.counts
        return [tf.reshape(s, [-1]) for s in clipped.sums], counts

    def release(self, x, y, weights=None):
        """Sums and counts without their noise, in units of its deviation."""
        if weights is None:
            weights = np.ones(len(x), np.float32)
        sums, counts = self._release(x, y, weights)
        parts = []
        for group, scale in zip(self.groups, self.scales, strict=True):
            for i in group.members:
                parts.append(sums[i].numpy().astype(np.float64) / scale)
        if self.count_scale is not None:
            counts = counts.numpy().astype(np.float64)
            if self.shared:
                counts = np.mean(counts, keepdims=True)
            parts.append(counts / self.count_scale)
        return np.concatenate(parts)


@pytest.fixture(scope="module", params=SUBJECTS)
def subject(request):
    return Subject(SUBJECTS[request.param])


def _batch(seed, count=BATCH):
    rng = np.random.default_rng(seed)
    return (
        rng.normal(size=(count, FEATURES)).astype(np.float32),
        rng.normal(size=(count, OUTPUTS)).astype(np.float32),
    )


BOUND = 1.0 / MULTIPLIER
nasty_rows = st.lists(
    st.sampled_from(NASTY),
    min_size=FEATURES + OUTPUTS,
    max_size=FEATURES + OUTPUTS,
)


@settings(max_examples=60)
@given(
    row=nasty_rows,
    other=nasty_rows,
    position=st.integers(0, BATCH - 1),
    weight=st.sampled_from([1.0, 1.0, 0.0, -2.0, 1e30, np.nan, np.inf]),
)
def test_a_nasty_example_moves_the_release_by_at_most_the_bound(
    subject, row, other, position, weight
):
    x, y = _batch(1)
    for index, values in (((position + 1) % 4, other), (position, row)):
        x[index], y[index] = values[:FEATURES], values[FEATURES:]
    x[(position + 2) % 4] = x[(position + 3) % 4]
    weights = np.ones(BATCH, np.float32)
    weights[position] = weight
    kept = np.arange(BATCH) != position
    moved = subject.release(x, y, weights) - subject.release(
        x[kept], y[kept], weights[kept]
    )
    assert np.all(np.isfinite(moved))
    assert np.linalg.norm(moved) <= BOUND * (1 + 1e-5)
    if weight == 0.0 or not np.isfinite(weight):
        np.testing.assert_allclose(moved, 0.0, atol=1e-5)


def test_the_bound_is_reached(subject):
    # More noise than needed would hide a mistake of the same size.
    x, y = _batch(2)
    x[0], y[0] = 3.0, 1e4
    moved = subject.release(x, y) - subject.release(x[1:], y[1:])
    assert 0.999 * BOUND < np.linalg.norm(moved) <= BOUND * (1 + 1e-5)


def test_an_example_without_a_loss_moves_nothing(subject):
    x, y = _batch(3)
    without = subject.release(x[1:], y[1:])
    for bad in (np.nan, np.inf):
        y[0, 0] = bad
        np.testing.assert_allclose(subject.release(x, y), without, atol=1e-6)
        assert np.all(subject.release(x[:1], y[:1]) == 0.0)
    assert np.all(subject.release(x[:0], y[:0]) == 0.0)


_VARIANTS = {
    "pieces of three": dict(microbatch_size=3),
    "float16": dict(policy="mixed_float16"),
    "bfloat16": dict(policy="mixed_bfloat16"),
}


@pytest.mark.parametrize("name", _VARIANTS)
def test_other_ways_to_run_keep_the_bound(name):
    found = Subject(SUBJECTS["by_dimension"], **_VARIANTS[name])
    rng = np.random.default_rng(0)
    reached = 0.0
    for size in (0.0, 1e-8, 1e-3, 0.1, 1.0, 10.0, 1e3, 6e4, 1e9, np.nan):
        # Five rows, so that there is padding with and without the first.
        x, y = _batch(4, 5)
        x[0] = rng.normal(size=FEATURES)
        y[0] = size * rng.normal(size=OUTPUTS)
        moved = found.release(x, y) - found.release(x[1:], y[1:])
        assert np.all(np.isfinite(moved))
        length = np.linalg.norm(moved)
        assert length <= BOUND * (1 + 1e-5)
        reached = max(reached, length)
    assert reached > 0.99 * BOUND
