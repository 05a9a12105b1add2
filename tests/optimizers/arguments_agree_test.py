"""The same argument is refused alike, wherever it is given."""

import math

import keras
import numpy as np
import pytest
from keras import layers

import tf_dpfp
from tf_dpfp import accounting
from tf_dpfp import low_rank
from tf_dpfp import representations

X, Y = np.zeros((8, 3), np.float32), np.arange(8) % 2


LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def _line():
    return keras.Sequential([keras.Input((3,)), layers.Dense(2)])


ENTRY_POINTS = {
    "seed": [
        lambda value: tf_dpfp.DPSGD(0.1, noise_multiplier=1.0, seed=value),
        lambda value: tf_dpfp.DPRepresentationClip(1.0, 1.0, seed=value),
        lambda value: low_rank.Reparametrization(rank=1, seed=value),
        lambda value: tf_dpfp.reparametrize(_line(), rank=1, seed=value),
        lambda value: tf_dpfp.poisson_batches(
            X, Y, expected_batch_size=2, seed=value
        ),
        lambda value: representations.stratified_batches(
            X, Y, draw_size=2, labels="public", seed=value
        ),
        lambda value: representations.randomize_labels(Y, 1.0, 2, seed=value),
    ],
    "noise_multiplier": [
        lambda value: tf_dpfp.DPSGD(0.1, noise_multiplier=value),
        lambda value: tf_dpfp.DPRepresentationClip(1.0, value),
    ],
    "l2_norm_clip": [
        lambda value: tf_dpfp.DPSGD(
            0.1, noise_multiplier=1.0, l2_norm_clip=value
        ),
    ],
    "clip_norm": [lambda value: tf_dpfp.DPRepresentationClip(value, 1.0)],
    "expected_batch_size": [
        lambda value: tf_dpfp.DPSGD(
            0.1, noise_multiplier=1.0, expected_batch_size=value
        ),
    ],
    "microbatch_size": [
        lambda value: tf_dpfp.DPSGD(
            0.1, noise_multiplier=1.0, microbatch_size=value
        ),
    ],
    "rank": [lambda value: low_rank.Reparametrization(rank=value)],
    "learning_rate": [
        lambda value: tf_dpfp.clipping.Adaptive(learning_rate=value)
    ],
    "stability": [lambda value: tf_dpfp.clipping.Automatic(stability=value)],
}
NO_NUMBERS = ["1", "1.0", True, False, -1, math.nan, math.inf, 1j, [1.0], {}]
CASES = [
    (name, make, value)
    for name, several in ENTRY_POINTS.items()
    for make in several
    for value in NO_NUMBERS
]


@pytest.mark.parametrize(("name", "make", "value"), CASES)
def test_what_is_no_number_is_refused_with_its_name_and_value(
    name, make, value
):
    with pytest.raises(ValueError) as error:
        make(value)
    message = str(error.value)
    assert message.startswith(f"`{name}` must be ")
    assert message.endswith(f"Received: {name}={value!r}")


@pytest.mark.parametrize(
    "make",
    [
        lambda value: tf_dpfp.clipping.Adaptive(rescale=value),
        lambda value: tf_dpfp.clipping.Adaptive(shared=value, rescale=False),
        lambda value: tf_dpfp.DPRepresentationClip(1.0, 1.0, end_to_end=value),
        lambda value: low_rank.Reparametrization(rank=1, left_only=value),
        lambda value: accounting.LedgerEntry(
            accounting.UnknownSampling(), 1.0, 1, seeded=value
        ),
    ],
)
@pytest.mark.parametrize("value", [0, 1, "False", None])
def test_what_is_no_boolean_is_refused(make, value):
    with pytest.raises(ValueError, match="must be True or False. Received"):
        make(value)


@pytest.mark.parametrize("make", ENTRY_POINTS["seed"])
def test_every_seed_takes_integers_of_any_kind(make):
    for value in (0, 3, np.int64(3), np.uint8(3)):
        make(value)


@pytest.mark.parametrize("make", ENTRY_POINTS["seed"])
@pytest.mark.parametrize("value", [2**63, 1.0, np.array([1])])
def test_every_seed_is_refused_in_the_same_words(make, value):
    with pytest.raises(ValueError) as error:
        make(value)
    message = str(error.value)
    assert "an integer from 0 to 2**" in message
    assert message.endswith(f"Received: seed={value!r}")


def _noised(**kwargs):
    model = keras.Sequential(
        [
            keras.Input((3,)),
            layers.Dense(2, trainable=False, name="below"),
            tf_dpfp.DPRepresentationClip(1.0, 1.0, **kwargs),
            layers.Dense(2),
        ]
    )
    return tf_dpfp.make_private(model)


def _by_noise(seed):
    model = tf_dpfp.make_private(_line())
    optimizer = tf_dpfp.DPSGD(0.1, noise_multiplier=1.0, seed=seed)
    model.compile(optimizer, LOSS, jit_compile=False)
    model.train_on_batch(X, Y)
    return model


def _by_sampling(seed):
    model = _by_noise(None)
    batches = tf_dpfp.poisson_batches(
        X, Y, expected_batch_size=8, steps_per_epoch=1, seed=seed
    )
    model.fit(batches, verbose=0)
    return model


def _by_sampling_of_a_loop(seed):
    model = _by_noise(None)
    batches = tf_dpfp.poisson_batches(
        X, Y, expected_batch_size=8, steps_per_epoch=1, seed=seed
    )
    with tf_dpfp.loops.sampled_steps(model, batches):
        for x, y in batches:
            model.optimizer.apply(tf_dpfp.loops.clipped_gradients(model, x, y))
    return model


def _by_noise_of_a_layer(seed):
    model = _noised(labels="public", seed=seed)
    model.compile("sgd", LOSS, jit_compile=False)
    model.train_on_batch(X, Y)
    return model


def _stratified(seed):
    return representations.stratified_batches(
        X, Y, draw_size=4, labels="public", seed=seed
    )


def _by_stratified_draws(seed):
    model = _noised(labels="public")
    model.compile("sgd", LOSS, jit_compile=False)
    model.fit(_stratified(seed), verbose=0)
    return model


def _by_joint_draws(seed):
    model = _noised(labels="public")
    model.get_layer("below").trainable = True
    optimizer = tf_dpfp.DPSGD(0.1, noise_multiplier=1.0)
    model.compile(optimizer, LOSS, jit_compile=False)
    model.fit(_stratified(seed), verbose=0)
    return model


def _by_labels(seed):
    labels = representations.randomize_labels(Y, 1.0, 2, seed=seed)
    model = _noised(labels=labels)
    model.compile("sgd", LOSS, jit_compile=False)
    model.train_on_batch(X, labels.values)
    return model


SEEDED_WAYS = [
    _by_noise,
    _by_sampling,
    _by_sampling_of_a_loop,
    _by_noise_of_a_layer,
    _by_stratified_draws,
    _by_joint_draws,
    _by_labels,
]


@pytest.mark.parametrize("train", SEEDED_WAYS)
def test_every_seed_is_kept_in_the_ledger_and_said(train, without_trial):
    for seed, is_said in ((None, False), (1, True)):
        model = train(seed)
        statement = tf_dpfp.privacy_statement(model, 1e-3)
        assert ("SEEDED" in statement) == is_said
        assert any(e.seeded for e in tf_dpfp.ledger(model)) == is_said
