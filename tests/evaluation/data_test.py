"""What a private evaluation reads of its data, and what it refuses."""

import numpy as np
import pytest
import tensorflow as tf

from tf_dpfp import sampling
from tf_dpfp.evaluation import data as data_lib
from tf_dpfp.evaluation.settings import Settings

X = np.arange(12, dtype=np.float32).reshape(6, 2)
Y = np.arange(6)
GROUPS = np.array(["b", "a", "c", "a", "b", "d"])
USERS = np.array([7, 3, 7, 7, 9, 3])


def _read(data=(X, Y), groups=None, users=None, values=()):
    settings = Settings(1.0, loss_bound=1.0, group_values=values)
    return data_lib.read(data, groups, users, settings)


def test_every_example_is_in_its_group_and_of_its_person():
    found = _read(groups=GROUPS, users=USERS, values=("a", "b"))
    # Those of no group that was named are in none.
    assert found.groups.tolist() == [1, 0, -1, 0, 1, -1]
    assert found.users.tolist() == [0, 1, 0, 0, 2, 1]
    x, y = found.source.take(np.arange(6))
    np.testing.assert_array_equal(x, X)
    np.testing.assert_array_equal(y, Y)


def test_without_groups_and_persons_there_are_none():
    found = _read()
    assert found.users is None and set(found.groups) == {-1}


@pytest.mark.parametrize(
    ("given", "match"),
    [
        (
            {"data": sampling.poisson_batches(X, Y, expected_batch_size=2)},
            "drawn at random",
        ),
        ({"data": (X,)}, "needs labels"),
        ({"groups": GROUPS}, "needs `group_values`"),
        ({"values": ("a",)}, "needs `group_values`"),
        ({"groups": GROUPS[:5], "values": ("a",)}, "`groups` must have one"),
        ({"users": USERS[:, None]}, "`users` must have one"),
        ({"users": USERS, "data": "a data set"}, "name the examples of arrays"),
        (
            {"groups": GROUPS, "values": ("a",), "data": "a data set"},
            "name the examples of arrays",
        ),
    ],
)
def test_what_can_not_be_evaluated_is_refused(given, match):
    if given.get("data") == "a data set":
        slices = tf.data.Dataset.from_tensor_slices((X, Y))
        given = {**given, "data": slices}
    with pytest.raises(ValueError, match=match):
        _read(**given)
