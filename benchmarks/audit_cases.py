"""What is audited: private steps of each kind, with the worst canary for it.

Every case trains with the library itself and returns an `AuditReport`, whose
claim is that of the accountant. Bugs are planted around a case.
"""

from collections.abc import Callable

import keras
import numpy as np
import tensorflow as tf

import tf_dpfp
from tf_dpfp import accounting
from tf_dpfp import auditing

DELTAS = (1e-5, 1e-3, 1e-1)
NOISE_MULTIPLIER = 1.0
_LONG = 1e3  # Times the clip norm: clipped for sure.


def _optimizer(**settings) -> keras.optimizers.Optimizer:
    settings = {"noise_multiplier": NOISE_MULTIPLIER, **settings}
    return tf_dpfp.DPSGD(1.0, l2_norm_clip=1.0, **settings)


def flat(runs: int, seed: int | None = None) -> auditing.AuditReport:
    """Flat clipping, one step, every example in it."""
    return auditing.dirac_audit(_optimizer(seed=seed), runs=runs, delta=DELTAS)


def flat_sampled(
    runs: int, seed: int | None = None, score=None
) -> auditing.AuditReport:
    """Flat clipping, four steps at sampling rate 1/2."""
    return auditing.dirac_audit(
        _optimizer(seed=seed),
        runs=runs,
        steps=4,
        sampling_rate=0.5,
        delta=DELTAS,
        score=score,
    )


def flat_spread(runs: int, seed: int | None = None) -> auditing.AuditReport:
    """The same steps, tested for noise that cancels between them."""
    return flat_sampled(runs, seed, auditing.spread_scores)


def per_layer_adaptive(
    runs: int, seed: int | None = None
) -> auditing.AuditReport:
    """Three layers, clipped at adaptive thresholds, two steps."""
    adaptive = tf_dpfp.clipping.Adaptive(learning_rate=0.02)
    return auditing.dirac_audit(
        _optimizer(clipping=tf_dpfp.PerLayer(thresholds=adaptive), seed=seed),
        runs=runs,
        steps=2,
        layers=3,
        delta=DELTAS,
    )


def _linear_loss(y_true, y_pred):
    return -keras.ops.sum(y_true * y_pred, axis=-1)


def _signed_loss(y_true, y_pred):
    """Label 0 pushes the output down, 1 pushes it up, 1/2 does neither."""
    return keras.ops.sum((1.0 - 2.0 * y_true) * y_pred, axis=-1)


def _compiled(layer, features: int, loss, **settings) -> keras.Model:
    model = keras.Sequential([keras.Input((features,)), layer])
    tf_dpfp.make_private(model)
    model.compile(_optimizer(**settings), loss=loss)
    return model


def _report(
    projections: list[np.ndarray],
    steps: int = 1,
) -> auditing.AuditReport:
    """From releases along the canary, with it and without it."""
    scores = auditing.likelihood_scores(
        np.concatenate(projections), 1.0, NOISE_MULTIPLIER
    )
    ran = accounting.LedgerEntry(
        accounting.UnknownSampling(), NOISE_MULTIPLIER, steps
    )
    return auditing.audit_scores(
        scores,
        np.arange(len(scores)) < len(projections[0]),
        method="many_runs",
        delta=DELTAS,
        # The canary's place is always taken: no other example moves.
        claimed_epsilon=lambda d: accounting.compute_epsilon(
            [ran], d, "pld", accounting.Adjacency.ZERO_OUT
        ),
        adjacency="zero_out",
    )


def _releases(model: keras.Model, batch: tuple, runs: int) -> np.ndarray:
    """One step on the same batch, over and over: `(runs, 1, weights)`."""
    recorder = auditing.ReleaseRecorder(restart_every=1)
    batches = tf.data.Dataset.from_tensors(batch).repeat(runs)
    model.fit(batches, callbacks=[recorder], shuffle=False, verbose=0)
    return recorder.releases


def low_rank(runs: int, seed: int | None = None) -> auditing.AuditReport:
    """A kernel through carriers of rank 2 (RGP), one step.

    From the update of the kernel both carriers' gradients can be had back,
    except for a part of the left one. The canary's gradient is chosen to have
    none there: its input is a column of L, its label is orthogonal to R.
    """
    features = outputs = 6
    layer = keras.layers.Dense(
        outputs,
        use_bias=False,
        kernel_initializer=keras.initializers.GlorotUniform(seed=1),
    )
    model = _compiled(
        layer,
        features,
        _linear_loss,
        expected_batch_size=2.0,
        seed=seed,
    )
    tf_dpfp.reparametrize(model, rank=2, carrier_source="weight")
    carriers = model.optimizer.carriers(model.trainable_variables)[0]
    left, right = carriers.left.numpy(), carriers.right.numpy()
    label = np.linalg.svd(right)[0][:, -1]
    x = _LONG * np.stack([left[:, 1], left[:, 0]]).astype(np.float32)
    y = np.stack([np.roll(label, 1), label]).astype(np.float32)

    def projections(weight):
        sums = _releases(model, (x, y, np.array([1.0, weight])), runs)
        kernels = sums.reshape(runs, 1, features, outputs)
        return -np.einsum("rsdp,d,p->rs", kernels, left[:, 0], label)

    return _report([projections(1.0), projections(0.0)])


def opposed(runs: int, seed: int | None = None) -> auditing.AuditReport:
    """One step in which the canary pulls against all other examples."""
    others = 4
    model = _compiled(
        keras.layers.Dense(1, use_bias=False, kernel_initializer="zeros"),
        1,
        _linear_loss,
        expected_batch_size=others + 1.0,
        seed=seed,
    )
    x = np.full((others + 1, 1), _LONG, np.float32)
    y = np.ones((others + 1, 1), np.float32)
    y[-1] = -1.0

    def projections(weight):
        weights = np.append(np.ones(others), weight)
        return _releases(model, (x, y, weights), runs)[..., 0]

    with_canary, without = projections(1.0), projections(0.0)
    # The others are known: with all of them the sum is -others.
    return _report([with_canary + others, without + others])


def padded(runs: int, seed: int | None = None) -> auditing.AuditReport:
    """A canary that fills a row which is padding without it."""
    rows = 4
    model = _compiled(
        keras.layers.Dense(1, kernel_initializer="zeros"),
        1,
        _signed_loss,
        expected_batch_size=float(rows),
        microbatch_size=rows,
        seed=seed,
    )
    x = np.zeros((rows, 1), np.float32)
    y = np.full((rows, 1), 0.5, np.float32)
    y[-1] = 1.0

    def projections(size):
        # Kernel and bias; the inputs are zero.
        return -_releases(model, (x[:size], y[:size]), runs)[..., 1]

    return _report([projections(rows), projections(rows - 1)])


def data_size(
    runs: int, seed: int | None = None, public: bool = True
) -> auditing.AuditReport:
    """The scale of the noise in the weights: what sums are divided by.

    Args:
        runs: Runs of each kind.
        seed: Of the noise.
        public: Whether the expected batch size is a number of its own, and
            not the sampling rate times the number of examples.
    """
    rate, features = 0.5, 400

    model = _compiled(
        keras.layers.Dense(1, use_bias=False, kernel_initializer="zeros"),
        features,
        _linear_loss,
        seed=seed,
    )

    def spreads(examples):
        recorder = auditing.ReleaseRecorder(restart_every=1)
        batches = tf_dpfp.poisson_batches(
            np.zeros((examples, features), np.float32),
            np.zeros((examples, 1), np.float32),
            sampling_rate=rate,
            expected_batch_size=5.0 if public else None,
            steps_per_epoch=runs,
        )
        model.fit(batches, callbacks=[recorder], verbose=0)
        # The update itself: of what it was divided by nothing is known.
        updates = recorder.releases / model.optimizer.expected_batch_size
        return -np.std(updates, axis=(1, 2))

    ran = accounting.LedgerEntry(
        accounting.PoissonSampling(rate), NOISE_MULTIPLIER, 1
    )
    return auditing.audit_scores(
        np.concatenate([spreads(10), spreads(9)]),
        np.arange(2 * runs) < runs,
        method="many_runs",
        delta=DELTAS,
        claimed_epsilon=lambda d: accounting.compute_epsilon([ran], d, "pld"),
    )


Case = Callable[..., auditing.AuditReport]

# What must not be refuted.
SOUND: dict[str, Case] = {
    "DP-SGD, flat": flat,
    "DP-SGD, flat, 4 steps, rate 1/2": flat_sampled,
    "DP-SGD, per layer, adaptive, 2 steps": per_layer_adaptive,
    "RGP, rank 2": low_rank,
    "DP-SGD, number of examples not public": data_size,
}
# Each bug with the case that shows it, which alone is not refuted.
TELLTALE: dict[str, Case] = {
    "noise forgotten": flat,
    "noise halved": flat,
    "noise reused": flat_spread,
    "clip skipped for one layer": per_layer_adaptive,
    "actual batch size": opposed,
    "padding leaking": padded,
}
