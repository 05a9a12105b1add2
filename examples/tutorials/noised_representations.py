"""
Title: Private by noise in the forward pass
Author: The tf_dpfp authors
Date created: 2026/11/22
Last modified: 2026/11/22
Description: A head on a frozen text encoder, trained on noised representations.
Accelerator: None
"""

"""
## Introduction

Private training usually works on gradients: those of every example are clipped,
added up and noised. There is another place for the noise. **DP forward
propagation** ([Du and Mi, 2021](https://arxiv.org/abs/2112.14430)) clips the
*representation* of every example, somewhere inside the model, and adds noise to
it in the forward pass. What comes after it has only seen noise, and may be
trained by any optimizer, with no clipping, no gradient noise, and no gradient
of single examples.

That is true of what comes *after*. What comes before the noise still sees
examples in clear, and so do the labels. `tf_dpfp` therefore stops the gradient
at the noise: the encoder below is frozen. And it asks about the labels: either
they are declared public, or they are randomised.

In this example we take a pretrained sentence encoder, freeze it, and train a
linear head that tells sentences of praise from sentences of blame: once on
noised representations, once by DP-SGD.
"""

"""
## Setup
"""

import os

os.environ["KERAS_BACKEND"] = "tensorflow"

import keras
import matplotlib.pyplot as plt
import numpy as np

import tf_dpfp
from examples.trainers import minilm
from examples.trainers import text_datasets

# Fewer epochs for a quick look, for example TF_DPFP_TUTORIAL_EPOCHS=1.
epochs = int(os.environ.get("TF_DPFP_TUTORIAL_EPOCHS", 30))
epsilon = 3.0
delta = 1e-5
batch_size = 1024

"""
## Vectors of sentences

The data are 10,000 sentences of movie reviews; the encoder is
all-MiniLM-L6-v2. It is frozen, so every sentence is encoded once, before
training. Vectors are scaled to length 1: the clip norm is then known without a
look at the data.
"""

(texts, y_train), (test_texts, y_test) = text_datasets.load_movie_reviews()
x_train = keras.utils.normalize(minilm.sentence_vectors(texts))
x_test = keras.utils.normalize(minilm.sentence_vectors(test_texts))
y_train, y_test = y_train[:, None], y_test[:, None]


def evaluate(model):
    _, accuracy = model.evaluate(x_test, y_test, batch_size=2048, verbose=0)
    spent = tf_dpfp.compute_epsilon(model, delta)
    print(f"  test accuracy {accuracy:.4f}, epsilon {spent:.3f}")
    return accuracy


def compile_and_fit(model, optimizer, batches):
    model.compile(
        optimizer,
        loss=keras.losses.BinaryCrossentropy(from_logits=True),
        metrics=[keras.metrics.BinaryAccuracy(threshold=0.0)],
    )
    model.fit(batches, epochs=epochs, verbose=0)


"""
## Micro-batches

Every row of a batch gets noise of its own, and every release of an example
costs. What makes it affordable is that an example is seldom drawn: the smaller
a draw is beside the data, the less each draw tells about any one example. So a
batch of 1024 is not one draw but many small ones, laid end to end.
`stratified_batches` draws them: a fixed number from each label, without
replacement, in random order.

`calibrate_representation` finds the noise that the budget asks for.
"""


def draw_batches(draws):
    return tf_dpfp.representations.stratified_batches(
        x_train,
        y_train,
        draw_size=batch_size // draws,
        draws=draws,
        labels="public",
    )


"""
## The model

`DPRepresentationClip` stands where the noise is to be; here, on the input.
Above it everything is allowed, also what private training forbids elsewhere:
`BatchNormalization` looks at the whole batch. It takes off the offset that the
small logits of so noisy inputs would drown in.

`make_private` tries the model on made-up inputs: does anything reach the output
around the noise? Does the representation of one example depend on others? Then
any optimizer will do.
"""


def train_on_noised(draws, learning_rate=0.001):
    batches = draw_batches(draws)
    noise_multiplier = tf_dpfp.representations.calibrate_representation(
        batches, epsilon=epsilon, delta=delta, epochs=epochs
    )
    print(f"{draws} draws: noise {noise_multiplier:.2f}")
    model = keras.Sequential(
        [
            keras.Input(x_train.shape[1:]),
            tf_dpfp.DPRepresentationClip(
                clip_norm=1.0,
                noise_multiplier=noise_multiplier,
                labels="public",
            ),
            keras.layers.BatchNormalization(
                momentum=0.95, center=False, scale=False
            ),
            keras.layers.Dense(1, use_bias=False, kernel_initializer="zeros"),
        ]
    )
    tf_dpfp.make_private(model)
    steps = epochs * len(batches)
    compile_and_fit(
        model,
        keras.optimizers.Adam(
            keras.optimizers.schedules.CosineDecay(learning_rate, steps)
        ),
        batches,
    )
    return model, noise_multiplier


counts = [1, 8, 64, 512]
noises, accuracies = [], []
for count in counts:
    model, noise = train_on_noised(count)
    noises.append(noise)
    accuracies.append(evaluate(model))

"""
The published method claims that M micro-batches divide the power of the noise
by M. From 1 to 8 it falls by a factor of five here, and from 1 to 512 by 32:
below a noise multiplier of one or two, smaller draws buy little.

The statement says what the guarantee covers, and what it does not.
"""

print(tf_dpfp.privacy_statement(model, delta))

"""
## The same head by DP-SGD
"""

sgd_model = keras.Sequential(
    [
        keras.Input(x_train.shape[1:]),
        keras.layers.Dense(1, kernel_initializer="zeros"),
    ]
)
batches = tf_dpfp.poisson_batches(
    x_train, y_train, expected_batch_size=batch_size
)
tf_dpfp.make_private(sgd_model)
print("DP-SGD")
compile_and_fit(
    sgd_model,
    tf_dpfp.DPAdam(
        keras.optimizers.schedules.CosineDecay(0.1, epochs * len(batches)),
        l2_norm_clip=0.1,
        noise_multiplier=tf_dpfp.calibrate_noise_multiplier(
            epsilon,
            delta,
            sampling_rate=batch_size / len(x_train),
            steps=epochs * len(batches),
        ),
    ),
    batches,
)
by_gradients = evaluate(sgd_model)

figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4))
left.loglog(counts, np.square(noises), "o-", label="needed")
left.loglog(counts, noises[0] ** 2 / np.array(counts), ":", label="1/M")
left.set(xlabel="Micro-batches M", ylabel="Noise power over clip norm²")
left.legend()
right.semilogx(
    counts, [100 * a for a in accuracies], "o-", label="noised representations"
)
right.axhline(100 * by_gradients, color="grey", linestyle="--", label="DP-SGD")
right.set(xlabel="Micro-batches M", ylabel="Test accuracy (%)")
right.legend()
figure.tight_layout()
figure.savefig("noised_representations.png", dpi=150)

"""
## Conclusion

| Head | Micro-batches | Noise multiplier | Test accuracy | ε at δ = 1e-5 |
| --- | --- | --- | --- | --- |
| on noised representations | 1 | 6.65 | 55.4 % | 3.0 |
| | 8 | 2.91 | 72.9 % | 3.0 |
| | 64 | 1.60 | 73.8 % | 3.0 |
| | 512 | 1.18 | 74.6 % | 3.0 |
| by DP-SGD | | 3.14 | 78.8 % | 3.0 |

One training each; three of each are in the
[benchmarks](../docs/benchmarks.md#noised-representations), with 79.2 %
without privacy.

The two epsilons are not for the same promise. That of DP-SGD is for adding or
removing an example with its label; that of the noised representations for
replacing an example by another of the same label, where labels are public.

**Which to choose?** For a head on a frozen encoder, DP-SGD: it is three to four
points more accurate, protects labels, and costs next to nothing on so small a
model. The noise of DP-SGD is added once, to the sum of a thousand gradients;
here every single vector gets more noise than it is long. Noise in the forward
pass is worth a look where gradients of single examples are out of reach (layers
that mix the examples of a batch, losses that compare them, optimizers or
training loops that can't be changed), where the trained part is large and the
representation small, or where noised vectors are to be handed on: whatever is
done with them afterwards is covered.

Where to go from here:

- Fewer coordinates need less noise: project to a few directions that are known
  beforehand, or place the layer at a bottleneck.
- `tf_dpfp.representations.randomize_labels(y, epsilon, num_classes)` protects
  the labels, too. Their epsilon is added to the ledger.
- [The guarantee](../docs/guarantee.md#noised-representations) says what is
  proved, and [Auditing](../docs/auditing.md) what happens to the published form
  of the method, which trains the encoder as well.
"""

# Imports follow the text, as in all code examples of keras.io.
# ruff: noqa: D103, D205, D212, D415, E402
