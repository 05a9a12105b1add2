"""
Title: Auditing private trainings
Author: The tf_dpfp authors
Date created: 2026/11/29
Last modified: 2026/11/29
Description: What attacks find in a model, beside what its epsilon allows.
Accelerator: None
"""

"""
## Introduction

Epsilon is a promise: no attack, however clever, does better. An **audit** makes
attacks and looks at what they achieve. It puts examples of its own into the
data, *canaries*, each by the flip of a coin; trains; and guesses the coins from
the model. Many right guesses prove a lower bound on epsilon. If that bound is
above the promise, something in the code is wrong. If it is below, nothing is
proved: a better attack may do better.

In this example we let a network learn random labels, which is nothing but
memorising, and look at how much of it an attack reads back: without privacy,
and at several budgets. Then we audit the steps of an optimizer as they are, and
with a bug.
"""

"""
## Setup
"""

import os

os.environ["KERAS_BACKEND"] = "tensorflow"

import keras
import matplotlib.pyplot as plt
import numpy as np
import tensorflow as tf
from keras import layers

import tf_dpfp
from tf_dpfp import auditing

# Fewer epochs for a quick look, for example TF_DPFP_TUTORIAL_EPOCHS=1.
epochs = int(os.environ.get("TF_DPFP_TUTORIAL_EPOCHS", 30))
runs = int(os.environ.get("TF_DPFP_TUTORIAL_RUNS", 1000))
delta = 1e-5
budgets = [1.0, 4.0, 16.0, 64.0]

"""
## Data with nothing to learn

A thousand examples that are always there, and a thousand canaries. Labels are
random: whoever knows the label of an example has seen that example.
"""

rng = np.random.default_rng(0)


def examples(count):
    x = rng.normal(size=(count, 32)).astype("float32")
    return x, rng.integers(0, 2, (count, 1)).astype("float32")


(x, y), (canary_x, canary_y) = examples(1000), examples(1000)

"""
## One run, many canaries

`insert_canaries()` appends the canaries, with weight zero for those that are
out: they contribute nothing, and the number of examples tells nothing. The
score of a canary is minus its loss at the end: a low loss says "in".
"""


def make_model():
    return keras.Sequential(
        [
            keras.Input((32,)),
            layers.Dense(256, activation="relu"),
            layers.Dense(1),
        ]
    )


loss = keras.losses.BinaryCrossentropy(from_logits=True)


def train(included, epsilon=None):
    x_all, y_all, weight = auditing.insert_canaries(
        x, y, canary_x, canary_y, included
    )
    model = make_model()
    if epsilon is None:
        model.compile(keras.optimizers.Adam(0.005), loss=loss)
        data = tf.data.Dataset.from_tensor_slices((x_all, y_all, weight))
        shuffled = data.shuffle(2000).batch(200)
        model.fit(shuffled, epochs=epochs, shuffle=False, verbose=0)
    else:
        batches = tf_dpfp.poisson_batches(
            x_all, y_all, weight, expected_batch_size=200
        )
        noise_multiplier = tf_dpfp.calibrate_noise_multiplier(
            epsilon, delta, 200 / len(x_all), epochs * len(batches)
        )
        tf_dpfp.make_private(model)
        model.compile(
            tf_dpfp.DPAdam(
                0.005, l2_norm_clip=0.5, noise_multiplier=noise_multiplier
            ),
            loss=loss,
        )
        model.fit(batches, epochs=epochs, verbose=0)
    return -auditing.example_losses(model, canary_x, canary_y)


def audit(epsilon):
    report = auditing.audit(
        lambda included: train(included, epsilon),
        runs=1,
        canaries=len(canary_x),
        delta=delta,
        claimed_epsilon=epsilon,
        rng=0,
    )
    scores, included = np.ravel(report.scores), np.ravel(report.included)
    curve = auditing.roc_curve(scores[included], scores[~included])
    claim = "none" if epsilon is None else f"{epsilon:g}"
    print(
        f"Claim {claim}: at least {report.lower_bound:.2f}, area under the "
        f"curve {curve.area:.3f}, refuted: {report.refuted}"
    )
    return report, curve


reports, curves = zip(*map(audit, [None, *budgets]), strict=True)

figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4))
left.semilogx(
    budgets, [curve.area for curve in curves[1:]], "o-", label="private"
)
left.axhline(
    curves[0].area, color="grey", linestyle="--", label="without privacy"
)
left.axhline(0.5, color="grey", linestyle=":", label="guessing")
left.set(xlabel="ε at δ = 1e-5", ylabel="Area under the ROC curve")
left.legend()
for name, curve in zip(["without privacy", "ε = 4"], curves[::2], strict=False):
    right.loglog(
        curve.false_positive_rate, curve.true_positive_rate, label=name
    )
right.set(
    xlabel="Canaries wrongly taken for members",
    ylabel="Members that are found",
    xlim=(1e-3, 1),
    ylim=(1e-3, 1),
)
right.legend()
figure.tight_layout()
figure.savefig("audit.png", dpi=150)

"""
## The sharpest test of a step

The network is a weak adversary: only the last model is looked at, and canaries
hide each other. `dirac_audit()` plays the strongest one that the proof allows
for: it sees every step, and its canary has a gradient as long as the clip norm
along a weight that nobody else uses. It takes the optimizer that you mean to
use.
"""

sound = auditing.dirac_audit(
    tf_dpfp.DPSGD(1.0, l2_norm_clip=1.0, noise_multiplier=1.0), runs=runs
)
print(sound)

"""
## A bug

Say that somebody scales the noise by the clip norm twice, with a clip norm of
one half: half of the noise that the ledger counts. Nothing crashes, the model
is a little better, and epsilon is shown as before. From outside such a step
looks like that of an optimizer with half of the noise multiplier, so we can
audit its scores against the claim that it makes.
"""

half = auditing.dirac_audit(
    tf_dpfp.DPSGD(1.0, l2_norm_clip=1.0, noise_multiplier=0.5), runs=runs
)
claims = [point.claimed_epsilon for point in sound.points]
deltas = [point.delta for point in sound.points]
wrong = auditing.audit_scores(
    half.scores,
    half.included,
    method="many_runs",
    delta=deltas,
    claimed_epsilon=lambda d: claims[deltas.index(d)],
    adjacency="add_or_remove",
)
print(wrong)

"""
## Conclusion

| Training | Area under the ROC curve | ε is at least | ε that is claimed |
| --- | --- | --- | --- |
| without privacy | 0.790 | 1.24 | none |
| private | 0.640 | 0.51 | 64 |
| private | 0.590 | 0.35 | 16 |
| private | 0.549 | 0.09 | 4 |
| private | 0.492 | 0.00 | 1 |

![What the attack finds](../../docs/tutorial_audit.png)

| Steps | ε is at least, at δ = 0.1 | ε that is claimed |
| --- | --- | --- |
| as they are | 0.49 | 1.16 |
| with half of the noise | 2.05 | 1.16: refuted |

One training or audit each, with 95 % confidence; 70 seconds of CPU time for
all. An attack on the last model finds little of what the proof allows for, and
nothing at a budget of 1. The sharp audit finds half of the noise missing with
two thousand steps. It shows at δ = 0.1 and not at 1e-5, where so few runs can't
prove much: ask for several δ.

Where to go from here:

- Audit the training that you mean to run, with its clipping, sampling and
  model: `auditing.audit()` takes any function from coins to scores.
- [Auditing](../../docs/auditing.md) says what the bounds rest on, and what was
  found by audits of this library.
"""

# Imports follow the text, as in all code examples of keras.io.
# ruff: noqa: D103, D205, D212, D415, E402
