"""What a graph writes, prints, asserts, captures or hands to Python."""

import pytest
import tensorflow as tf

from tests.independence import graphs
from tf_dpfp import independence
from tf_dpfp.independence import Category

X = graphs.X


@pytest.fixture(scope="module")
def variable():
    return tf.Variable(tf.zeros([3]))


def _with(effect):
    """An identity that does something beside."""

    def function(x):
        with tf.control_dependencies([effect(x)]):
            return tf.identity(x)

    return function


def _assert(condition):
    return tf.debugging.Assert(condition, [0])


LEAKS = {
    "mean": (lambda v, x: v.assign(tf.reduce_mean(x, 0)), Category.WRITE),
    "one example": (lambda v, x: v.assign(x[0]), Category.WRITE),
    "added": (lambda v, x: v.assign_add(x[0]), Category.WRITE),
    "subtracted": (lambda v, x: v.assign_sub(x[0]), Category.WRITE),
    "number of rows": (
        lambda v, x: v.assign_add(
            tf.fill([3], tf.cast(tf.shape(x)[0], x.dtype))
        ),
        Category.WRITE,
    ),
    "part of a variable": (
        lambda v, x: v.scatter_nd_update([[0]], x[0, :1]), Category.WRITE,
    ),
    "if data say so": (
        lambda v, x: tf.cond(
            tf.reduce_max(x) > 1,
            lambda: v.assign_add(tf.ones([3])),
            lambda: v.assign_add(tf.zeros([3])),
        ),
        Category.WRITE,
    ),
    "if the batch is large": (
        lambda v, x: tf.cond(
            tf.shape(x)[0] > 3,
            lambda: v.assign_add(tf.ones([3])),
            lambda: v.assign_add(tf.zeros([3])),
        ),
        Category.WRITE,
    ),
    "if there is a batch": (
        lambda v, x: tf.cond(
            tf.shape(x)[0] > 0,
            lambda: v.assign_add(tf.ones([3])),
            lambda: v.assign_add(tf.zeros([3])),
        ),
        Category.WRITE,
    ),
    "once for every example": (
        lambda v, x: tf.while_loop(
            lambda i: i < tf.shape(x)[0],
            lambda i: (i + 1 + 0 * tf.cast(v.assign_add(tf.ones([3]))[0],
                                           tf.int32),),
            (0,),
        )[0],
        Category.WRITE,
    ),
    "once for every example, and nothing else": (
        lambda v, x: tf.while_loop(
            lambda i: i < tf.shape(x)[0],
            lambda i: (v.assign_add(tf.ones([3])), i + 1)[1:],
            (0,),
        )[0],
        Category.WRITE,
    ),
    "in a function": (
        lambda v, x: tf.function(
            lambda t: v.assign(tf.reduce_mean(t, 0)))(x),
        Category.WRITE,
    ),
    "in a loop": (
        lambda v, x: tf.while_loop(
            lambda i, _: i < 2,
            lambda i, t: (i + 1, t + v.assign_add(tf.reduce_sum(t, 0))),
            (0, x),
        )[0],
        Category.WRITE,
    ),
    "printed": (lambda v, x: tf.print(x[0]), Category.OUTPUT),
    "as many ones as examples": (
        lambda v, x: tf.print(tf.ones([tf.shape(x)[0]])), Category.OUTPUT,
    ),
    "python": (
        lambda v, x: tf.py_function(lambda t: t, [x], tf.float32),
        Category.PYTHON,
    ),
    "numpy": (
        lambda v, x: tf.numpy_function(lambda t: t, [x], tf.float32),
        Category.PYTHON,
    ),
    "asserted": (
        lambda v, x: _assert(tf.reduce_max(x) < 9), Category.ABORT,
    ),
    "asserted of the batch size": (
        lambda v, x: _assert(tf.shape(x)[0] % 4 == 0), Category.ABORT,
    ),
    "checked": (
        lambda v, x: tf.debugging.check_numerics(x, "bad"), Category.ABORT,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(LEAKS))
def test_what_leaves_is_found(name, variable):
    effect, category = LEAKS[name]
    proof, _ = graphs.prove(_with(lambda x: effect(variable, x)), X)
    assert category in {f.category for f in proof.findings}
    # Allowed by a caller, nothing else is left.
    if category is Category.ABORT:
        assert not proof.refusals([Category.ABORT])


HARMLESS = {
    "steps counted": lambda v, x: v.assign_add(tf.ones([3])),
    "function of itself": lambda v, x: v.assign(v * 0.5),
    "a constant printed": lambda v, x: tf.print("step"),
    "asserted of a constant": lambda v, x: _assert(tf.rank(x) == 2),
    "asserted of a size": lambda v, x: _assert(tf.shape(x)[1] == 3),
    "if a variable says so": lambda v, x: tf.cond(
        v[0] > 1,
        lambda: v.assign_add(tf.ones([3])),
        lambda: v.assign_add(tf.zeros([3])),
    ),
    "random": lambda v, x: v.assign(tf.random.normal([3])),
}


@pytest.mark.parametrize("name", sorted(HARMLESS))
def test_what_is_free_of_data_may_leave(name, variable):
    graphs.proved(_with(lambda x: HARMLESS[name](variable, x)), X)


def test_no_variable_takes_as_many_numbers_as_there_are_examples():
    variable = tf.Variable(tf.zeros([0]), shape=[None])
    ones = {
        "batch": lambda x: variable.assign(tf.ones([tf.shape(x)[0]])),
        "known": lambda x: variable.assign(tf.ones([4])),
    }
    graphs.proved(_with(ones["known"]), X)
    finding = graphs.refused(_with(ones["batch"]), X)
    assert finding.category is Category.WRITE


def test_only_given_operations_are_judged(variable):
    proofs = []

    def traced(x):
        graph = tf.compat.v1.get_default_graph()
        y = x * 2
        count = len(graph.get_operations())
        variable.assign(tf.reduce_mean(x, 0))
        released = [independence.Released(y, "y")]
        operations = graph.get_operations()
        for part in (operations[:count], operations[count:], None):
            proofs.append(independence.prove(graph, [x], released, part))
        return y

    tf.function(traced, autograph=False).get_concrete_function(X)
    assert [bool(p.findings) for p in proofs] == [False, True, True]


def test_variable_is_named(variable):
    finding = graphs.refused(
        _with(lambda x: variable.assign(x[0])),
        X,
        variables={"layer/moving_mean": variable},
    )
    assert "writes to 'layer/moving_mean'" in finding.reason


def test_what_a_metric_holds_is_not_read(variable):
    def function(x):
        return x + variable

    graphs.proved(function, X)
    finding = graphs.refused(function, X, data_handles=[variable.handle])
    assert finding.operation == "ReadVariableOp"
    assert "reads a metric" in finding.reason


def test_captures_are_listed(variable):
    table = tf.random.normal([40, 3])
    proof, _ = graphs.prove(lambda x: x + variable + table[0], X)
    assert {(c.is_variable, tuple(c.shape)) for c in proof.captures} == {
        (True, ()),
        (False, (40, 3)),
    }


def test_outer_graph_is_not_the_batch():
    """A loop's body may read what the step was given, but not its data."""
    proofs = {}

    def traced(x):
        number = tf.sqrt(2.0) * tf.cast(tf.rank(x), x.dtype)

        def body(i, piece):
            graph = tf.compat.v1.get_default_graph()
            for name, y in (
                ("number", piece * number),
                ("data", piece + tf.reduce_max(x)),
            ):
                released = [independence.Released(y, name)]
                proofs[name] = independence.prove(graph, [piece], released)
            return i + 1, piece

        return tf.while_loop(lambda i, _: i < 2, body, (0, x[:2]))[1]

    tf.function(traced, autograph=False).get_concrete_function(X)
    assert not proofs["number"].findings
    assert proofs["data"].findings


def test_draws_tell_where_their_seed_is_from():
    seed = tf.Variable([1, 2])

    def draw(x):
        noise = tf.random.stateless_uniform(tf.shape(x), seed)
        mask = tf.random.stateless_uniform(tf.shape(x), [3, 4])
        # One number for all: no draw by row.
        return x * noise * mask * tf.random.stateless_uniform([], [5, 6])

    proof, _ = graphs.prove(draw, X)
    assert sorted(len(d.seeds) for d in proof.draws) == [0, 1]
    assert not proof.findings
