"""Models, and an oracle, for batches whose rows are joined before the clip."""

import keras
import numpy as np
import tensorflow as tf
from keras import layers

import tf_dpfp
from tf_dpfp import mechanisms
from tf_dpfp.mechanisms import train_step

CLIP, CLASSES = 0.7, 3
SHAPES = {"dense": (5,), "conv": (6, 6, 2), "tokens": (4,), "rgp": (5,)}


def loss():
    return keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def make_model(kind, size, **kwargs):
    """Makes a private model without noise, for batches of an expected size."""
    keras.utils.set_random_seed(2)
    hidden = {
        "dense": [layers.Dense(6, "tanh"), layers.LayerNormalization()],
        "rgp": [layers.Dense(6, "tanh")],
        "conv": [layers.Conv2D(3, 3, activation="tanh"), layers.Flatten()],
        "tokens": [layers.Embedding(7, 4), layers.LSTM(3)],
    }[kind]
    model = keras.Sequential(
        [keras.Input(SHAPES[kind]), *hidden, layers.Dense(CLASSES)]
    )
    tf_dpfp.make_private(model)
    if kind == "rgp":
        tf_dpfp.reparametrize(model, rank=2, warmup_steps=0)
    arguments = {
        "l2_norm_clip": CLIP,
        "noise_multiplier": 0.0,
        "expected_batch_size": size,
    } | kwargs
    model.compile(tf_dpfp.DPSGD(1.0, **arguments), loss())
    return model


def sums(model, batch, compiled=False):
    """Returns clipped sums and counts of a batch of persons or of views."""
    of_rows = type(batch)

    def run(*data):
        clipped = train_step.clipped_gradients(
            mechanisms.gradients_of(model), of_rows(*data)
        )
        return list(clipped.sums), clipped.counts

    data = [tf.constant(part) for part in batch]
    return (tf.function(run, autograph=False) if compiled else run)(*data)


def summed_gradients(model, batch):
    """The sum of each one's weighed gradients, in float64, by a tape."""
    found = []
    values = [v.value for v in model.trainable_variables]
    for x, y, weight in zip(*batch, strict=True):
        total = [np.zeros(v.shape) for v in values]
        for row in np.flatnonzero(weight):
            with tf.GradientTape() as tape:
                logits = model(x[row : row + 1], training=True)
                value = loss()(y[row : row + 1], logits)
            parts = tape.gradient(value, values)
            total = [
                t + np.float64(weight[row]) * tf.convert_to_tensor(part).numpy()
                for t, part in zip(total, parts, strict=True)
            ]
        found.append(total)
    return found


def projected(model, gradients):
    """Projects gradients of kernels on their carriers, laid end to end."""
    carriers = model.optimizer.carriers(model.trainable_variables)
    assert any(own is not None for own in carriers)
    found = []
    for parts in gradients:
        mine = []
        for part, own in zip(parts, carriers, strict=True):
            if own is not None:
                left, right = np.float64(own.left), np.float64(own.right)
                pair = part @ right, left.T @ part
                part = np.concatenate([p.ravel() for p in pair])
            mine.append(part)
        found.append(mine)
    return found


def clipped(gradients, groups):
    """Clips whole gradients, group by group; sums, and counts below."""
    total = [np.zeros(part.shape) for part in gradients[0]]
    counts = np.zeros(len(groups))
    for parts in gradients:
        if not any(np.any(part) for part in parts):
            continue
        for number, (members, clip_norm) in enumerate(groups):
            norm = np.sqrt(sum(np.sum(parts[i] ** 2) for i in members))
            counts[number] += 0.5 if norm <= clip_norm else -0.5
            factor = min(1.0, clip_norm / max(norm, 1e-30))
            for i in members:
                total[i] += factor * parts[i]
    return total, counts
