"""Compares DPAdam with DP-AdamBC, whose second moment leaves the noise out.

python -m benchmarks.adam_bias_correction --task=mnist
python -m benchmarks.adam_bias_correction --task=text

The noise adds its variance, `(noise multiplier * clip norm / expected batch
size)^2`, to the square of each coordinate of the gradient. DP-AdamBC takes it
out of the second moment and divides by what is left, at least `floor`. That is
post-processing, so the class below is all that it takes.

Settings of each are chosen on a tenth of the training examples, by three
trainings (`--tune`); the table is of three others, on the test examples.

Reference:
    Tang, Shpilevskiy and Lecuyer, 2023, "DP-AdamBC: Your DP-Adam Is Actually
    DP-SGD (Unless You Apply Bias Correction)", arXiv 2312.14334.
"""

import itertools

import keras
import numpy as np
from absl import app
from absl import flags
from keras import ops

import tf_dpfp
from benchmarks import json_lines
from benchmarks import tuning_tasks

DATA = flags.DEFINE_enum("task", "mnist", ["mnist", "text"], "The data.")
TUNE = flags.DEFINE_boolean("tune", False, "Try settings on held-out data.")
TARGET = flags.DEFINE_float("target", 3.0, "Epsilon.")
CLIP = 0.1
LEARNING_RATES = (1e-3, 3e-3, 1e-2, 3e-2)
# In units of the variance of the noise.
FLOORS = (0.03, 0.1, 0.3, 1.0)
# Chosen with --tune: learning rate and floor, `None` for DPAdam.
CHOSEN: dict[tuple[str, bool], tuple[float, float | None]] = {
    ("mnist", False): (3e-2, None),
    ("mnist", True): (1e-2, 0.3),
    ("text", False): (1e-2, None),
    ("text", True): (1e-2, 0.3),
}


class AdamBC(keras.optimizers.Adam):
    """Adam with the noise's share taken out of the second moment.

    Args:
        learning_rate: Learning rate.
        noise_variance: Variance of the noise in a coordinate of the gradient.
        floor: Least second moment, in units of `noise_variance`.
        **kwargs: As of `keras.optimizers.Adam`.
    """

    def __init__(self, learning_rate, noise_variance, floor, **kwargs):
        super().__init__(learning_rate, **kwargs)
        self.noise_variance = noise_variance
        self.floor = floor

    def update_step(self, gradient, variable, learning_rate):
        """Updates one variable."""
        step = ops.cast(self.iterations + 1, variable.dtype)
        index = self._get_variable_index(variable)
        m, v = self._momentums[index], self._velocities[index]
        self.assign_add(m, (gradient - m) * (1.0 - self.beta_1))
        self.assign_add(v, (ops.square(gradient) - v) * (1.0 - self.beta_2))
        mean = m / (1.0 - self.beta_1**step)
        second = v / (1.0 - self.beta_2**step) - self.noise_variance
        second = ops.maximum(second, self.floor * self.noise_variance)
        self.assign_sub(variable, learning_rate * mean / ops.sqrt(second))


DPAdamBC = tf_dpfp.private_optimizer_class(AdamBC)


def train(task, noise: float, rate: float, floor: float | None, seed: int):
    """Trains once, and returns the model."""
    keras.utils.set_random_seed(seed)
    steps = task.entry(noise).steps
    shared = {"l2_norm_clip": CLIP, "noise_multiplier": noise}
    schedule = keras.optimizers.schedules.CosineDecay(rate, steps)
    if floor is None:
        optimizer = tf_dpfp.DPAdam(schedule, **shared)
    else:
        variance = (noise * CLIP / task.batch_size) ** 2
        optimizer = DPAdamBC(schedule, variance, floor, **shared)
    model = task.model()
    tf_dpfp.make_private(model)
    model.compile(
        optimizer,
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    model.fit(task.batches(), epochs=task.epochs, verbose=0)
    return model


def row_of(task, test, rate, floor, seeds) -> dict:
    """Trains for each seed, and returns the accuracies."""
    noise = tuning_tasks.least_noise(lambda n: [task.entry(n)], TARGET.value)
    found = [
        tuning_tasks.accuracy(train(task, noise, rate, floor, seed), test)
        for seed in seeds
    ]
    return {
        "data": DATA.value,
        "optimizer": "DPAdam" if floor is None else "DP-AdamBC",
        "learning_rate": rate,
        "floor": floor,
        "noise_multiplier": noise,
        "accuracies": found,
        "mean": float(np.mean(found)),
    }


def main(argv):
    del argv
    task = tuning_tasks.load(DATA.value)
    if TUNE.value:
        part, few = task.held_out(seed=0)
        for rate, floor in itertools.product(LEARNING_RATES, (None, *FLOORS)):
            json_lines.append(None, row_of(part, few, rate, floor, range(3)))
        return
    for corrected in (False, True):
        rate, floor = CHOSEN[DATA.value, corrected]
        row = row_of(task, task.test, rate, floor, range(10, 13))
        json_lines.append(None, row)


if __name__ == "__main__":
    app.run(main)
