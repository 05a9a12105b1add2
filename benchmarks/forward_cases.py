"""Audits of private forward propagation, sound and as published.

Sound: the gradient stops at the noise, labels are public. The adversary sees
the weights above the noise. As published: the noise is on the representation
alone, everything is trained, labels are used as they are. The claim is then
the paper's, and two gaps are attacked: labels, and the encoder's gradient.
"""

from collections.abc import Callable

import keras
import numpy as np

import tf_dpfp
from tf_dpfp import auditing

DELTAS = (1e-5, 1e-3, 1e-1)
_LONG = 1e3
_SOUND_NOISE = 2.0
# As published: multiplier, sampling rate, and steps of one training.
_NOISE, _RATE, _STEPS = 4.0, 0.5, 4
_CLASSES = 4


def _linear_loss(y_true, y_pred):
    return -keras.ops.sum(keras.ops.cast(y_true, "float32") * y_pred, axis=-1)


def _releases(model, make_batches, runs: int, steps: int) -> np.ndarray:
    recorder = auditing.ReleaseRecorder(restart_every=steps)
    model.fit(
        make_batches(runs * steps),
        callbacks=[recorder],
        shuffle=False,
        verbose=0,
    )
    return recorder.releases


def _sound(
    runs: int,
    seed: int | None,
    sizes: tuple[int, int],
    draws: int = 1,
    steps: int = 1,
) -> auditing.AuditReport:
    """Audits a head that shows the sum of the rows of label 1.

    The canary is of label 1, the only one whose row moves the head. The other
    rows are zero. It is replaced by its negative, for a distance of twice the
    clip norm.

    Args:
        runs: Runs of each kind.
        seed: Of the noise.
        sizes: Examples of label 0 and of label 1; of the latter, one is drawn.
        draws: Draws of a step.
        steps: Steps of a run.
    """
    y = np.repeat([0, 1], sizes)
    drawn = sum(sizes) // sizes[1]

    def make_model():
        inputs = keras.Input((2,))
        rows = tf_dpfp.DPRepresentationClip(
            clip_norm=1.0,
            noise_multiplier=_SOUND_NOISE,
            labels="public",
            seed=seed,
        )(inputs)
        outputs = keras.layers.Dense(
            1, use_bias=False, kernel_initializer="zeros"
        )(rows)
        model = keras.Model(inputs, outputs)
        tf_dpfp.make_private(model)
        model.compile(keras.optimizers.SGD(1.0), loss=_linear_loss)
        return model

    def batches_with(value):
        x = np.zeros((len(y), 2), np.float32)
        x[-1, 0] = value
        return lambda count: tf_dpfp.representations.stratified_batches(
            x,
            y[:, None],
            draw_size=drawn,
            draws=draws,
            labels="public",
            steps_per_epoch=count,
            seed=seed,
        )

    # What one run costs is asked of a model that made one.
    single = make_model()
    single.fit(batches_with(_LONG)(steps), verbose=0)
    model = make_model()
    # The loss is a mean over the batch; a low loss is a large output.
    scores = [
        -drawn
        * draws
        * _releases(model, batches_with(value), runs, steps)[..., 0].sum(axis=1)
        for value in (_LONG, -_LONG)
    ]
    return auditing.audit_scores(
        np.concatenate(scores),
        np.arange(2 * runs) < runs,
        method="many_runs",
        delta=DELTAS,
        claimed_epsilon=lambda d: tf_dpfp.compute_epsilon(single, d),
        adjacency="replace_one",
    )


def sound(runs: int, seed: int | None = None) -> auditing.AuditReport:
    """One step in which the update is the canary's noised row."""
    return _sound(runs, seed, (3, 1))


def sound_sampled(runs: int, seed: int | None = None) -> auditing.AuditReport:
    """Two steps of two draws, each of a fourth of the examples."""
    return _sound(runs, seed, (12, 4), draws=2, steps=2)


def randomized_labels(
    runs: int, seed: int | None = None
) -> auditing.AuditReport:
    """Randomised response at epsilon 1: the released label, as it is."""
    seeds = np.random.default_rng(seed).integers(0, 2**32, 2 * runs).tolist()

    def release(included):
        labels = included.astype(np.int64)
        randomized = tf_dpfp.representations.randomize_labels(
            labels, 1.0, 2, seeds.pop()
        )
        return randomized.values.astype(np.float64)

    return auditing.audit(
        release,
        runs=2 * runs,
        delta=0.0,
        claimed_epsilon=1.0,
        adjacency="replace_one",
        rng=seed,
    )


def _published_model(seed: int | None) -> keras.Model:
    """An encoder, the noise, and a head that starts at zero."""
    inputs = keras.Input((5,))
    encoded = keras.layers.Dense(
        3,
        use_bias=False,
        kernel_initializer=keras.initializers.GlorotUniform(seed=1),
    )(inputs)
    rows = tf_dpfp.DPRepresentationClip(
        clip_norm=1.0, noise_multiplier=_NOISE, end_to_end=True, seed=seed
    )(encoded)
    outputs = keras.layers.Dense(_CLASSES, kernel_initializer="zeros")(rows)
    model = keras.Model(inputs, outputs)
    model.compile(
        keras.optimizers.SGD(0.5),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    return model


def _published(
    runs: int,
    seed: int | None,
    canary: tuple[list[float], int],
    score: Callable[[np.ndarray], np.ndarray],
) -> auditing.AuditReport:
    """Audits the paper's claim on end-to-end training.

    Args:
        runs: Runs of each kind.
        seed: Of the noise.
        canary: Its input and its label.
        score: From gradients `(runs, steps, weights)` to scores.
    """
    rng = np.random.default_rng(0)
    others = 31
    x = rng.normal(size=(others, 5)).astype(np.float32)
    x[:, -1] = 0.0
    y = np.zeros(others, np.int64)
    model = _published_model(seed)

    def batches_of(x, y):
        return lambda steps: tf_dpfp.poisson_batches(
            x, y, sampling_rate=_RATE, steps_per_epoch=steps, seed=seed
        )

    with_canary = batches_of(
        np.append(x, [canary[0]], axis=0).astype(np.float32),
        np.append(y, canary[1]),
    )
    gradients = [
        _releases(model, batches, runs, _STEPS)
        for batches in (with_canary, batches_of(x, y))
    ]
    return auditing.audit_scores(
        np.concatenate([score(values) for values in gradients]),
        np.arange(2 * runs) < runs,
        method="many_runs",
        delta=1e-5,
        claimed_epsilon=lambda d: tf_dpfp.accounting.claimed_epsilon(
            _NOISE, _RATE, _STEPS, d
        ),
        adjacency="add_or_remove",
    )


def published_labels(
    runs: int, seed: int | None = None
) -> auditing.AuditReport:
    """The label gap: the canary has a label that no other example has.

    All labels that nobody has get the same gradient in every step, whatever
    the noise is, for the head starts at zero.
    """

    def score(gradients):
        biases = gradients[..., -_CLASSES:]
        return np.max(biases[..., 2] - biases[..., 1], axis=1)

    return _published(runs, seed, ([1.0, 0.0, 0.0, 0.0, 0.0], 1), score)


def published_encoder(
    runs: int, seed: int | None = None
) -> auditing.AuditReport:
    """The encoder gap: the canary has a feature that no other example has.

    The gradient of that feature's weights is zero unless the canary is there:
    the noise scales what comes from the input and hides nothing of it.
    """

    def score(gradients):
        # The last of five rows of the encoder's kernel.
        return np.max(np.abs(gradients[..., 12:15]), axis=(1, 2))

    return _published(runs, seed, ([0.0, 0.0, 0.0, 0.0, 1.0], 0), score)


SOUND = {
    "DP-FP, labels public": sound,
    "DP-FP, labels public, 2 steps of 2 draws, rate 1/4": sound_sampled,
    "labels by randomised response": randomized_labels,
}
# What must be refuted, without any bug.
PUBLISHED = {
    "DP-FP as published, label gap": published_labels,
    "DP-FP as published, encoder gap": published_encoder,
}
