"""Every text model of KerasHub: clipped gradients against a loop."""

import inspect
import pathlib
import re

import keras
import numpy as np
import pytest
import tensorflow as tf

import tf_dpfp
from tests.hub import tiny_models
from tf_dpfp import per_example

keras_hub = pytest.importorskip(
    "keras_hub", reason="KerasHub is not installed (the extra `hub`)"
)

EXAMPLES = 4


def _loss():
    return keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def _row(tensors, i):
    return tf.nest.map_structure(
        lambda t: None if t is None else tf.constant(t[i : i + 1]), tensors
    )


def _loop(model, data) -> list[list[np.ndarray]]:
    """The gradient of every example, on a batch of that example alone."""
    variables = [v.value for v in model.trainable_variables]
    rows = []
    for i in range(EXAMPLES):
        x, y, weights = (_row(part, i) for part in data)
        with tf.GradientTape() as tape:
            values = _loss().call(y, model(x, training=True))
            values = tf.cast(values, tf.float32)
            if weights is not None:
                values *= weights
            loss = tf.reduce_mean(values)
        found = tape.gradient(
            loss, variables, unconnected_gradients=tf.UnconnectedGradients.ZERO
        )
        rows.append([tf.convert_to_tensor(g).numpy() for g in found])
    return rows


def _norm(gradient) -> float:
    squares = (np.sum(np.square(g.astype(np.float64))) for g in gradient)
    return float(np.sqrt(sum(squares)))


def _clipped(model, data, bound):
    model.compile(
        optimizer=tf_dpfp.DPSGD(1.0, l2_norm_clip=bound, noise_multiplier=0.0),
        loss=_loss(),
    )
    clipped = tf_dpfp.clipped_gradients(model, *data)
    return [
        np.zeros(v.shape) if s is None else tf.convert_to_tensor(s).numpy()
        for v, s in zip(model.trainable_variables, clipped.sums, strict=True)
    ]


# Trained in every run of the tests; the others are slow in their number.
ALWAYS = (
    "BertMaskedLM",
    "BertTextClassifier",
    "GPT2CausalLM",
    "GemmaCausalLM",
    "LlamaCausalLM",
)
_LOAD_BALANCING = "adds a loss of its own"
REFUSED = {
    "Gemma3nCausalLM": "outside the recorded calls",
    "Gemma4CausalLM": "outside the recorded calls",
    "MixtralCausalLM": _LOAD_BALANCING,
    "Qwen3MoeCausalLM": _LOAD_BALANCING,
    "Qwen3_5MoeCausalLM": _LOAD_BALANCING,
    "QwenMoeCausalLM": _LOAD_BALANCING,
    "XLNetBackbone": "or on their number",
}
# They read pictures, sound or film beside text, or are half of what does.
NOT_TEXT = (
    "BLIP2Backbone",
    "CLIPBackbone",
    "CLIPTextEncoder",
    "FluxBackbone",
    "MetaCLIP2Backbone",
    "MetaCLIP2TextEncoder",
    "MoonshineBackbone",
    "PARSeqBackbone",
    "PaliGemmaBackbone",
    "SAM3PromptableConceptBackbone",
    "SigLIPBackbone",
    "SigLIPTextEncoder",
    "StableDiffusion3Backbone",
    "VideoPrismBackbone",
    "WhisperBackbone",
)
DOCUMENT = pathlib.Path(__file__).parents[2] / "docs" / "keras_hub.md"


def _parameters(names):
    return [
        pytest.param(name, marks=[] if name in ALWAYS else pytest.mark.slow)
        for name in names
    ]


def _documented() -> dict[str, str]:
    """The second column of the tables in the document, by the first."""
    rows = re.findall(r"^\| `(\w+)` \| (.*) \|$", DOCUMENT.read_text(), re.M)
    assert len(dict(rows)) == len(rows)
    return dict(rows)


def _generic_layers(model) -> str:
    """What of a model takes the generic rule, as the document says it."""
    names = {
        f"`{type(unit.layer).__name__}`"
        for unit in per_example.find_units(model)
        if isinstance(unit.rule, per_example.GenericRule)
    }
    return ", ".join(sorted(names)) or "none"


@pytest.mark.filterwarnings("ignore:.*destroy the mask:UserWarning")
@pytest.mark.parametrize(
    "name", _parameters(n for n in tiny_models.MODELS if n not in REFUSED)
)
def test_clipped_gradients_equal_a_loop(name):
    model = tiny_models.build(name)
    assert _generic_layers(model) == _documented()[name]
    data = tiny_models.data(model, EXAMPLES)
    rows = _loop(model, data)
    # Between the norms: some examples are clipped and some are not.
    bound = float(np.median([_norm(row) for row in rows]))
    expected = [
        sum(
            g * min(1.0, bound / _norm(row))
            for g, row in zip(parts, rows, strict=True)
        )
        for parts in zip(*rows, strict=True)
    ]
    found = _clipped(tf_dpfp.make_private(model), data, bound)
    scale = max(np.max(np.abs(e)) for e in expected)
    for v, a, e in zip(model.trainable_variables, found, expected, strict=True):
        np.testing.assert_allclose(
            a, e, rtol=2e-3, atol=2e-5 * scale, err_msg=v.path
        )


@pytest.mark.slow
@pytest.mark.parametrize("name", REFUSED)
def test_others_are_refused_with_the_reason(name):
    model = tiny_models.build(name)
    data = tiny_models.data(model, EXAMPLES)
    with pytest.raises(ValueError, match=REFUSED[name]):
        _clipped(tf_dpfp.make_private(model), data, 1.0)


def test_every_model_is_documented():
    models = {name for name in _documented() if name not in NOT_TEXT}
    assert models == set(tiny_models.MODELS)


def test_every_text_backbone_is_swept():
    swept = {
        getattr(keras_hub.models, f.backbone) for f in tiny_models.FAMILIES
    }
    missed = []
    for name, cls in vars(keras_hub.models).items():
        if not (
            inspect.isclass(cls) and issubclass(cls, keras_hub.models.Backbone)
        ):
            continue
        arguments = inspect.signature(cls.__init__).parameters
        if cls not in swept and any("vocab" in a for a in arguments):
            missed.append(name)
    assert sorted(set(missed) - set(NOT_TEXT)) == []
