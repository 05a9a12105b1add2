"""Cards of trainings of every kind, and a checker of JSON schemas."""

import json
import pathlib
import re

import keras
import numpy as np
from keras import layers

import tf_dpfp
from tf_dpfp import cards

SCHEMA = json.loads(
    (
        pathlib.Path(cards.__file__).parent / "privacy_card.schema.json"
    ).read_text()
)
X = np.random.default_rng(0).normal(size=(40, 5)).astype("float32")
Y = np.arange(40) % 2
SEED = 987_654_321
LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
_TYPES = {
    "object": dict,
    "array": list,
    "string": str,
    "boolean": bool,
    "integer": int,
    "number": (int, float),
    "null": type(None),
}
_KNOWN = {
    *("type", "properties", "required", "additionalProperties", "items"),
    *("enum", "const", "anyOf", "minimum", "maximum", "pattern", "$ref"),
    *("description", "title", "$schema", "$id", "$defs"),
}


def problems(value, schema=SCHEMA, at="card"):
    """Where a value is not as a schema says; of what the card's one uses."""
    assert set(schema) <= _KNOWN, set(schema) - _KNOWN
    if "$ref" in schema:
        name = schema["$ref"].removeprefix("#/$defs/")
        return problems(value, SCHEMA["$defs"][name], at)
    if "anyOf" in schema:
        found = [problems(value, other, at) for other in schema["anyOf"]]
        return min(found, key=len)
    found = []
    if "type" in schema:
        names = schema["type"]
        names = [names] if isinstance(names, str) else names
        is_bool = isinstance(value, bool)
        if not any(
            isinstance(value, _TYPES[name])
            and (not is_bool or name == "boolean")
            for name in names
        ):
            return [f"{at}: {value!r} is no {names}"]
    if "const" in schema and value != schema["const"]:
        found.append(f"{at}: {value!r} is not {schema['const']!r}")
    if "enum" in schema and value not in schema["enum"]:
        found.append(f"{at}: {value!r} is none of {schema['enum']}")
    if "pattern" in schema and not re.search(schema["pattern"], value):
        found.append(f"{at}: {value!r} does not match")
    if isinstance(value, int | float) and not isinstance(value, bool):
        if value < schema.get("minimum", value):
            found.append(f"{at}: {value!r} is too small")
        if value > schema.get("maximum", value):
            found.append(f"{at}: {value!r} is too great")
    if isinstance(value, dict):
        known = schema.get("properties", {})
        more = schema.get("additionalProperties", True)
        for name in schema.get("required", []):
            if name not in value:
                found.append(f"{at}.{name} is missing")
        for name, inner in value.items():
            if name in known:
                found += problems(inner, known[name], f"{at}.{name}")
            elif more is False:
                found.append(f"{at}.{name} is not known")
            elif more is not True:
                found += problems(inner, more, f"{at}.{name}")
    if isinstance(value, list) and "items" in schema:
        for i, inner in enumerate(value):
            found += problems(inner, schema["items"], f"{at}[{i}]")
    return found


def _private(model, optimizer, loss=LOSS):
    tf_dpfp.make_private(model)
    model.compile(optimizer, loss)
    return model


def _optimizer(**kwargs):
    return tf_dpfp.DPSGD(0.1, l2_norm_clip=1.0, noise_multiplier=2.0, **kwargs)


def sums(fit=True, **kwargs):
    """DP-SGD on Poisson batches."""
    model = keras.Sequential([keras.Input((5,)), layers.Dense(2)], name="sums")
    _private(model, _optimizer(**kwargs))
    if fit:
        batches = tf_dpfp.poisson_batches(X, Y, sampling_rate=0.25)
        model.fit(batches, verbose=0)
    return model


def persons():
    """DP-SGD of persons."""
    model = sums(fit=False)
    batches = tf_dpfp.poisson_batches(
        X,
        Y,
        sampling_rate=0.25,
        users=np.arange(40) // 4,
        max_examples_per_user=3,
    )
    model.fit(batches, verbose=0)
    return model


def unknown():
    """DP-SGD on an ordinary pipeline."""
    model = sums(fit=False)
    model.fit(X, Y, batch_size=10, verbose=0)
    return model


def several():
    """Both, one after the other."""
    model = sums()
    model.fit(X, Y, batch_size=10, verbose=0)
    return model


def without_noise():
    """Steps that protect nothing."""
    model = keras.Sequential([keras.Input((5,)), layers.Dense(2)])
    _private(model, tf_dpfp.DPSGD(0.1, l2_norm_clip=1.0, noise_multiplier=0.0))
    model.fit(X, Y, batch_size=20, verbose=0)
    return model


def _with_rows(frozen, **kwargs):
    inputs = keras.Input((5,))
    below = layers.Dense(4, activation="tanh")
    below.trainable = not frozen
    rows = tf_dpfp.DPRepresentationClip(1.5, 3.0, **kwargs)(below(inputs))
    return keras.Model(inputs, layers.Dense(2)(rows))


def _drawn(labels, y=Y):
    return tf_dpfp.representations.stratified_batches(
        X, y, labels=labels, draw_size=4
    )


def representations():
    """DP-FP with public labels."""
    model = _private(_with_rows(True, labels="public"), "adam")
    model.fit(_drawn("public"), verbose=0)
    return model


def randomized():
    """DP-FP with randomised labels."""
    labels = tf_dpfp.representations.randomize_labels(Y, 1.0, 2)
    loss = tf_dpfp.representations.DebiasedCrossentropy(1.0, num_classes=2)
    model = _private(_with_rows(True), "adam", loss)
    model.fit(_drawn(None, labels), verbose=0)
    return model


def joint():
    """DP-FP, with DP-SGD of the layers below."""
    model = _private(_with_rows(False, labels="public"), _optimizer())
    model.fit(_drawn("public"), verbose=0)
    return model


def trained_before():
    """DP-SGD after ordinary steps."""
    model = keras.Sequential([keras.Input((5,)), layers.Dense(2)])
    model.compile("sgd", LOSS)
    model.fit(X, Y, verbose=0)
    _private(model, _optimizer())
    model.fit(tf_dpfp.poisson_batches(X, Y, sampling_rate=0.25), verbose=0)
    return model


def seeded():
    """DP-SGD with noise of a seed."""
    return sums(seed=SEED)


def untrained():
    """No step."""
    return sums(fit=False)


ALL = (
    *(sums, persons, unknown, several, without_noise, representations),
    *(randomized, joint, trained_before, seeded, untrained),
)
