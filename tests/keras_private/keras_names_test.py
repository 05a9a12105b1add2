"""Names that Keras makes up can be made up again."""

from keras import layers

from tf_dpfp.keras_private import names as keras_names


def test_set_counters_make_the_same_names_again():
    before = keras_names.counters()
    first, second = layers.Dense(1).name, layers.Dense(1).name
    assert first != second and keras_names.counters() != before
    keras_names.set_counters(before)
    assert layers.Dense(1).name == first
    # A name that was never made up before.
    keras_names.set_counters({})
    assert layers.Dense(1).name == "dense"
    assert layers.Dense(1).name == "dense_1"
    keras_names.set_counters(before)
