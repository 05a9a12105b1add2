"""Random graphs: what is proved must hold when it is measured."""

import random

import hypothesis
import pytest
import tensorflow as tf
from hypothesis import strategies as st

from benchmarks import random_graphs
from benchmarks import random_operations
from tf_dpfp.independence import Dependence


@hypothesis.settings(max_examples=60)
@hypothesis.given(seed=st.integers(0, 2**31 - 1))
def test_no_proved_graph_mixes_examples(seed):
    drawn = random_graphs.draw_graph(seed)
    hypothesis.assume(drawn is not None)
    if drawn.measured is Dependence.UNPROVED:
        return
    for kind in random_graphs.kinds(drawn, seed):
        found = random_graphs.measure(
            drawn.function, drawn.measured, seed, kind
        )
        assert found is None, found


def test_both_verdicts_are_drawn():
    verdicts = [
        drawn.dependence
        for drawn in map(random_graphs.draw_graph, range(40))
        if drawn is not None
    ]
    assert verdicts.count(Dependence.PER_EXAMPLE) >= 8
    assert verdicts.count(Dependence.UNPROVED) >= 8


def test_every_operation_with_a_rule_is_drawn():
    """Of random calls, some are such that TensorFlow takes them."""
    missing = set(random_operations.names())

    def traced(*batch):
        lists = []
        for seed in range(200):
            for name in sorted(missing):
                try:
                    found = random_operations.call(
                        random.Random(seed), batch, lists, name
                    )
                except random_graphs.FAILURES:
                    continue
                lists += [t for t in found if t.dtype == tf.variant]
                missing.remove(name)
        return batch[0]

    tf.function(traced, autograph=False).get_concrete_function(
        *random_graphs.SPECS
    )
    assert not missing


@pytest.mark.parametrize(
    "function",
    [
        lambda x, *_: tf.cumsum(x),
        lambda x, *_: x - tf.reduce_mean(x, 0),
        lambda x, *_: tf.reverse(x, [0]),
        lambda x, *_: x + tf.cast(tf.range(tf.shape(x)[0]), x.dtype)[:, None],
        lambda x, *_: x / tf.cast(tf.shape(x)[0], x.dtype),
        lambda x, *_: tf.concat([x, x], 0),
        lambda x, y, ids, *_: tf.reshape(
            tf.math.unsorted_segment_sum(
                x, ids + 4 * tf.range(tf.shape(x)[0])[:, None], tf.size(x)
            ),
            [-1, 4],
        ),
    ],
)
def test_influence_is_measured(function):
    """What a wrong rule would let pass is seen."""
    found = [
        random_graphs.measure(
            tf.function(function), Dependence.PER_EXAMPLE, 0, kind
        )
        for kind in ("plain", "ids", "wild")
    ]
    assert any(found)


def test_dependence_on_the_batch_is_measured():
    def size(x, *_):
        return tf.shape(x)[0]

    assert random_graphs.measure(tf.function(size), Dependence.FREE, 0, "plain")
