import json
import math

import keras
import numpy as np
import pytest
from keras import layers

import tf_dpfp
from tf_dpfp import clipping
from tf_dpfp import step as step_lib


def _model():
    ids = keras.Input((5,), dtype="int32")
    h = layers.Embedding(11, 8)(ids)
    h = layers.MultiHeadAttention(2, 4)(h, h)
    h = layers.LayerNormalization()(h)
    return keras.Model(ids, layers.Dense(3)(h))


def _groups(grouping, l2_norm_clip=2.0):
    owned = step_lib.owned_variables(_model())
    return owned, grouping.groups(owned, l2_norm_clip)


def test_flat_is_one_group_at_the_bound():
    owned, groups = _groups(tf_dpfp.Flat())
    assert len(groups) == 1
    assert groups[0].members == tuple(range(len(owned)))
    assert groups[0].clip_norm == 2.0


def test_per_layer_groups_kernel_and_bias_of_one_layer():
    owned, groups = _groups(tf_dpfp.PerLayer())
    # Embedding, query, key, value, output, norm, dense.
    assert len(groups) == 7
    for group in groups:
        parents = {
            owned[i].variable.path.rsplit("/", 1)[0] for i in group.members
        }
        assert len(parents) == 1
    members = sorted(i for group in groups for i in group.members)
    assert members == list(range(len(owned)))


@pytest.mark.parametrize("grouping", [tf_dpfp.Flat(), tf_dpfp.PerLayer()])
@pytest.mark.parametrize("bound", [1e-3, 1.0, 37.0])
def test_thresholds_add_up_to_the_bound_in_squares(grouping, bound):
    _, groups = _groups(grouping, bound)
    total = math.sqrt(math.fsum(g.clip_norm**2 for g in groups))
    assert total == pytest.approx(bound, rel=1e-12)
    assert len({g.clip_norm for g in groups}) == 1


def test_layers_of_the_same_name_are_groups_of_their_own():
    class Block(layers.Layer):
        def __init__(self):
            super().__init__()
            self.first = layers.Dense(3, name="same")
            self.second = layers.Dense(3, name="same")

        def call(self, x):
            return self.second(self.first(x))

    model = keras.Sequential([keras.Input((3,)), Block()])
    groups = tf_dpfp.PerLayer().groups(step_lib.owned_variables(model), 1.0)
    assert sorted(g.members for g in groups) == [(0, 1), (2, 3)]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("flat", tf_dpfp.Flat()),
        ("per_layer", tf_dpfp.PerLayer()),
        (tf_dpfp.PerLayer(), tf_dpfp.PerLayer()),
        (
            keras.saving.serialize_keras_object(tf_dpfp.PerLayer()),
            tf_dpfp.PerLayer(),
        ),
    ],
    ids=str,
)
def test_get(given, expected):
    assert clipping.get(given) == expected


@pytest.mark.parametrize("given", ["layer", None, 1.0, tf_dpfp.Flat, np.pi])
def test_get_refuses_anything_else(given):
    with pytest.raises(ValueError, match="`clipping` must be one of"):
        clipping.get(given)


_SPLITS = [
    tf_dpfp.PerLayer(thresholds="by_dimension"),
    tf_dpfp.clipping.PerBlock(pattern="multi_head_attention[^/]*"),
    tf_dpfp.clipping.PerBlock(
        pattern="multi_head_attention[^/]*", thresholds="by_dimension"
    ),
]


@pytest.mark.parametrize("grouping", _SPLITS, ids=str)
def test_every_split_keeps_the_bound(grouping):
    owned, groups = _groups(grouping)
    total = math.sqrt(math.fsum(g.clip_norm**2 for g in groups))
    assert total == pytest.approx(2.0, rel=1e-12)
    members = sorted(i for group in groups for i in group.members)
    assert members == list(range(len(owned)))


def test_thresholds_by_dimension():
    _, groups = _groups(tf_dpfp.PerLayer(thresholds="by_dimension"))
    ratios = [g.clip_norm**2 / g.dimension for g in groups]
    np.testing.assert_allclose(ratios, ratios[0])
    owned, _ = _groups(tf_dpfp.Flat())
    assert sum(g.dimension for g in groups) == sum(
        int(np.prod(o.variable.shape)) for o in owned
    )


def test_a_block_is_one_group():
    _, groups = _groups(_SPLITS[1])
    assert len(groups) == 2
    block = next(g for g in groups if g.name != "rest")
    assert len(block.members) == 8


def test_given_thresholds():
    model = keras.Sequential(
        [
            keras.Input((3,)),
            layers.Dense(2, name="first"),
            layers.Dense(2, name="second"),
        ]
    )
    owned = step_lib.owned_variables(model)
    names = [g.name for g in tf_dpfp.PerLayer().groups(owned, 1.0)]
    chosen = dict(zip(names, (3.0, 4.0), strict=True))
    grouping = tf_dpfp.PerLayer(thresholds=chosen)
    assert [g.clip_norm for g in grouping.groups(owned, 5.0)] == [3.0, 4.0]
    config = keras.saving.serialize_keras_object(grouping)
    assert clipping.get(config) == grouping
    with pytest.raises(ValueError, match="add up to that of 5"):
        grouping.groups(owned, 1.0)
    with pytest.raises(ValueError, match="Missing"):
        tf_dpfp.PerLayer(thresholds={names[0]: 1.0}).groups(owned, 1.0)
    with pytest.raises(ValueError, match="finite number of at least"):
        bad = dict(zip(names, (-3.0, 4.0), strict=True))
        tf_dpfp.PerLayer(thresholds=bad).groups(owned, 5.0)


def test_wrong_arguments_are_refused():
    with pytest.raises(ValueError, match="`thresholds` must be"):
        tf_dpfp.PerLayer(thresholds="fair")
    with pytest.raises(ValueError, match="`noise_allocation` must be one of"):
        tf_dpfp.Flat(noise_allocation="none")
    with pytest.raises(ValueError, match="regular expression"):
        tf_dpfp.clipping.PerBlock(pattern="(")
    with pytest.raises(ValueError, match="in the path of no"):
        _groups(tf_dpfp.clipping.PerBlock(pattern="nowhere"))


@keras.saving.register_keras_serializable(package="groupings_test")
def attention_or_not(layer):
    return "attention" if "attention" in layer.path else "others"


def test_groups_by_a_function():
    owned, groups = _groups(
        tf_dpfp.clipping.ByFunction(function=attention_or_not)
    )
    assert [g.name for g in groups] == ["others", "attention"]
    for group in groups:
        for member in group.members:
            layer = owned[member].layer
            assert attention_or_not(layer) == group.name
    members = sorted(i for group in groups for i in group.members)
    assert members == list(range(len(owned)))
    total = math.sqrt(math.fsum(g.clip_norm**2 for g in groups))
    assert total == pytest.approx(2.0, rel=1e-12)
    by_name = tf_dpfp.clipping.ByFunction(
        function=attention_or_not,
        thresholds={"attention": 1.6, "others": 1.2},
    )
    found = {g.name: g.clip_norm for g in by_name.groups(owned, 2.0)}
    assert found == {"attention": 1.6, "others": 1.2}


@pytest.mark.parametrize("function", [None, "attention", 3])
def test_a_function_that_is_none_is_refused(function):
    with pytest.raises(TypeError, match="takes a layer and returns") as error:
        tf_dpfp.clipping.ByFunction(function=function)
    assert repr(function) in str(error.value)


@pytest.mark.parametrize("answer", [None, 1, b"name", ("a", "b")])
def test_a_function_that_returns_no_name_is_refused(answer):
    grouping = tf_dpfp.clipping.ByFunction(function=lambda layer: answer)
    with pytest.raises(TypeError, match="returned") as error:
        _groups(grouping)
    assert repr(answer) in str(error.value)


def test_the_errors_of_a_function_are_not_swallowed():
    def by_color(layer):
        return layer.color

    with pytest.raises(AttributeError, match="color"):
        _groups(tf_dpfp.clipping.ByFunction(function=by_color))


_THRESHOLDS = [
    "by_dimension",
    tf_dpfp.clipping.Adaptive(
        initial={"first": 1.0, "class_name": 2.0}, rescale=False
    ),
    tf_dpfp.clipping.Adaptive(shared=True, rescale=False, initial=0.25),
    tf_dpfp.clipping.Automatic(split={"first": 3.0, "second": 4.0}),
]


@pytest.mark.parametrize("thresholds", _THRESHOLDS, ids=str)
@pytest.mark.parametrize(
    "make",
    [
        tf_dpfp.Flat,
        tf_dpfp.PerLayer,
        lambda **kwargs: tf_dpfp.clipping.PerBlock(
            pattern="block_[0-9]", **kwargs
        ),
        lambda **kwargs: tf_dpfp.clipping.ByFunction(
            function=attention_or_not, **kwargs
        ),
    ],
    ids=["Flat", "PerLayer", "PerBlock", "ByFunction"],
)
def test_groupings_serialize(make, thresholds):
    grouping = make(thresholds=thresholds, noise_allocation="equal_budget")
    config = json.loads(
        json.dumps(keras.saving.serialize_keras_object(grouping))
    )
    assert clipping.get(config) == grouping
    optimizer = tf_dpfp.DPAdam(0.1, noise_multiplier=1.0, clipping=grouping)
    again = tf_dpfp.DPAdam.from_config(optimizer.get_config())
    assert again.clipping == grouping
    config = json.loads(
        json.dumps(keras.saving.serialize_keras_object(optimizer))
    )
    again = keras.saving.deserialize_keras_object(config)
    assert again.clipping == grouping
    assert again.get_config() == optimizer.get_config()


def test_names_of_thresholds():
    assert tf_dpfp.PerLayer(thresholds="adaptive") == tf_dpfp.PerLayer(
        thresholds=tf_dpfp.clipping.Adaptive()
    )
    assert tf_dpfp.PerLayer(thresholds="automatic") == tf_dpfp.PerLayer(
        thresholds=tf_dpfp.clipping.Automatic()
    )
    for wrong in ("adaptiv", 1.0, None, tf_dpfp.clipping.Adaptive):
        with pytest.raises(ValueError, match="`thresholds` must be") as error:
            tf_dpfp.PerLayer(thresholds=wrong)
        assert repr(wrong) in str(error.value)


@pytest.mark.parametrize("rescale", [True, False])
def test_adaptive_groups_begin_at_the_initial_estimates(rescale):
    adaptive = tf_dpfp.clipping.Adaptive(
        initial="by_dimension", rescale=rescale
    )
    _, groups = _groups(tf_dpfp.PerLayer(thresholds=adaptive))
    _, fixed = _groups(tf_dpfp.PerLayer(thresholds="by_dimension"))
    for mine, other in zip(groups, fixed, strict=True):
        assert float(mine.clip_norm) == pytest.approx(other.clip_norm)
        assert float(mine.estimate) == pytest.approx(other.clip_norm)
        assert other.estimate is None and mine.stability == 0.0
    numbers = tf_dpfp.clipping.Adaptive(initial=5.0, rescale=rescale)
    _, groups = _groups(tf_dpfp.PerLayer(thresholds=numbers))
    expected = 2.0 / math.sqrt(7) if rescale else 5.0
    for group in groups:
        assert float(group.clip_norm) == pytest.approx(expected)
        assert float(group.estimate) == 5.0


def test_automatic_groups_carry_the_stability_and_split_the_bound():
    automatic = tf_dpfp.clipping.Automatic(stability=0.3, split="by_dimension")
    _, groups = _groups(tf_dpfp.PerLayer(thresholds=automatic))
    _, fixed = _groups(tf_dpfp.PerLayer(thresholds="by_dimension"))
    assert [g.clip_norm for g in groups] == [g.clip_norm for g in fixed]
    assert {g.stability for g in groups} == {0.3}
    assert {g.estimate for g in groups} == {None}


def test_thresholds_that_float32_can_not_hold_are_refused():
    owned, groups = _groups(tf_dpfp.PerLayer())
    chosen = dict.fromkeys((g.name for g in groups), 2.0 / math.sqrt(6))
    grouping = tf_dpfp.PerLayer(thresholds=chosen | {groups[0].name: 1e-20})
    with pytest.raises(ValueError, match="at least 1e-14"):
        grouping.groups(owned, 2.0)


def test_one_threshold_that_could_not_move_is_refused():
    with pytest.raises(ValueError, match=r"Adaptive\(rescale=False\)"):
        tf_dpfp.Flat(thresholds="adaptive")
    alone = tf_dpfp.clipping.ByFunction(
        function=lambda layer: "all", thresholds="adaptive"
    )
    with pytest.warns(UserWarning, match="'all' is the only group"):
        _groups(alone)
