"""
Title: A private language model, from scratch
Author: The tf_dpfp authors
Date created: 2026/11/22
Last modified: 2026/11/22
Description: A small GPT-2 of KerasHub, trained on sentences it must not repeat.
Accelerator: None
"""

"""
## Introduction

A language model writes what it has read, and sometimes word for word: the
sentence of one person among thousands. Training with differential privacy
bounds how much of any one sentence the model can hold.

In this example we train a small GPT-2 from scratch on 8,000 sentences of movie
reviews, with privacy and without, compare how well both predict sentences that
they have not seen, and let the private one write. It takes a few minutes.

Two things are private beside the weights, and easily forgotten:

- *The vocabulary.* One that is learned from the data tells which words are in
  it. Ours are the 256 bytes, which tell nothing.
- *The weight of a sentence.* What is protected is a sentence, not a token. In
  a private step the loss of a sentence is that of the sentence by itself,
  whatever else is in the batch, and its gradient is clipped as one.
"""

"""
## Setup
"""

import os

os.environ["KERAS_BACKEND"] = "tensorflow"

import io
import pathlib
import subprocess
import sys
import tarfile
import tempfile

import keras
import keras_hub
import numpy as np

import tf_dpfp

# Fewer epochs for a quick look, for example TF_DPFP_TUTORIAL_EPOCHS=1.
epochs = int(os.environ.get("TF_DPFP_TUTORIAL_EPOCHS", 10))

epsilon = 8.0
delta = 1e-5
length = 64
prompt = "the film"

"""
## Sentences

They are in the source distribution of a package, an archive in an archive. pip
compares its digest before it looks at it. Twenty people have rated the mood of
each sentence; those without a clear one are left out.
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
    rows = [text for _, rating, text in rows if abs(float(rating)) >= 0.5]
    order = np.random.default_rng(0).permutation(len(rows))
    return [rows[index] for index in order]


"""
## Bytes

The tokenizer of GPT-2 works on bytes that are written as letters: those that
can be printed stand for themselves, the others for what comes after 255. Its
rules for merging them into words were learned, from public text, and are left
out here. (It can't do without any; a space before "the" is one token, then.)
"""

printable = [
    *range(ord("!"), ord("~") + 1),
    *range(ord("¡"), ord("¬") + 1),
    *range(ord("®"), ord("ÿ") + 1),
]
others = [byte for byte in range(256) if byte not in printable]
letters = [chr(byte) for byte in printable]
letters += [chr(256 + index) for index in range(len(others))]
space = chr(256 + others.index(ord(" ")))
tokens = ["<pad>", *letters, f"{space}t", "he", f"{space}the", "<|endoftext|>"]

preprocessor = keras_hub.models.GPT2CausalLMPreprocessor(
    keras_hub.models.GPT2Tokenizer(
        vocabulary={token: index for index, token in enumerate(tokens)},
        merges=[f"{space} t", "h e", f"{space}t he"],
    ),
    sequence_length=length,
)

"""
The preprocessor makes three arrays of each sentence: its tokens, the token that
follows each of them, and a mask of where there is one. Each sentence is
processed by itself, so this may be done once, before batches are drawn.
"""

training = 8000
texts = load_sentences()
texts, test_texts = texts[:training], texts[training:]


def arrays(sentences):
    x, y, mask = preprocessor(list(sentences))
    x = {name: np.array(value) for name, value in x.items()}
    return x, np.array(y), np.array(mask, "float32")


train = arrays(texts)
test = arrays(test_texts)

"""
## Model and budget

A GPT-2 with two blocks of width 64, 120,000 weights. Small models lose less to
noise, which is added to every weight.
"""


def make_model():
    keras.utils.set_random_seed(0)  # The same first weights for both.
    backbone = keras_hub.models.GPT2Backbone(
        vocabulary_size=len(tokens),
        num_layers=2,
        num_heads=4,
        hidden_dim=64,
        intermediate_dim=256,
        dropout=0.0,  # The noise regularises enough.
        max_sequence_length=length,
    )
    return keras_hub.models.GPT2CausalLM(backbone)


loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
steps_per_epoch = 32
steps = epochs * steps_per_epoch
batch_size = len(texts) / steps_per_epoch
noise_multiplier = tf_dpfp.calibrate_noise_multiplier(
    epsilon, delta, sampling_rate=1 / steps_per_epoch, steps=steps
)
print(f"{steps} steps, noise multiplier {noise_multiplier:.3f}")

"""
Perplexity says among how many tokens the model wavers: 261 if it knows nothing.
It is the exponential of the mean loss per token, padding left out.
"""


def perplexity(model):
    x, y, mask = test
    total = 0.0
    for start in range(0, len(y), 256):
        rows = slice(start, start + 256)
        logits = model.predict_on_batch({k: v[rows] for k, v in x.items()})
        losses = keras.losses.sparse_categorical_crossentropy(
            y[rows], logits, from_logits=True
        )
        total += float(np.sum(losses * mask[rows]))
    return float(np.exp(total / np.sum(mask)))


"""
## Training

`make_private`, a private optimizer, and Poisson batches: the same three lines
as for any other Keras model. The mask is given as the weights of the tokens.
`microbatch_size` bounds memory, and changes nothing else.
"""

model = tf_dpfp.make_private(make_model())
perplexities = {"untrained": perplexity(model)}
model.compile(
    optimizer=tf_dpfp.DPAdam(
        keras.optimizers.schedules.CosineDecay(1e-2, steps),
        l2_norm_clip=0.1,
        noise_multiplier=noise_multiplier,
        microbatch_size=128,
    ),
    loss=loss,
    sampler=keras_hub.samplers.TopPSampler(0.8, seed=0),
)
model.fit(
    tf_dpfp.poisson_batches(
        *train,
        sampling_rate=1 / steps_per_epoch,
        steps_per_epoch=steps_per_epoch,
    ),
    epochs=epochs,
    callbacks=[tf_dpfp.PrivacyBudget(epsilon, delta)],
    verbose=0,
)
print(tf_dpfp.privacy_statement(model, delta))

plain = make_model()
plain.compile(
    optimizer=keras.optimizers.Adam(
        keras.optimizers.schedules.CosineDecay(3e-3, steps)
    ),
    loss=loss,
)
x, y, mask = train
plain.fit(
    x,
    y,
    sample_weight=mask,
    batch_size=round(batch_size),
    epochs=epochs,
    verbose=0,
)

perplexities["private"] = perplexity(model)
perplexities["without privacy"] = perplexity(plain)
for name, value in perplexities.items():
    print(f"{name}: test perplexity {value:.2f}")

"""
## Writing

`generate` reads the weights and nothing else. What it writes is as private as
they are, however long it goes on.
"""

model.preprocessor = preprocessor
written = model.generate([prompt] * 3, max_length=length)
for text in written:
    print(repr(text))

"""
## Conclusion

| | Test perplexity | ε at δ = 1e-5 |
| --- | --- | --- |
| untrained | 261.5 | |
| private | 12.8 | 8.0 |
| without privacy, learning rate 0.003 | 13.3 | |
| without privacy, learning rate 0.005 | 13.9 | |
| without privacy, learning rate 0.01 | 16.5 | |

One training each, 320 steps; the last two with a warm-up of 32 steps. The
private model is not behind: a model this small, trained this briefly, is held
back by its size and its few steps, not by the noise. Do not take that for a
rule. Both have learned which letters follow each other and hardly any words.
The private one wrote

    the filmaly rile sth linde foffon clolat afer ouns, afu itingino
    the film as ctise bir serat fual pir atat eanit s erontash ort a
    the film r a ingangoure ofid, ovelmers intol ang oren' ichind ho

Words take a longer training of a larger model, and there the noise will tell.
The usual way is to let public text do most of it: start from a pretrained model
and fine-tune it privately. `make_private` does not mind which it is given:
[KerasHub](../../docs/keras_hub.md) lists the language models that train, with
LoRA or without.
"""

# Imports follow the text, as in all code examples of keras.io.
# ruff: noqa: D103, D205, D212, D415, E402
