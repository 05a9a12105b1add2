"""Noised representations of persons: oracle, sensitivity, ledger, refusals."""

import math
import warnings

import dp_accounting
import keras
import numpy as np
import pytest
import tensorflow as tf
from dp_accounting import rdp
from keras import layers
from scipy import stats

import tf_dpfp
from tests.replicas import common
from tf_dpfp import accounting
from tf_dpfp import layers as layers_lib

pytestmark = pytest.mark.usefixtures("without_trial")

PERSONS, PLACES, CLIP = 4, 3, 0.7
N, DELTA = 40, 1e-3
RNG = np.random.default_rng(0)
X = RNG.normal(size=(N, 5)).astype(np.float32)
Y = np.arange(N) % 3
USERS = np.arange(N) % 12
LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def _clip(noise=2.0, labels="public", **kwargs):
    return tf_dpfp.DPRepresentationClip(CLIP, noise, labels=labels, **kwargs)


def _model(*below, clip=None, head=None, optimizer="sgd", loss=LOSS, **kwargs):
    keras.utils.set_random_seed(3)
    model = keras.Sequential(
        [keras.Input((5,)), *below, clip or _clip(), head or layers.Dense(3)]
    )
    tf_dpfp.make_private(model)
    model.compile(optimizer, loss, **kwargs)
    return model


def _batches(x=X, y=Y, users=USERS, **kwargs):
    kwargs = {
        "expected_batch_size": 4,
        "users": users,
        "max_examples_per_user": PLACES,
        **kwargs,
    }
    return tf_dpfp.poisson_batches(x, y, **kwargs)


def _frozen(units=4):
    return layers.Dense(units, activation="tanh", trainable=False)


def _released(rows, is_there, noise=0.0, places=PLACES):
    """What a layer releases of the rows of persons, end to end."""
    persons = layers_lib.Persons.of(places, [tf.constant(is_there)])
    with layers_lib.of_persons(persons):
        released = _clip(noise)(tf.constant(rows), training=True)
    return np.float64(released.numpy())


def _oracle(rows, is_there):
    rows = np.where(is_there[:, None] != 0, np.float64(rows), 0.0)
    rows = np.where(np.isfinite(rows).all(axis=1)[:, None], rows, 0.0)
    for person in range(0, len(rows), PLACES):
        own = rows[person : person + PLACES]
        own *= min(1.0, CLIP / max(np.linalg.norm(own), 1e-30))
    return rows


def _rows(seed=1):
    """Persons with 3, 1, 2 and 0 examples, of very different size."""
    rows = np.random.default_rng(seed).normal(size=(PERSONS * PLACES, 6))
    rows[PLACES : 2 * PLACES] *= 1e-2
    is_there = np.float32([2, 1, 1, 0.5, 0, 0, 1, -1, 0, 0, 0, 0])
    return rows.astype(np.float32), is_there


def test_rows_of_a_person_are_clipped_together():
    rows, is_there = _rows()
    rows[1, 2] = np.nan  # And the person's other rows are not.
    found = _released(rows, is_there)
    np.testing.assert_allclose(found, _oracle(rows, is_there), rtol=1e-4)
    norms = np.linalg.norm(found.reshape(PERSONS, -1), axis=1)
    assert norms[1] < 0.1 * CLIP and not norms[3]
    np.testing.assert_allclose(norms[[0, 2]], CLIP, rtol=1e-4)


NASTY = {
    "ordinary": np.float32([0.1, -0.2, 0.0, 0.3, 0.0, 0.1]),
    "huge": np.full(6, 1e30, np.float32),
    "small": np.full(6, 1e-30, np.float32),
    "not a number": np.float32([np.nan, 1, 1, 1, 1, 1]),
    "infinite": np.float32([np.inf, 1, -np.inf, 1, 1, 1]),
    "zero": np.zeros(6, np.float32),
}


def test_a_person_moves_the_rows_by_at_most_the_clip_norm():
    rows, is_there = _rows()
    without = _released(rows, is_there)
    is_there[-PLACES:] = 1.0
    moved = {}
    for first, one in NASTY.items():
        for second, two in NASTY.items():
            rows[-PLACES:] = one, two, one
            found = _released(rows, is_there)
            # Nobody else's, by no bit.
            np.testing.assert_array_equal(found[:-PLACES], without[:-PLACES])
            moved[first, second] = np.linalg.norm(found - without)
    assert all(m <= CLIP for m in moved.values()), moved
    # The bound is reached, and one row by itself would reach it as well.
    assert moved["huge", "huge"] > 0.999 * CLIP
    rows[-PLACES:] = NASTY["huge"], -NASTY["huge"], NASTY["huge"]
    one = _released(rows, is_there)
    rows[-PLACES:] *= -1.0
    apart = np.linalg.norm(one - _released(rows, is_there))
    assert 1.999 * CLIP < apart <= 2 * CLIP


def test_noise_is_that_of_one_clip_norm_on_every_row():
    count = 30_000
    is_there = np.tile(np.float32([1, 1, 0]), count // PLACES)
    rows = np.zeros((count, 4), np.float32)
    noise = _released(rows, is_there, noise=1.5) / (1.5 * CLIP)
    for part in (noise[is_there == 1], noise[is_there == 0]):
        freedom = part.size
        chance = stats.chi2.cdf(np.sum(part**2), freedom)
        assert 1e-5 < chance < 1 - 1e-5
    # Rows of a person have noises of their own.
    correlation = np.corrcoef(noise[0::3].ravel(), noise[1::3].ravel())[0, 1]
    assert abs(correlation) < 5 / math.sqrt(count / 3 * 4)


def test_other_numbers_of_rows_fail():
    rows, is_there = _rows()
    for wrong in (rows[:-1], rows[:1], np.tile(rows, (2, 1))):
        with pytest.raises(tf.errors.InvalidArgumentError):
            _released(wrong, is_there)


def _trained_rows(x, users, **kwargs):
    """Rows that `fit` releases of every example, read off the weights.

    What reaches the layer is not zero where no example is. With the loss
    `sum(target * output)` the gradient of the head is the sum over examples of
    row times target, over the number of rows.
    """
    head = layers.Dense(N, use_bias=False, kernel_initializer="zeros")
    model = _model(
        layers.Rescaling(1.0, offset=0.3),
        clip=_clip(0.0),
        head=head,
        optimizer=keras.optimizers.SGD(1.0),
        loss=lambda y, outputs: keras.ops.sum(y * outputs, axis=-1),
        **kwargs,
    )
    batches = _batches(
        x,
        np.eye(N, dtype=np.float32),
        users=users,
        sampling_rate=1.0,
        expected_batch_size=None,
        steps_per_epoch=1,
    )
    model.fit(batches, verbose=0)
    assert tf_dpfp.ledger(model) == [
        accounting.LedgerEntry(
            accounting.PoissonSampling(1.0),
            0.0,
            1,
            release=accounting.PersonRepresentations("public", PLACES),
        )
    ]
    count = len(np.unique(users)) * PLACES
    return -np.float64(head.kernel.numpy()).T * count


@pytest.mark.parametrize(
    "how, replicas",
    [({}, 1), ({"run_eagerly": True}, 1), ({"jit_compile": True}, 1), ({}, 2)],
)
def test_fit_releases_the_rows_of_an_oracle(how, replicas):
    # 13 persons of 3, and one of one.
    users = np.minimum(np.arange(N) // PLACES, 13)
    x = X * np.repeat(10.0 ** np.arange(-3, 1), 10)[:, None].astype("float32")
    with common.strategy(replicas).scope():
        found = _trained_rows(x, users, **how)
    rows = np.zeros((14 * PLACES, 5))
    rows[:N] = x + np.float32(0.3)
    expected = _oracle(rows, np.float32(np.arange(14 * PLACES) < N))[:N]
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-6)


def test_one_example_a_person_trains_as_by_example():
    models = []
    for by_person in (False, True):
        keras.utils.set_random_seed(2)
        model = _model(_frozen(), clip=_clip(seed=5, name="clip"))
        of_persons = {"users": np.arange(N), "max_examples_per_user": 1}
        batches = tf_dpfp.poisson_batches(
            X,
            Y,
            np.ones(N, np.float32),
            expected_batch_size=8,
            seed=0,
            **(of_persons if by_person else {}),
        )
        model.fit(batches, verbose=0)
        models.append(model)
    trained = [[v.numpy() for v in m.trainable_variables] for m in models]
    for a, b in zip(*trained, strict=True):
        np.testing.assert_array_equal(a, b)
    (entry,) = tf_dpfp.ledger(models[1])
    assert entry.release == accounting.PersonRepresentations("public", 1)
    assert entry.steps == tf_dpfp.ledger(models[0])[0].steps


def _delta(epsilon, rate, steps, mu):
    """The delta of Gaussians, of which there is a binomial number."""
    count = np.arange(1, steps + 1)
    far = mu * np.sqrt(count)
    deltas = stats.norm.sf(epsilon / far - far / 2) - math.exp(
        epsilon
    ) * stats.norm.sf(epsilon / far + far / 2)
    return np.sum(stats.binom.pmf(count, steps, rate) * deltas)


def test_fit_counts_persons_and_says_so(tmp_path):
    model = _model(_frozen(), metrics=["accuracy"])
    budget = tf_dpfp.PrivacyBudget(epsilon=50.0, delta=DELTA)
    model.fit(_batches(), epochs=2, verbose=0, callbacks=[budget])
    entry = accounting.LedgerEntry(
        accounting.PoissonSampling(4 / 12),
        2.0,
        6,
        release=accounting.PersonRepresentations("public", PLACES),
    )
    assert tf_dpfp.ledger(model) == [entry]
    epsilon = tf_dpfp.compute_epsilon(model, DELTA)
    # Two clip norms of distance, over a standard deviation of two.
    assert _delta(epsilon, 4 / 12, 6, 1.0) < DELTA
    assert _delta(0.8 * epsilon, 4 / 12, 6, 1.0) > DELTA
    unsampled = rdp.RdpAccountant(
        neighboring_relation=dp_accounting.NeighboringRelation.REPLACE_ONE
    )
    unsampled.compose(dp_accounting.GaussianDpEvent(2.0 / 2.0), 6)
    assert epsilon < 0.8 * unsampled.get_epsilon(DELTA)
    words = " ".join(tf_dpfp.privacy_statement(model, DELTA).split())
    for said in (
        "DP-FP (noised representations) performed over 12 persons",
        "6 batches with noise multiplier 2, drawn at rate 0.333333 of persons, "
        "up to 3 examples of each",
        "User-level DP with replace-one adjacency",
        f"sampling above: {math.ceil(epsilon * 1e3) / 1e3:.3f}",
        f"{math.ceil(unsampled.get_epsilon(DELTA) * 1e3) / 1e3:.3f}",
        "all examples of one person are replaced by others",
        "Public, and not protected: whose each example is, so how many",
        "no figure counts the coins as secret",
    ):
        assert said in words, said
    assert "No user-level" not in words
    fields = tf_dpfp.privacy_card(model, DELTA).fields
    assert fields["unit"] == {
        "protects": "person",
        "most_examples_in_a_step": PLACES,
    }
    assert fields["adjacency"]["name"] == "replace_one"
    assert "every person's representation" in fields["mechanism"]["words"]
    assert "nor their labels" in fields["hazards"][0]["words"]
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert tf_dpfp.ledger(tf_dpfp.make_private(loaded)) == [entry]
    # Together with steps of examples nobody is protected.
    model.fit(X, Y, verbose=0)
    assert math.isinf(tf_dpfp.compute_epsilon(model, DELTA))
    statement = " ".join(tf_dpfp.privacy_statement(model, DELTA).split())
    assert "NO PRIVACY" in statement
    assert "others what all examples of a person are" in statement


def test_other_steps_of_a_fit_are_of_examples():
    class Sneaks(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            if not batch:
                self.model.train_on_batch(X[:6], Y[:6])

    model = _model(_frozen())
    model.fit(_batches(steps_per_epoch=2), verbose=0, callbacks=[Sneaks()])
    found = {e.release.unit: e.steps for e in tf_dpfp.ledger(model)}
    assert found == {"person": 2, "example": 1}
    # Another number of rows, with what was traced before.
    model.fit(_batches(max_examples_per_user=2), verbose=0)
    assert {
        e.release.max_examples
        for e in tf_dpfp.ledger(model)
        if e.release.unit == "person"
    } == {2, 3}


class _Mixes(layers.Layer):
    def call(self, x):
        return x - keras.ops.mean(x, axis=0, keepdims=True)


def test_what_is_below_keeps_the_rows_of_a_person_apart():
    with pytest.raises(ValueError, match="depends on the other"):
        _model(_Mixes())
    head = keras.Sequential([_Mixes(), layers.Dense(3)])
    model = _model(_frozen(), head=head)
    model.fit(_batches(steps_per_epoch=1), verbose=0)
    assert tf_dpfp.compute_epsilon(model, DELTA) < 10.0


def test_undeclared_labels_and_gradients_that_go_on_protect_nobody():
    for clip in (_clip(labels=None), _clip(end_to_end=True)):
        model = _model(clip=clip)
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            model.fit(_batches(steps_per_epoch=1), verbose=0)
        # Who lets gradients go on has asked for it.
        said = any("nothing is declared" in str(w.message) for w in told)
        assert said != clip.end_to_end
        assert math.isinf(tf_dpfp.compute_epsilon(model, DELTA))
        assert "NO PRIVACY" in tf_dpfp.privacy_statement(model, DELTA)


def test_refusals():
    model = _model(_frozen())
    for derived in (_batches().prefetch(1), _batches().map(lambda b: b)):
        with pytest.raises(ValueError, match="derived from batches of persons"):
            model.fit(derived, verbose=0)
    with pytest.raises(ValueError, match="`class_weight` is for batches"):
        model.fit(_batches(), class_weight={0: 2.0}, verbose=0)
    with pytest.raises(ValueError, match="another proves nothing"):
        with tf_dpfp.loops.sampled_steps(model, _batches()):
            pass
    assert tf_dpfp.ledger(model) == []
    labels = tf_dpfp.representations.randomize_labels(Y, 1.0, 3)
    model = _model(_frozen(), clip=_clip(labels=labels))
    with pytest.raises(ValueError, match="A person has several labels"):
        model.fit(_batches(), verbose=0)
    inputs = keras.Input((5,))
    clip = _clip()
    both = layers.Concatenate()([clip(inputs), clip(inputs)])
    twice = keras.Model(inputs, layers.Dense(3)(both))
    tf_dpfp.make_private(twice).compile("sgd", LOSS)
    with pytest.raises(ValueError, match="several releases of one draw"):
        twice.fit(_batches(), verbose=0)
