"""Every text model of KerasHub: clipped gradients against a loop."""

import inspect
import pathlib
import re

import numpy as np
import pytest

import tf_dpfp
from tests.hub import example_loop
from tests.hub import tiny_models
from tf_dpfp import per_example

keras_hub = pytest.importorskip(
    "keras_hub", reason="KerasHub is not installed (the extra `hub`)"
)

# Trained in every run of the tests; the others are slow in their number.
ALWAYS = (
    "BertMaskedLM",
    "BertTextClassifier",
    "GPT2CausalLM",
    "GemmaCausalLM",
    "LlamaCausalLM",
)
# A router that gives a row for each token, and balances a batch.
_LOAD_BALANCING = "adds to the loss|whose first axis is not the batch"
REFUSED = {
    "Gemma3nCausalLM": "outside the recorded calls",
    "Gemma4CausalLM": "outside the recorded calls",
    "GptOssCausalLM": "[Nn]ot proved",
    "MixtralCausalLM": _LOAD_BALANCING,
    "Qwen3MoeCausalLM": _LOAD_BALANCING,
    "Qwen3_5CausalLM": "Can not squeeze|[Nn]ot proved",
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
    if name in ("BertTextClassifier", "BertMaskedLM", "GPT2CausalLM"):
        # Sentences of every length, even none.
        lengths = np.arange(tiny_models.LENGTH + 1)
        data = tiny_models.data(model, len(lengths), lengths)
        assert not np.any(data[0]["padding_mask"][0])
    else:
        data = tiny_models.data(model, example_loop.EXAMPLES)
    example_loop.check_against_loop(model, data)


@pytest.mark.slow
@pytest.mark.parametrize("name", REFUSED)
def test_others_are_refused_with_the_reason(name):
    model = tiny_models.build(name)
    data = tiny_models.data(model, example_loop.EXAMPLES)
    with pytest.raises(ValueError, match=REFUSED[name]):
        example_loop.clipped(tf_dpfp.make_private(model), data, 1.0)


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
