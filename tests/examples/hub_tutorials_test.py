"""The tutorials on models of KerasHub, run with little data."""

import io
import tarfile

import keras
import numpy as np
import pytest

import tf_dpfp

keras_hub = pytest.importorskip(
    "keras_hub", reason="KerasHub is not installed (the extra `hub`)"
)

WORDS = ["good", "bad", "film", "plot", "fine", "dull", "très"]
VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]


def _texts(count):
    rng = np.random.default_rng(0)
    return [
        " ".join(rng.choice(WORDS, rng.integers(1, 20))) for _ in range(count)
    ]


@pytest.mark.slow
def test_private_language_model(run):
    found = run(
        "private_language_model",
        load_sentences=lambda: _texts(112),
        training=96,
    )
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


def _archive(path):
    """Mails as the package has them."""
    with tarfile.open(path, "w:gz") as archive:
        for n, text in enumerate(_texts(112)):
            kind = "spam-1" if "good" in text else "easy-ham-2"
            mail = f"Subject: no {n}\nReceived: spam\n\n{text}".encode()
            member = tarfile.TarInfo(f"package/data/{kind}/{n:03}.txt")
            member.size = len(mail)
            archive.addfile(member, io.BytesIO(mail))
    return path


def _encoder(folder, num_layers=1):
    keras_hub.models.BertBackbone(
        vocabulary_size=len(VOCABULARY),
        num_layers=num_layers,
        num_heads=2,
        hidden_dim=16,
        intermediate_dim=12,
        max_sequence_length=32,
    ).save_to_preset(str(folder))
    tokenizer = keras_hub.models.BertTokenizer(vocabulary=VOCABULARY)
    tokenizer.save_to_preset(str(folder))
    return (
        keras_hub.models.BertBackbone.from_preset(str(folder), dropout=0.0),
        keras_hub.models.BertTextClassifierPreprocessor(
            keras_hub.models.BertTokenizer.from_preset(str(folder)),
            sequence_length=32,
        ),
    )


def test_private_fine_tuning(run, monkeypatch, tmp_path):
    path = tmp_path / "model.keras"
    monkeypatch.setenv("TF_DPFP_TUTORIAL_MODEL", str(path))
    found = run(
        "private_fine_tuning",
        fetch_mails=lambda: _archive(tmp_path / "mails.tgz"),
        load_encoder=lambda: _encoder(tmp_path / "encoder"),
        training=96,
    )
    # Subject and text, and nothing of the rest of the header.
    texts, is_spam = found["load_mails"]()
    assert len(texts) == 112 and not any("Received" in t for t in texts)
    assert [int("good" in text) for text in texts] == list(is_spam)
    assert found["text_of"](
        b"Subject: a\nContent-Type: text/html\n\n<script>b</script>c &amp;<p>d"
    ) == ("a c & d")
    classifier = found["classifier"]
    spent = tf_dpfp.compute_epsilon(classifier, found["delta"])
    assert 0.9 * found["epsilon"] < spent <= found["epsilon"]
    # Kernel and bias of the head.
    assert [tuple(v.shape) for v in classifier.trainable_weights] == [
        (16, 2),
        (2,),
    ]
    # What is saved makes of tokens what was trained on vectors.
    np.testing.assert_allclose(
        found["loaded"].predict(
            found["tokens"](found["test_mails"]), verbose=0
        ),
        classifier.predict(found["test"], verbose=0),
        atol=1e-5,
    )
    statement = (tmp_path / "model.keras.privacy.txt").read_text()
    assert "8 steps" in statement


@pytest.mark.slow
def test_private_lora(run, tmp_path):
    encoder = tmp_path / "encoder"
    first = _encoder(encoder, num_layers=6)

    def load():
        return (
            keras_hub.models.BertBackbone.from_preset(str(encoder)),
            first[1],
        )

    def sentences():
        texts = np.array(_texts(120), dtype=object)
        return texts, np.array([int("good" in text) for text in texts])

    found = run(
        "private_lora",
        load_sentences=sentences,
        load_encoder=load,
        budgets=[8.0],
        batch_size=20,
    )
    assert (tmp_path / "private_lora.png").exists()
    model = found["model"]
    # B alone, of the top block alone, with biases and the head.
    trained = [v.path for v in model.trainable_variables]
    assert sum("lora_kernel_b" in path for path in trained) == 4
    assert not any("lora_kernel_a" in path for path in trained)
    assert all("transformer_layer_5" in p or "head" in p for p in trained)
    # The head's training is in the same ledger and the same budget.
    assert [e.steps for e in tf_dpfp.ledger(model)] == [16, 2]
    spent = tf_dpfp.compute_epsilon(model, found["delta"])
    assert 0.99 * 8.0 < spent <= 8.0
    with_a = found["make_upper"](rank=8)
    assert sum("lora" in v.path for v in with_a.trainable_variables) == 8
