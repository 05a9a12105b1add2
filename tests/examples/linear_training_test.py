import math
import pathlib
import runpy

import keras
import numpy as np
import pytest

from examples.trainers import census
from examples.trainers import encoded_texts
from examples.trainers import linear_training
from examples.trainers import text_datasets

ROOT = pathlib.Path(__file__).resolve().parents[2]


def _people(count=300):
    rng = np.random.default_rng(0)

    def split(size):
        x = rng.integers(0, 2, (size, 6)).astype("float32")
        return x, x[:, 0].astype("int64")

    return split(count), split(50)


def _config(**changes):
    settings = dict(
        delta=1e-4, epsilon=8.0, batch_size=60, epochs=4, learning_rate=8.0
    )
    return linear_training.Config(**(settings | changes))


@pytest.mark.parametrize(
    "changes, message",
    [
        (dict(epsilon=-1.0), "epsilon"),
        (dict(delta=1.0), "delta"),
        (dict(batch_size=0), "--batch_size must be at least 1"),
        (dict(epochs=0), "--epochs must be at least 1"),
        (dict(l2_norm_clip=0.0), "--l2_norm_clip must be above 0"),
        (dict(momentum=1.0), "--momentum must be at least 0 and below 1"),
        (dict(places=0), "--places must be at least 1"),
        (dict(rare_words=True), "--rare_words are those of texts"),
        (dict(encoder="minilm"), "--encoder reads texts, and not the public"),
        (
            dict(encoder="mini", dataset="mails"),
            "--encoder is one of minilm, mpnet",
        ),
        (
            dict(encoder="mpnet", dataset="mails", places=-1),
            "--places must be at least 0",
        ),
        (dict(levels=0), "--levels must be at least 1"),
        (dict(sequence_length=0), "--sequence_length must be at least 1"),
        (dict(windows=0), "--windows must be at least 1"),
        (dict(dataset="iris"), "--dataset is one of adult, movie_reviews"),
    ],
)
def test_bad_settings_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        _config(**changes)


def _texts():
    rng = np.random.default_rng(0)

    def split(count):
        labels = rng.integers(0, 3, count)
        texts = [
            " ".join(
                [["red", "green", "blue"][label], *rng.choice(list("abcd"), 2)]
            )
            for label in labels
        ]
        return np.array(texts, dtype=object), labels

    return split(300), split(50)


@pytest.mark.parametrize("dataset", ["adult", "newsgroups"])
def test_it_learns_within_the_budget(monkeypatch, tmp_path, dataset):
    monkeypatch.setattr(census, "load", _people)
    loaders = text_datasets.LOADERS | {
        "newsgroups": _texts,
        "public_snippets": _texts,
    }
    monkeypatch.setattr(text_datasets, "LOADERS", loaders)
    config = _config(
        dataset=dataset,
        places=32,
        rare_words=dataset != "adult",
        output_dir=str(tmp_path),
    )
    result = linear_training.train(config)
    assert 0.99 * config.epsilon < result.epsilon <= config.epsilon
    assert result.accuracy > 0.9
    assert "for 20 steps" in result.statement
    written = (tmp_path / "privacy_statement.txt").read_text()
    assert written == result.statement
    assert dataset in linear_training.report(result, config)
    kept = keras.models.load_model(tmp_path / "model.keras")
    assert type(kept) is keras.Sequential and not kept.compiled
    _, (x, y) = linear_training.load(config)
    predicted = np.argmax(kept.predict(x, verbose=0), axis=1)
    assert np.mean(predicted == y) == result.accuracy


@pytest.mark.parametrize("places", [0, 512])
def test_vectors_of_an_encoder_serve_with_words_and_without(
    monkeypatch, places
):
    loaders = dict.fromkeys(("newsgroups", "public_snippets"), _texts)
    monkeypatch.setattr(text_datasets, "LOADERS", loaders)
    read = []

    def encode(texts, *settings):
        read.append((len(texts), *settings))
        colours = [["red", "green", "blue"].index(t.split()[0]) for t in texts]
        return np.eye(5)[colours][:, None, :].repeat(3, axis=1) + 1.0

    monkeypatch.setattr(encoded_texts, "encode", encode)
    config = _config(
        dataset="newsgroups",
        places=places,
        encoder="mpnet",
        levels=3,
        windows=2,
        held_out=100,
    )
    (x, _), (x_test, _) = linear_training.load(config)
    # All that there is to train with, whatever is held out.
    assert (300, "mpnet", 3, 48, 2) in read and len(x_test) == 100
    assert x.shape == (200, places + 15) and x.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(x, axis=1), 10**0.5, rtol=1e-5)


def test_infinity_trains_without_privacy(monkeypatch):
    monkeypatch.setattr(census, "load", _people)
    result = linear_training.train(_config(epsilon=math.inf, held_out=100))
    assert math.isinf(result.epsilon) and result.accuracy > 0.9
    assert "without privacy" in result.statement
    with pytest.raises(ValueError, match="--held_out must be at least 0"):
        linear_training.train(_config(held_out=300))


def test_every_setting_has_a_flag(monkeypatch):
    from absl import flags

    values = flags.FlagValues()
    path = ROOT / "examples" / "trainers" / "train_linear.py"
    program = runpy.run_path(str(path))
    for name in ("string", "enum", "bool", "float", "integer"):
        define = getattr(flags, f"DEFINE_{name}")
        monkeypatch.setattr(
            flags,
            f"DEFINE_{name}",
            lambda *args, _define=define: _define(*args, flag_values=values),
        )
    program["_define_flags"]()
    values.mark_as_parsed()
    default = linear_training.Config()
    for name in linear_training.Config.__dataclass_fields__:
        assert values[name].value == getattr(default, name)
