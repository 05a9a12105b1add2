"""Errors of Keras and TensorFlow, said with the way out."""

import keras
import numpy as np
import pytest
import scipy.sparse
import tensorflow as tf
from keras import layers

import tf_dpfp
from tf_dpfp.training import explained

pytestmark = pytest.mark.usefixtures("without_trial")

X = np.random.default_rng(0).normal(size=(24, 5)).astype(np.float32)
Y = np.arange(24) % 2
LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def _model(loss=LOSS):
    model = keras.Sequential([keras.Input((5,)), layers.Dense(2)])
    tf_dpfp.make_private(model)
    model.compile(tf_dpfp.DPSGD(0.1, noise_multiplier=1.0), loss)
    return model


def _batches(*data):
    return tf_dpfp.poisson_batches(*data, expected_batch_size=8)


@pytest.mark.parametrize(
    ("data", "loss", "message"),
    [
        (lambda: (_batches(X),), LOSS, "needs a target for every example"),
        (lambda: (X,), LOSS, "needs a target for every example"),
        (
            lambda: (np.array([["a"] * 5] * 24), Y),
            LOSS,
            "inputs are text.*TextVectorization",
        ),
        (
            lambda: (_batches(X, np.eye(3)[Y]),),
            LOSS,
            r"can't take these targets, of shape \(None, 3\)",
        ),
        (
            lambda: (_batches(X, np.ones((24, 3))),),
            "mse",
            r"can't take these targets, of shape \(None, 3\)",
        ),
        (
            lambda: (_batches(X, Y),),
            "binary_crossentropy",
            r"can't take these targets, of shape \(None,\)",
        ),
        (lambda: (scipy.sparse.csr_matrix(X), Y), LOSS, r"\.toarray\(\)"),
    ],
    ids=["batches", "arrays", "text", "one-hot", "width", "flat", "sparse"],
)
def test_what_fit_was_given_names_the_way_out(data, loss, message):
    model = _model(loss)
    with pytest.raises(ValueError, match=message):
        model.fit(*data(), verbose=0)
    assert tf_dpfp.ledger(model) == []


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        ("mse", r"can't take these targets, of shape \(None,\)"),
        (keras.losses.MeanSquaredError(), "can't take these targets"),
        # What a loss of one's own was meant to do is not known.
        (lambda y, p: (y - p) ** 2, "^Model .* can't be trained privately"),
    ],
)
def test_targets_that_are_broadcast_over_the_outputs(loss, message):
    model = _model(loss)
    arguments = {"x": _batches(X, Y)}
    proof = (
        "Model 'm' can't be trained privately: \n  - the losses: operation Sub "
        "('compile_loss/sub'): An axis of size 3 meets one of size batch."
    )
    with pytest.raises(ValueError, match=message):
        with explained.explained(model, arguments):
            raise ValueError(proof)


def test_targets_with_the_wrong_name():
    # Keras passes the names on as targets: labels in words, as it seems.
    inputs = keras.Input((5,))
    outputs = {n: keras.layers.Dense(3, name=n)(inputs) for n in "ab"}
    model = keras.Model(inputs, outputs)
    tf_dpfp.make_private(model)
    model.compile(
        tf_dpfp.DPSGD(0.1, noise_multiplier=1.0), {"a": LOSS, "b": LOSS}
    )
    with pytest.raises(ValueError, match="keys are not those of the"):
        model.fit(_batches(X, {"a": Y, "c": Y}), verbose=0)
    assert tf_dpfp.ledger(model) == []


def test_a_data_set_is_not_split():
    model = _model()
    with pytest.raises(
        ValueError, match="can't cut examples out of a data set"
    ):
        model.fit(_batches(X, Y), validation_split=0.2, verbose=0)
    # Keras splits nothing where validation data are given.
    model.fit(
        _batches(X, Y),
        validation_split=0.2,
        validation_data=(X, Y),
        verbose=0,
    )


def test_other_errors_are_passed_on_as_they_are():
    error = ValueError("None values not supported.")
    with pytest.raises(ValueError) as caught:
        with explained.explained(_model(), {"x": X, "y": Y}):
            raise error
    assert caught.value is error


@pytest.mark.parametrize("name", ["x", "y", "sample_weight"])
def test_sparse_matrices_are_refused_by_name(name):
    data = {"x": X, "y": Y, "sample_weight": np.ones(24)}
    data[name] = scipy.sparse.csr_matrix(X)
    with pytest.raises(ValueError, match=f"`{name}` is a csr_matrix of scipy"):
        tf_dpfp.poisson_batches(**data, expected_batch_size=8)


@pytest.mark.parametrize("rate", [float("nan"), float("inf")])
def test_a_learning_rate_is_finite(rate):
    for arguments in ({"learning_rate": rate}, None):
        with pytest.raises(
            ValueError, match="`learning_rate` must be a finite"
        ):
            if arguments:
                tf_dpfp.DPAdam(**arguments, noise_multiplier=1.0)
            else:
                tf_dpfp.DPAdam(rate, noise_multiplier=1.0)
    schedule = keras.optimizers.schedules.CosineDecay(0.1, 10)
    tf_dpfp.DPAdam(schedule, noise_multiplier=1.0)


def test_a_number_in_quotes():
    with pytest.raises(ValueError, match="Leave the quotes out.*delta='1e-5'"):
        tf_dpfp.compute_epsilon(_model(), "1e-5")


# --- data sets of batches -----------------------------------------------------


def _dataset():
    return tf.data.Dataset.from_tensor_slices((X, Y))


@pytest.mark.parametrize(
    "batched",
    [
        lambda d: d.batch(7),
        lambda d: d.shuffle(24).batch(7, num_parallel_calls=2).prefetch(1),
        lambda d: d.batch(24).cache().shuffle(3),
    ],
)
def test_examples_are_taken_out_of_batches(batched):
    with pytest.warns(UserWarning, match="is batched. Its 24 examples"):
        batches = tf_dpfp.poisson_batches(
            batched(_dataset()), sampling_rate=1.0
        )
    ((x, y),) = batches.as_numpy_iterator()
    order, expected = np.lexsort(x.T), np.lexsort(X.T)
    np.testing.assert_array_equal(x[order], X[expected])
    np.testing.assert_array_equal(y[order], Y[expected])
    model = _model()
    model.fit(batches, verbose=0)
    (entry,) = tf_dpfp.ledger(model)
    assert entry.sampling == tf_dpfp.accounting.PoissonSampling(1.0)


@pytest.mark.parametrize(
    ("dataset", "message"),
    [
        # Which examples are left out hangs on how many there are.
        (lambda d: d.batch(7, drop_remainder=True), "drop_remainder=True"),
        (lambda d: d.batch(8, drop_remainder=True).batch(2), "batched already"),
        (lambda d: d.batch(8).batch(2), "batched already"),
        (lambda d: d.repeat(2).batch(8), "repeats its examples"),
        (lambda d: d.repeat().batch(8), "is infinite"),
        # What a map does to a batch may mix its examples.
        (lambda d: d.batch(8).map(lambda x, y: (x, y)), "batched already"),
        (lambda d: d.batch(8).take(2), "batched already"),
        (lambda d: _batches(X, Y).prefetch(1), "was made of drawn batches"),
    ],
)
def test_other_batches_stay_refused(dataset, message):
    with pytest.raises(ValueError, match=message):
        tf_dpfp.poisson_batches(dataset(_dataset()), expected_batch_size=4)
