"""Loads presets where tf_dpfp can't be imported, and says what they compute.

A program: it takes the path to write to, beside which the presets lie. Every
preset is tried on the strings of `texts.json`.
"""

import json
import pathlib
import sys

PROMPTS = ["good film", "bad"]
# The folder of this name holds a language model, the others classifiers.
LANGUAGE_MODEL = "language_model"


def generated(task) -> list[str]:
    """The prompts and what a language model adds to them, up to its length."""
    return task.generate(PROMPTS, stop_token_ids=None)


def _found(preset: pathlib.Path, texts: list[str]) -> dict:
    import keras_hub  # Not before tf_dpfp is out of reach.

    is_language = preset.name == LANGUAGE_MODEL
    kind = "CausalLM" if is_language else "TextClassifier"
    task = getattr(keras_hub.models, kind).from_preset(str(preset))
    found = {"class": type(task).__name__}
    if is_language:
        # Outside of graphs: to trace one for one call takes longer.
        task.compile(sampler="greedy", run_eagerly=True)
        found["texts"] = generated(task)
        inputs, _, _ = task.preprocessor(texts)
    else:
        inputs = task.preprocessor(texts)
    return found | {"outputs": task(inputs).numpy().tolist()}


def main(path: pathlib.Path) -> None:
    """Writes what was found, by the name of the preset's folder."""
    # Whoever imports it from here on gets an `ImportError`.
    sys.modules["tf_dpfp"] = None
    texts = json.loads((path.parent / "texts.json").read_text())
    presets = [p for p in path.parent.iterdir() if p.is_dir()]
    found = {preset.name: _found(preset, texts) for preset in presets}
    path.write_text(json.dumps(found))


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
