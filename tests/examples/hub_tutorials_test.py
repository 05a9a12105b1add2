"""The tutorials on models of KerasHub, run with little data."""

import runpy

import keras
import numpy as np
import pytest

import tf_dpfp
from examples import tutorial_files
from examples.trainers import minilm
from examples.trainers import text_datasets

keras_hub = pytest.importorskip(
    "keras_hub", reason="KerasHub is not installed (the extra `hub`)"
)

WORDS = ["good", "bad", "film", "plot", "fine", "dull", "très"]
VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]


def _texts():
    rng = np.random.default_rng(0)

    def split(count):
        texts = [
            " ".join(rng.choice(WORDS, rng.integers(1, 20)))
            for _ in range(count)
        ]
        labels = np.array([int("good" in text) for text in texts])
        return np.array(texts, dtype=object), labels

    return split(96), split(16)


@pytest.fixture
def run(monkeypatch, tmp_path):
    monkeypatch.setenv("TF_DPFP_TUTORIAL_EPOCHS", "1")
    monkeypatch.setattr(text_datasets, "load_movie_reviews", _texts)
    monkeypatch.setattr(text_datasets, "load", lambda _: _texts())

    folder = tutorial_files.TUTORIALS
    return lambda name: runpy.run_path(str(folder / f"{name}.py"))


@pytest.mark.slow
def test_private_language_model(run):
    found = run("private_language_model")
    model = found["model"]
    assert found["epsilon"] * 0.9 < tf_dpfp.compute_epsilon(
        model, found["delta"]
    )
    assert tf_dpfp.compute_epsilon(model, found["delta"]) <= found["epsilon"]
    assert sum(e.steps for e in tf_dpfp.ledger(model)) == found["steps"]
    # Each byte of any text has a token.
    tokenizer = found["preprocessor"].tokenizer
    text = bytes(range(1, 128)).decode() + "très naïve — 雪"
    assert tokenizer.detokenize(tokenizer(text)) == text
    # Of a short sentence, the words and the end of it are asked for.
    x, y, mask = found["arrays"](["ab"])
    np.testing.assert_array_equal(x["token_ids"][0, 1:3], y[0, :2])
    assert y[0, 2] == tokenizer.end_token_id and np.sum(mask) == 3
    perplexities = found["perplexities"]
    # Neither knows nothing, whatever the other is.
    assert perplexities["private"] < 0.9 * perplexities["untrained"]
    assert perplexities["without privacy"] < 0.9 * perplexities["untrained"]
    x, y, mask = found["test"]
    log_probabilities = np.array(keras.ops.log_softmax(model(x), axis=-1))
    of_tokens = np.take_along_axis(log_probabilities, y[..., None], axis=-1)
    expected = np.exp(-np.sum(of_tokens[..., 0] * mask) / np.sum(mask))
    np.testing.assert_allclose(perplexities["private"], expected, rtol=1e-4)
    for text in found["written"]:
        assert text.startswith("the film") and text != "the film"


def test_private_fine_tuning(run, monkeypatch, tmp_path):
    folder = tmp_path / "encoder"
    keras_hub.models.BertBackbone(
        vocabulary_size=len(VOCABULARY),
        num_layers=1,
        num_heads=2,
        hidden_dim=16,
        intermediate_dim=12,
        max_sequence_length=32,
    ).save_to_preset(str(folder))
    keras_hub.models.BertTokenizer(vocabulary=VOCABULARY).save_to_preset(
        str(folder)
    )
    monkeypatch.setattr(minilm, "folder", lambda: folder)
    path = tmp_path / "model.keras"
    monkeypatch.setenv("TF_DPFP_TUTORIAL_MODEL", str(path))
    found = run("private_fine_tuning")
    classifier = found["classifier"]
    spent = tf_dpfp.compute_epsilon(classifier, found["delta"])
    assert 0.9 * found["epsilon"] < spent <= found["epsilon"]
    # Kernel and bias of the head.
    assert [tuple(v.shape) for v in classifier.trainable_weights] == [
        (16, 2),
        (2,),
    ]
    # What is saved makes of tokens what was trained on vectors.
    test_mails, _ = _texts()[1]
    np.testing.assert_allclose(
        found["loaded"].predict(found["tokens"](test_mails), verbose=0),
        classifier.predict(found["test"], verbose=0),
        atol=1e-5,
    )
    statement = (tmp_path / "model.keras.privacy.txt").read_text()
    assert "8 steps" in statement
