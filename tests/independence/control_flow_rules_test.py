"""What one example decides, in a loop over the examples."""

import pytest
import tensorflow as tf

from tests.independence import graphs

X = graphs.X


@pytest.fixture(scope="module")
def variable():
    return tf.Variable(0.0)


def _one_more(variable, found):
    with tf.control_dependencies([variable.assign_add(1.0)]):
        return tf.identity(found)


def _branches(v, r):
    return tf.cond(r[0] > 0, lambda: _one_more(v, r), lambda: r)


def _rounds(v, r):
    return tf.while_loop(
        lambda s: tf.reduce_max(s) > 1.0, lambda s: (_one_more(v, s / 2),), (r,)
    )[0]


@pytest.mark.parametrize("decide", [_branches, _rounds])
def test_no_example_decides_how_often_a_state_moves_on(decide, variable):
    """Not even the state of a generator, which may move on for every one."""
    kept = [variable.handle]

    def each(one):
        return lambda x: tf.map_fn(lambda r: one(variable, r), x)

    finding = graphs.refused(each(decide), X, kept_handles=kept)
    assert finding.operation in ("If", "While"), str(finding)
    graphs.proved(each(_one_more), X, kept_handles=kept)


REFUSED = {
    "the whole batch": lambda x, r: x,
    "the number of examples": lambda x, r: tf.fill(
        [3], tf.cast(tf.shape(x)[0], x.dtype)
    ),
    "a number for each example": lambda x, r: tf.ones_like(x[:, 0]),
}


@pytest.mark.parametrize("name", REFUSED)
def test_no_example_meets_the_whole_batch_in_a_branch(name):
    def function(x):
        def one(r):
            found = tf.cond(
                r[0] > 0,
                lambda: REFUSED[name](x, r),
                lambda: 2.0 * REFUSED[name](x, r),
            )
            return r * tf.reduce_sum(found)

        return tf.map_fn(one, x)

    finding = graphs.refused(function, X)
    assert finding.operation.endswith("If"), str(finding)
