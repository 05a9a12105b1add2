"""MovieLens 100k: ratings of movies, and who gave them.

GroupLens publishes the ratings for research, not for redistribution
(https://grouplens.org/datasets/movielens/100k/): they are fetched from a
package that has them, checked and cached, and never part of this one.
"""

import csv
import dataclasses

import numpy as np

from examples.trainers import packages

_PACKAGE = "recbole==1.2.1"
_FOLDER = "recbole/dataset_example/ml-100k"
_SHA256 = {
    "ml-100k.inter": (
        "4edb74e2a81178c2ba9ff381495f754f996c4aea351b1272ca36b43da0935eff"
    ),
    "ml-100k.user": (
        "4f670007d9cfbeb9807e757209af1555b9bcc186bde25e767f67cb67c6dd5972"
    ),
}
MOVIES, PERSONS = 1682, 943
# Ages from which on people are in the next group.
_AGES = (18, 25, 35, 45, 50, 56)
AGES = len(_AGES) + 1


@dataclasses.dataclass(frozen=True)
class Ratings:
    """Ratings to train on and to test with.

    Attributes:
        x: Inputs: `movie`, `(ratings,)`; `person`, `(ratings, 3)`: group of
            age, sex and occupation.
        y: Ratings, 1 to 5.
        users: Whose ratings they are.
        x_test: Inputs to test with.
        y_test: Ratings to test with.
        occupations: Number of occupations.
    """

    x: dict[str, np.ndarray]
    y: np.ndarray
    users: np.ndarray
    x_test: dict[str, np.ndarray]
    y_test: np.ndarray
    occupations: int

    def held_out(self) -> "Ratings":
        """Returns the training ratings alone, a tenth of them to test with."""
        kept = np.random.default_rng(1).random(len(self.y)) >= 0.1
        return dataclasses.replace(
            self,
            x=_select(self.x, kept),
            y=self.y[kept],
            users=self.users[kept],
            x_test=_select(self.x, ~kept),
            y_test=self.y[~kept],
        )


def load() -> Ratings:
    """Loads the ratings, of each a coin of one in ten for testing."""
    rows = _rows("ml-100k.inter")
    user, movie, rating = (
        np.array([int(row[i]) for row in rows]) for i in range(3)
    )
    people = {int(row[0]): row for row in _rows("ml-100k.user")}
    names = sorted({row[3] for row in people.values()})
    described = {
        number: (
            np.searchsorted(_AGES, int(row[1]), side="right"),
            row[2] == "F",
            names.index(row[3]),
        )
        for number, row in people.items()
    }
    person = np.array([described[number] for number in user], np.int32)
    x = {"movie": (movie - 1).astype(np.int32), "person": person}
    y = rating.astype(np.float32)
    kept = np.random.default_rng(0).random(len(y)) >= 0.1
    return Ratings(
        x=_select(x, kept),
        y=y[kept],
        users=user[kept],
        x_test=_select(x, ~kept),
        y_test=y[~kept],
        occupations=len(names),
    )


def _rows(name: str) -> list[list[str]]:
    path = packages.cache() / "movielens" / name
    try:
        payload = packages.read_checked(path, _SHA256[name])
    except packages.SourceError:
        members = [f"{_FOLDER}/{name}"]
        (payload,) = packages.fetch_from_wheel(_PACKAGE, members).values()
        payload = packages.checked(payload, _SHA256[name], _PACKAGE)
        packages.write_atomically(path, payload)
    return list(csv.reader(payload.decode().splitlines(), delimiter="\t"))[1:]


def _select(x: dict[str, np.ndarray], which: np.ndarray) -> dict:
    return {name: values[which] for name, values in x.items()}
