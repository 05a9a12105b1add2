import keras
import numpy as np
import pytest
from keras import layers

import tf_dpfp
from tf_dpfp import low_rank
from tf_dpfp import step as step_lib
from tf_dpfp.low_rank import matrices


def _model():
    inputs = keras.Input((6, 8))
    h = layers.Conv1D(7, 3, name="conv")(inputs)
    h = layers.MultiHeadAttention(2, 5, name="attention")(h, h)
    h = layers.LayerNormalization(name="norm")(h)
    h = layers.Dense(9, name="hidden")(layers.Flatten()(h))
    return keras.Model(inputs, layers.Dense(4, name="head")(h))


ALL = {
    "conv",
    "attention/query",
    "attention/key",
    "attention/value",
    "attention/attention_output",
    "hidden",
    "head",
}


def _marked(model):
    return {
        layer.path
        for layer in low_rank.marks._matrix_layers(model)
        if low_rank.mark_of(layer._kernel) is not None
    }


@pytest.mark.parametrize(
    "include, exclude, expected",
    [
        (None, None, ALL),
        ("attention/(query|key)", None, {"attention/query", "attention/key"}),
        (None, ["attention", "head"], {"conv", "hidden"}),
        (["hidden", "h"], "attention", {"hidden", "head"}),
        (
            lambda layer: isinstance(layer, layers.Dense),
            None,
            {"hidden", "head"},
        ),
    ],
)
def test_layers_are_chosen_by_their_paths(include, exclude, expected):
    model = _model()
    classes = [type(layer) for layer in model.layers]
    weights = model.get_weights()
    found = tf_dpfp.reparametrize(model, 2, include=include, exclude=exclude)
    assert found is model
    assert _marked(model) == expected
    assert [type(layer) for layer in model.layers] == classes
    for a, b in zip(weights, model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    assert low_rank.remove_carriers(model) is model
    assert _marked(model) == set()


def test_what_is_released_is_counted():
    model = tf_dpfp.reparametrize(_model(), 2, include="hidden|attention")
    released = {
        v.path: low_rank.released_size(v) for v in model.trainable_variables
    }
    # From 4 x 7 numbers to 9; from 7 to 2 x 5; from 2 x 5 to 7.
    assert released["hidden/kernel"] == 2 * (28 + 9)
    assert released["attention/query/kernel"] == 2 * (7 + 10)
    assert released["attention/attention_output/kernel"] == 2 * (10 + 7)
    assert released["hidden/bias"] is released["conv/kernel"] is None
    tf_dpfp.reparametrize(model, 3, include="hidden", left_only=True)
    assert low_rank.released_size(model.get_layer("hidden")._kernel) == 3 * 9


def test_the_dimension_of_a_group_counts_what_is_released():
    model = tf_dpfp.reparametrize(_model(), 2, include="hidden")
    owned = step_lib.owned_variables(model)
    by_name = {g.name: g for g in tf_dpfp.PerLayer().groups(owned, 1.0)}
    assert by_name["hidden"].dimension == 2 * (28 + 9) + 9
    assert by_name["head"].dimension == 9 * 4 + 4


def test_a_rank_that_is_not_below_the_dimensions_is_no_reparametrisation():
    model = tf_dpfp.reparametrize(_model(), 7)
    assert _marked(model) == {"hidden"}
    assert low_rank.fingerprint([model.get_layer("head")._kernel]) == 0


def test_the_last_call_counts_and_fingerprints_tell():
    model = _model()
    variables = model.trainable_variables
    seen = {low_rank.fingerprint(variables)}
    assert seen == {0}
    for arguments in (
        {"rank": 2},
        {"rank": 3},
        {"rank": 3, "left_only": True},
        {"rank": 3, "carrier_source": "weight"},
        {"rank": 3, "warmup_steps": 2},
    ):
        tf_dpfp.reparametrize(model, **arguments)
        seen.add(low_rank.fingerprint(variables))
    assert len(seen) == 6
    again = tf_dpfp.reparametrize(_model(), 3, warmup_steps=2)
    assert low_rank.fingerprint(again.trainable_variables) in seen


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"rank": 0}, "rank=0"),
        ({"rank": -1}, "rank=-1"),
        ({"rank": 1.5}, "rank=1.5"),
        ({"rank": True}, "rank=True"),
        ({"rank": 1, "warmup_steps": -1}, "warmup_steps=-1"),
        ({"rank": 1, "seed": 2**31}, "seed=2147483648"),
        ({"rank": 1, "carrier_source": "gradient"}, "'gradient'"),
        ({"rank": 1, "left_only": 1}, "left_only=1"),
        ({"rank": 1, "include": "nowhere"}, "'nowhere', which is found in"),
        ({"rank": 1, "exclude": ["head", "norm"]}, "'norm', which is found"),
        ({"rank": 1, "include": "("}, "regular expressions"),
        ({"rank": 1, "include": [3]}, "regular expressions"),
        ({"rank": 1, "include": "head", "exclude": "head"}, "Nothing of"),
    ],
)
def test_wrong_arguments(arguments, message):
    model = _model()
    with pytest.raises(ValueError) as error:
        tf_dpfp.reparametrize(model, **arguments)
    assert message in str(error.value)
    assert _marked(model) == set()


def test_what_can_not_be_reparametrised_is_refused_and_nothing_is_marked():
    frozen, lora, unbuilt = _model(), _model(), keras.Sequential()
    frozen.get_layer("head").trainable = False
    tf_dpfp.reparametrize(frozen, 2)
    assert _marked(frozen) == ALL - {"head"}
    low_rank.remove_carriers(frozen)
    lora.get_layer("head").enable_lora(2)
    unbuilt.add(layers.Dense(3, name="later"))
    batched = keras.Sequential(
        [keras.Input((3, 4)), layers.EinsumDense("abc,bcd->abd", (3, 5))]
    )
    for model, include, message in (
        (frozen, "h", "'head' is frozen"),
        (lora, None, "LoRA trains other weights"),
        (unbuilt, None, "'later' is not built"),
        (batched, None, "not one matrix for all positions"),
    ):
        with pytest.raises(ValueError, match=message):
            tf_dpfp.reparametrize(model, 2, include=include)
        built = [
            layer
            for layer in low_rank.marks._matrix_layers(model)
            if matrices.kernel_of(layer) is not None
        ]
        assert not any(
            low_rank.marks.is_marked(layer._kernel) for layer in built
        )


def test_lora_after_the_mark_is_found_by_validation():
    model = tf_dpfp.reparametrize(_model(), 2)
    assert tf_dpfp.validate(model) == []
    model.get_layer("head").enable_lora(2)
    (problem,) = tf_dpfp.validate(model)
    assert problem.where == "head" and "LoRA" in problem.reason
    low_rank.remove_carriers(model.get_layer("head"))
    assert tf_dpfp.validate(model) == []


def test_a_clone_has_no_marks():
    model = tf_dpfp.reparametrize(_model(), 2)
    assert _marked(keras.models.clone_model(model)) == set()


def test_the_fingerprint_is_that_of_saved_states():
    """Files hold the number: a change of it would refuse every one of them."""
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((12,)),
            layers.Dense(9, name="hidden"),
            layers.Dense(4, name="head"),
        ]
    )
    tf_dpfp.reparametrize(
        model,
        2,
        include="hidden",
        carrier_source="weight",
        warmup_steps=7,
        left_only=True,
        seed=3,
    )
    variables = model.trainable_variables
    assert low_rank.fingerprint(variables) == 40639648787762947
    tf_dpfp.reparametrize(model, 3)
    assert low_rank.fingerprint(variables) == 42539489106272913
