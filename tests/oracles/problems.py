"""What the libraries we compare with train as well.

A model is built from the `keras` it is given, so that Keras 2 and Keras 3
build the same one. This module is imported in environments without either.
"""

import numpy as np

BATCH = 12
STEPS = 4
CLIP = 0.6
LEARNING_RATE = 0.3

# What a worker exits with when its library can't be imported.
NOT_INSTALLED = 77


def mlp(keras):
    return keras.Sequential(
        [
            keras.layers.InputLayer((6,)),
            keras.layers.Dense(8, activation="tanh"),
            keras.layers.Dense(3),
        ]
    )


def cnn(keras):
    return keras.Sequential(
        [
            keras.layers.InputLayer((9, 8, 2)),
            keras.layers.Conv2D(4, 3, strides=2, activation="relu"),
            keras.layers.Conv2D(5, 2, padding="same", activation="tanh"),
            keras.layers.GlobalAveragePooling2D(),
            keras.layers.Dense(3),
        ]
    )


def text(keras):
    return keras.Sequential(
        [
            keras.layers.InputLayer((7,), dtype="int32"),
            keras.layers.Embedding(10, 4),
            keras.layers.GlobalAveragePooling1D(),
            keras.layers.Dense(3),
        ]
    )


MODELS = {"mlp": mlp, "cnn": cnn, "text": text}


def data(name: str) -> tuple[np.ndarray, np.ndarray]:
    """The examples of a model: some have long gradients, some short ones."""
    rng = np.random.default_rng(0)
    count = BATCH * STEPS
    y = rng.integers(0, 3, count).astype("int32")
    if name == "text":
        # Ids repeat within an example.
        return rng.integers(0, 10, (count, 7)).astype("int32"), y
    shape = {"mlp": (6,), "cnn": (9, 8, 2)}[name]
    x = rng.normal(size=(count, *shape))
    x *= rng.uniform(0.1, 4.0, (count,) + (1,) * len(shape))
    return x.astype("float32"), y


def weights(name: str, shapes) -> list[np.ndarray]:
    """Weights to start with; biases too, for zeros would hide mistakes."""
    rng = np.random.default_rng(len(name))
    return [rng.normal(0, 0.4, shape).astype("float32") for shape in shapes]


def save(path: str, results: dict[str, list[np.ndarray]]) -> None:
    """Writes the weights every run ended with."""
    np.savez(
        path,
        **{
            f"{run}/{index}": value
            for run, values in results.items()
            for index, value in enumerate(values)
        },
    )


def load(path: str) -> dict[str, list[np.ndarray]]:
    """Reads what `save` wrote."""
    results: dict[str, list[np.ndarray]] = {}
    with np.load(path) as file:
        for key in file.files:
            run, index = key.rsplit("/", 1)
            values = results.setdefault(run, [])
            assert int(index) == len(values)
            values.append(file[key])
    return results
