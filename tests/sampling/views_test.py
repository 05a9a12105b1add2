"""Views of examples: of one example each, with secret numbers, or refused."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import tf_dpfp
from tf_dpfp import accounting
from tf_dpfp import sampling
from tf_dpfp.sampling import registry

RNG = np.random.default_rng(0)
X = RNG.normal(size=(20, 6, 6, 1)).astype(np.float32)
Y = np.arange(20)
LAYERS = (
    layers.RandomFlip("horizontal"),
    layers.RandomTranslation(0.3, 0.3),
    layers.RandomCrop(5, 5),
)


def _shifted(image):
    image = tf.pad(image, [[1, 1], [1, 1], [0, 0]])
    start = keras.random.randint((2,), 0, 3)
    return keras.ops.slice(image, tf.concat([start, [0]], 0), (6, 6, 1))


def _batches(x=X, y=Y, **kwargs):
    given = {"expected_batch_size": 8, "steps_per_epoch": 3, "seed": 5}
    return tf_dpfp.poisson_batches(x, y, **(given | kwargs))


@pytest.mark.parametrize("augment", [list(LAYERS), _shifted])
@pytest.mark.parametrize("padded", [{}, {"padded": "static", "capacity": 24}])
def test_a_view_is_of_its_example_and_no_other(augment, padded):
    kwargs = {"augment": augment, "multiplicity": 3, **padded}
    # All examples but the even ones are others, and far larger.
    others = np.where((Y % 2 == 0)[:, None, None, None], X, 1e3 + X[::-1])
    seen = 0
    for plain, one, two in zip(
        _batches(**padded),
        _batches(**kwargs),
        _batches(others, **kwargs),
        strict=True,
    ):
        # The same draw, each example three times, with its target.
        np.testing.assert_array_equal(
            one.y, np.repeat(plain[1], 3).reshape(-1, 3)
        )
        is_example = np.asarray(one.sample_weight) > 0
        assert is_example.shape == one.y.shape == one.x.shape[:2]
        for view, other, label, there in zip(
            *(np.asarray(t) for t in (one.x, two.x, one.y)),
            is_example,
            strict=True,
        ):
            if not there.all():
                assert not there.any()
                continue
            if label[0] % 2 == 0:
                seen += 1
                np.testing.assert_array_equal(view, other)
                # Views differ.
                assert np.ptp(view, axis=0).max() > 0
    assert seen > 3
    if padded:
        assert one.x.shape[0] == 24


def test_one_view_is_an_ordinary_batch():
    # Without augmentation it is bit for bit what it was.
    for plain, one in zip(_batches(), _batches(multiplicity=1), strict=True):
        assert type(one) is tuple and len(one) == 2
        for a, b in zip(plain, one, strict=True):
            np.testing.assert_array_equal(a, b)
    batches = _batches(augment=_shifted)
    assert sampling.kind_of(batches.element_spec) is None
    assert registry.multiplicity_of(batches) == 1
    (x, y), *_ = batches
    assert x.shape[1:] == (6, 6, 1) and not np.array_equal(x, X[y.numpy()])


def test_views_without_augmentation_are_copies_with_their_weights():
    weights = np.linspace(0.5, 1.5, 20).astype(np.float32)
    batches = tf_dpfp.poisson_batches(
        {"a": X, "b": Y}, Y, weights, expected_batch_size=8, multiplicity=2
    )
    assert sampling.kind_of(batches.element_spec) == accounting.ViewSums(2)
    for batch in batches:
        y = np.asarray(batch.y)
        np.testing.assert_array_equal(batch.x["b"], y)
        np.testing.assert_array_equal(batch.x["a"], X[y])
        np.testing.assert_array_equal(batch.sample_weight, weights[y])


def test_a_function_takes_inputs_of_any_structure():
    def augment(x):
        return {"a": x["a"][:3], "b": tf.cast(x["b"], tf.float32)}

    batches = tf_dpfp.poisson_batches(
        {"a": X, "b": Y},
        Y,
        expected_batch_size=1,  # Some draws are empty.
        steps_per_epoch=12,
        augment=augment,
        multiplicity=2,
        seed=0,
    )
    sizes = [batch.x["a"].shape for batch in batches]
    assert 0 in {s[0] for s in sizes} and {s[1:] for s in sizes} == {
        (2, 3, 6, 1)
    }


@pytest.mark.parametrize("augment", [LAYERS[1], _shifted])
def test_seeds_are_secret_and_reproducible_only_by_that_of_the_batches(augment):
    def views(seed):
        keras.utils.set_random_seed(1)
        batches = _batches(
            sampling_rate=1.0, augment=augment, multiplicity=2, seed=seed
        )
        batch = next(iter(batches))
        return np.asarray(batch.x)[np.argsort(batch.y[:, 0])]

    np.testing.assert_array_equal(views(3), views(3))
    assert not np.array_equal(views(3), views(4))
    # With all seeds of Keras and TensorFlow set.
    assert not np.array_equal(views(None), views(None))


def test_class_weights_are_those_of_the_example():
    batches = sampling.weigh(
        _batches(y=Y % 3, multiplicity=2), {0: 2.0, 1: 5.0}
    )
    for batch in batches:
        expected = np.array([2.0, 5.0, 1.0])[np.asarray(batch.y)]
        np.testing.assert_array_equal(batch.sample_weight, expected)


def _known_seed(image):
    return tf.image.random_flip_left_right(image, seed=1)


def _own_state():
    count = tf.Variable(0.0)

    def augment(image):
        return image + count.assign_add(tf.reduce_sum(image))

    return augment


def _python(image):
    found = tf.numpy_function(lambda a: a, [image], tf.float32)
    return tf.ensure_shape(found, (6, 6, 1))


def _added_up(image):
    """Adds to the memory of a constant, which all views share."""
    memory = tf.zeros([1, 6, 6, 1]) + 0.0
    return tf.raw_ops.InplaceAdd(x=memory, i=[0], v=image[None])[0]


def _with_glimpse(image):
    """Draws numbers that no seed is known of."""
    return tf.image.extract_glimpse(
        image[None], (6, 6), [[9.0, 9.0]], noise="uniform"
    )[0]


def _said_to_be_stateless(image):
    found = tf.numpy_function(lambda a: a, [image], tf.float32, stateful=False)
    return tf.ensure_shape(found, (6, 6, 1))


def _ragged(image):
    return tf.RaggedTensor.from_row_lengths(tf.range(3), [1, 2])


@pytest.mark.parametrize(
    "kwargs, message",
    [
        ({"augment": _known_seed}, "seed that may be known"),
        ({"augment": _own_state()}, "may keep something of one example"),
        ({"augment": _python}, "may keep something of one example"),
        (
            {"augment": _said_to_be_stateless},
            "may keep something of one example",
        ),
        ({"augment": _added_up}, "may keep something of one example"),
        ({"augment": _with_glimpse}, "may keep something of one example"),
        ({"augment": _ragged}, "must return dense tensors"),
        (
            {"augment": lambda x: tf.boolean_mask(x, x[:, 0, 0] > 0)},
            "static shape",
        ),
        ({"augment": layers.MixUp()}, "mixes the examples"),
        ({"augment": 3}, "must be a Keras layer"),
        ({"augment": []}, "must be a Keras layer"),
        ({"multiplicity": 0}, "multiplicity"),
        (
            {"multiplicity": 2, "users": Y, "max_examples_per_user": 1},
            "nothing is built for both",
        ),
        ({"multiplicity": 2, "y": None}, "need targets"),
        (
            {"multiplicity": 2, "augment": LAYERS[0], "x": {"a": X}},
            "inputs that are one tensor",
        ),
    ],
)
def test_refusals(kwargs, message):
    with pytest.raises((ValueError, TypeError), match=message):
        _batches(**kwargs)


def test_numbers_of_tensorflow_are_fresh_or_refused():
    tf.random.set_seed(7)
    with pytest.raises(ValueError, match="seed that may be known"):
        _batches(augment=tf.image.random_flip_left_right)
    tf.random.set_seed(None)
    _batches(augment=tf.image.random_flip_left_right, multiplicity=2)


def test_a_traced_function_is_traced_anew():
    augment = tf.function(_shifted)
    augment(tf.constant(X[0]))
    found = [
        next(iter(_batches(augment=function)))[0]
        for function in (augment, augment, _shifted)
    ]
    np.testing.assert_array_equal(found[0], found[1])
    np.testing.assert_array_equal(found[0], found[2])


def test_a_batch_of_persons_says_how_many_examples_one_has():
    batches = _batches(augment=None, users=Y // 2, max_examples_per_user=3)
    kind = sampling.kind_of(batches.element_spec)
    assert kind == accounting.PersonSums(3)
