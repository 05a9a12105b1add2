"""Text data sets for the examples, as NumPy arrays.

What is fetched lies inside packages and is compared with a known sha256 before
it is read; it is kept in this project's cache, outside of any repository.
"""

from __future__ import annotations

import pathlib

import numpy as np
from absl import logging

from examples import datasets
from examples import packages

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
    try:
        reviews = _decode_reviews(_rated_file(_REVIEWS_MEMBER, _REVIEWS_SHA256))
    except packages.SourceError as error:
        raise datasets.DatasetUnavailableError(
            f"The movie reviews could not be loaded from {_reviews_cache()} "
            f"or the package {_REVIEWS_PACKAGE}: {error}"
        ) from error
    return _split(reviews, _TRAINING_REVIEWS)


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
    try:
        parts = [
            _decode_reviews(_rated_file(member, sha256))
            for member, sha256 in _SNIPPETS_SHA256.items()
        ]
    except packages.SourceError as error:
        raise datasets.DatasetUnavailableError(
            f"The public snippets could not be loaded from {_reviews_cache()} "
            f"or the package {_REVIEWS_PACKAGE}: {error}"
        ) from error
    texts, labels = map(np.concatenate, zip(*parts, strict=True))
    return _split((texts, labels), _TRAINING_SNIPPETS)


def _reviews_cache() -> pathlib.Path:
    return packages.cache() / "movie-reviews"


def _rated_file(member: str, sha256: str) -> bytes:
    """One file of the archive, from the cache or the package."""
    cached = _reviews_cache() / _cached_name(member)
    try:
        return packages.read_checked(cached, sha256)
    except packages.SourceError as error:
        logging.debug("%s: not from the cache: %s", member, error)
    archive = packages.fetch_from_source(
        _REVIEWS_PACKAGE, _REVIEWS_PACKAGE_SHA256, _REVIEWS_ARCHIVE
    )
    payload = packages.checked(
        packages.read_from_tar(archive, member),
        sha256,
        f"{member} of the package",
    )
    packages.write_atomically(cached, payload)
    return payload


def _cached_name(member: str) -> str:
    if member == _REVIEWS_MEMBER:
        return "movie_reviews.txt"
    return pathlib.PurePosixPath(member).name


def _decode_reviews(payload: bytes) -> Texts:
    """Decodes lines of number, mean rating and sentence, parted by tabs."""
    rows = [line.split("\t") for line in payload.decode("utf-8").splitlines()]
    ratings = np.array([float(rating) for _, rating, _ in rows])
    texts = np.array([text for *_, text in rows], dtype=object)
    clear = np.abs(ratings) >= _LEAST_SENTIMENT
    return texts[clear], (ratings[clear] > 0).astype(np.int64)


def _split(examples: Texts, training: int) -> TextDataset:
    texts, labels = examples
    order = np.random.default_rng(_SPLIT_SEED).permutation(len(texts))
    train, test = np.split(order, [training])
    return (texts[train], labels[train]), (texts[test], labels[test])


LOADERS = {
    "movie_reviews": load_movie_reviews,
    "public_snippets": load_public_snippets,
}
