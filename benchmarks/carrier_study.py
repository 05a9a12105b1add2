"""How much of a gradient carriers keep, and how much of the noise.

    python -m benchmarks.carrier_study
    python -m benchmarks.carrier_study --tasks=text --ranks=1,4,16,64

Trains on the tasks of `benchmarks.rgp_table` as that does, and looks at the
gradient of one batch of training examples before the first step, in the middle
and at the end. One JSON object for each look:

- `kept`: the part of the energy (squared norm) of the reparametrised kernels'
  mean gradient that is within the span of the carriers of the next step.
- `noise`: the part of the noise energy that is left of that of plain clipping.
  Directions that know nothing of the gradient keep as much of it.
- `best`: what the best carriers of this rank could keep: the gradient's leading
  2 x rank singular values (rank, where one carrier is released).
- `progress`: how far the mean of the clipped gradients goes along the mean
  gradient of all weights, over the norm of the noise of one step.

This reads exact gradients of the training data. With data that need protection
none of it could be shown; here they are public.
"""

import json

import keras
import numpy as np
import tensorflow as tf
from absl import app
from absl import flags

import tf_dpfp
from benchmarks import carrier_energy
from benchmarks import rgp_tasks
from benchmarks import rgp_training
from tf_dpfp import low_rank

_TASKS = flags.DEFINE_list("tasks", ["mlp", "text"], "What to train.")
_SOURCES = flags.DEFINE_list(
    "sources", ["flat", "history", "weight", "random"], "Of the carriers."
)
_RANKS = flags.DEFINE_list("ranks", ["1", "4", "16"], "Of the carriers.")
_EPSILON = flags.DEFINE_float("epsilon", 3.0, "The budget.")
_DELTA = flags.DEFINE_float("delta", 1e-5, "Delta of the guarantee.")
_EPOCHS = flags.DEFINE_integer(
    "epochs", None, "Passes over the data; default: by task."
)
_SEED = flags.DEFINE_integer("seed", 1, "Of everything.")
_LEFT_ONLY = flags.DEFINE_bool("left_only", False, "Release one carrier.")


def _settings(
    name: str, source: str, rank: int | None
) -> rgp_training.Settings:
    task = rgp_tasks.TASKS[name]
    return rgp_training.Settings(
        task=name,
        method="flat" if rank is None else "rgp",
        source=None if rank is None else source,
        rank=rank,
        epsilon=_EPSILON.value,
        seed=_SEED.value,
        epochs=_EPOCHS.value or task.epochs,
        learning_rate=(
            task.learning_rate if rank is None else task.rgp_learning_rate
        ),
        l2_norm_clip=0.1,
        warmup=0.1,
        left_only=rank is not None and _LEFT_ONLY.value,
        kernels_only=False,
    )


def _mean_gradient(model: keras.Model, x, y) -> list[np.ndarray]:
    """The ordinary gradient of the batch, by trainable variable."""
    with tf.GradientTape() as tape:
        loss = model.compute_loss(y=y, y_pred=model(x, training=True))
    variables = [v.value for v in model.trainable_variables]
    return [g.numpy() for g in tape.gradient(loss, variables)]


def _energy(array) -> float:
    return float(np.sum(np.square(np.asarray(array, np.float64))))


def _look(training: rgp_training.Training, batch) -> dict:
    model = training.model
    variables = model.trainable_variables
    gradients = _mean_gradient(model, *batch)
    clipped = tf_dpfp.loops.clipped_gradients(model, *batch)
    carriers = clipped.carriers or [None] * len(variables)
    count = len(batch[1])
    totals = dict.fromkeys(("kernels", "kept", "best", "noise", "all"), 0.0)
    along, dimensions = 0.0, 0
    for variable, gradient, clipped_sum, own in zip(
        variables, gradients, clipped.sums, carriers, strict=True
    ):
        update = clipped_sum
        if own is None:
            dimensions += gradient.size
        else:
            view = low_rank.mark_of(variable).view
            matrix = view.to_matrix(tf.constant(gradient)).numpy()
            values = np.linalg.svd(matrix, compute_uv=False)
            rank = own.left.shape[1] * (1 if own.right is None else 2)
            totals["kernels"] += _energy(matrix)
            totals["kept"] += _energy(carrier_energy.kept(matrix, own))
            totals["best"] += _energy(values[:rank])
            noisy = carrier_energy.noise_dimensions(matrix.shape, own)
            totals["noise"] += noisy
            totals["all"] += matrix.size
            dimensions += noisy
            update = low_rank.reconstruct(clipped_sum, own, view)
        along += float(np.sum(update.numpy() * gradient)) / count
    clip = clipped.groups[0].clip_norm
    noise = training.noise_multiplier * float(clip) / count
    length = sum(map(_energy, gradients)) ** 0.5
    row = {"progress": along / length / (noise * dimensions**0.5)}
    if totals["all"]:
        for name in ("kept", "best"):
            row[name] = totals[name] / totals["kernels"]
        row["noise"] = totals["noise"] / totals["all"]
    return {name: round(value, 4) for name, value in row.items()}


def _study(settings: rgp_training.Settings, data) -> None:
    keras.backend.clear_session()
    training = rgp_training.prepare(settings, data[0], _DELTA.value)
    training.model.optimizer.build(training.model.trainable_variables)
    count = rgp_tasks.TASKS[settings.task].batch_size
    batch = keras.tree.map_structure(lambda a: a[:count], data[0])
    half = settings.epochs // 2
    for when, epochs in (
        ("start", 0),
        ("middle", half),
        ("end", settings.epochs - half),
    ):
        if epochs:
            training.fit(epochs)
        row = {
            "task": settings.task,
            "source": settings.source or "flat",
            "rank": settings.rank,
            "when": when,
            **_look(training, batch),
        }
        print(json.dumps(row), flush=True)


def main(argv: list[str]) -> None:
    """Prints one JSON object per look."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {argv[1:]}")
    for task in _TASKS.value:
        data = rgp_tasks.TASKS[task].load()
        for source in _SOURCES.value:
            ranks = [None] if source == "flat" else map(int, _RANKS.value)
            for rank in ranks:
                _study(_settings(task, source, rank), data)


if __name__ == "__main__":
    app.run(main)
