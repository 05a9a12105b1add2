"""Crops are made of the own image, and numbers are looked up in own rows."""

import pytest
import tensorflow as tf

from tests.independence import graphs

R = tf.raw_ops
IMAGE = graphs.IMAGE
BOXES = tf.TensorSpec([None, 4])
TWO_EACH = tf.TensorSpec([None, 2, 4])
X = graphs.X
VALUES = tf.TensorSpec([None, 4])


def _crop(x, boxes, index, method="bilinear"):
    return tf.image.crop_and_resize(x, boxes, index, (4, 5), method=method)


def _two_each(x, boxes):
    index = tf.repeat(graphs.rows(x), 2)
    crops = _crop(x, tf.reshape(boxes, [-1, 4]), index)
    return tf.reshape(crops, [-1, 2, 4, 5, 2])


def _of_all(x):
    """One box for all images, written down."""
    return tf.tile([[0.0, 0.0, 0.5, 1.0]], [graphs.size(x), 1])


def _gradients(x, boxes, index):
    with tf.GradientTape() as tape:
        tape.watch([x, boxes])
        crops = _crop(x, boxes, index) ** 2
    return tape.gradient(crops, [x, boxes])


def _image_gradient(x, gradients, index, rows=None):
    rows = graphs.size(x) if rows is None else rows
    return R.CropAndResizeGradImage(
        grads=gradients,
        boxes=_of_all(x),
        box_ind=index,
        image_size=tf.stack([rows, 6, 6, 2]),
        T=tf.float32,
    )


def _box_gradient(x, gradients, index):
    return R.CropAndResizeGradBoxes(
        grads=gradients, image=x, boxes=_of_all(x), box_ind=index
    )


def _search(rows, wanted, side="left"):
    return tf.searchsorted(rows, wanted, side=side)


SOUND = {
    "CropAndResize": (lambda x, b: _crop(x, b, graphs.rows(x)), IMAGE, BOXES),
    "nearest": (
        lambda x, b: _crop(x, b, graphs.rows(x), "nearest"),
        IMAGE,
        BOXES,
    ),
    "one box for all": (
        lambda x: _crop(x, _of_all(x), graphs.rows(x)),
        IMAGE,
    ),
    "two crops of each": (_two_each, IMAGE, TWO_EACH),
    "CropAndResizeGradImage": (
        lambda x, b: _gradients(x, b, graphs.rows(x))[0],
        IMAGE,
        BOXES,
    ),
    "CropAndResizeGradBoxes": (
        lambda x, b: _gradients(x, b, graphs.rows(x))[1],
        IMAGE,
        BOXES,
    ),
    "LowerBound": (lambda x, v: _search(tf.sort(x), v), X, VALUES),
    "UpperBound": (lambda x, v: _search(tf.sort(x), v, "right"), X, VALUES),
    "one list for all": (
        lambda x: _search(
            tf.broadcast_to(tf.constant([0.0, 1.0]), [graphs.size(x), 2]), x
        ),
        X,
    ),
    "single numbers": (
        lambda x: _search(tf.constant([0.0, 1.0]), x[:, 0]),
        X,
    ),
}


@pytest.mark.parametrize("name", SOUND)
def test_own_images_and_rows_are_proved(name):
    function, *specs = SOUND[name]
    types = graphs.proved(function, *specs)
    assert name in types or " " in name or name == "nearest"


REFUSED = {
    "images of others": (
        lambda x, b: _crop(x, b, graphs.rows(x)[::-1]),
        "ReverseV2 StridedSlice",
    ),
    "images at a number of the data": (
        lambda x, b: _crop(x, b, tf.cast(b[:, 0], tf.int32)),
        "CropAndResize",
    ),
    "the image of the row behind": (
        lambda x, b: _crop(x, b, graphs.rows(x) + 1),
        "CropAndResize",
    ),
    "the first image": (
        lambda x, b: _crop(x, b, tf.zeros_like(graphs.rows(x))),
        "CropAndResize",
    ),
    "every second image": (
        lambda x, b: _crop(x, b, 2 * graphs.rows(x)),
        "CropAndResize",
    ),
    "images along another axis": (
        lambda x, b: _crop(tf.transpose(x, [1, 0, 2, 3]), b, graphs.rows(x)),
        "CropAndResize",
    ),
    "boxes of row numbers": (
        lambda x, b: _crop(
            x,
            b + tf.cast(graphs.rows(x), tf.float32)[:, None],
            graphs.rows(x),
        ),
        "Cast",
    ),
    "images that are the same for every batch": (
        lambda x, b: _crop(
            tf.reshape(tf.range(1440.0), [20, 6, 6, 2]), b, graphs.rows(x)
        ),
        "CropAndResize",
    ),
    "boxes for another number of images": (
        lambda x, b: _crop(x, tf.ones([3, 4]), graphs.rows(x)),
        "CropAndResize",
    ),
    "a size of the batch size": (
        lambda x, b: tf.image.crop_and_resize(
            x, b, graphs.rows(x), tf.stack([graphs.size(x), 5])
        ),
        "CropAndResize",
    ),
    "two crops of each, image by image": (
        lambda x, b: _crop(
            x, tf.concat([b, b], 0), tf.repeat(graphs.rows(x), 2)
        ),
        "CropAndResize",
    ),
    "gradients of others' crops": (
        lambda x, b: _image_gradient(x, x, tf.zeros_like(graphs.rows(x))),
        "CropAndResizeGradImage",
    ),
    "gradients of crops behind": (
        lambda x, b: _image_gradient(x, x, graphs.rows(x) + 1),
        "CropAndResizeGradImage",
    ),
    "gradients in more images": (
        lambda x, b: _image_gradient(x, x, graphs.rows(x), graphs.size(x) + 1),
        "CropAndResizeGradImage",
    ),
    "gradients of the box of another image": (
        lambda x, b: _box_gradient(x, x, tf.zeros_like(graphs.rows(x))),
        "CropAndResizeGradBoxes",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_other_images_are_refused(name):
    function, operations = REFUSED[name]
    finding = graphs.refused(function, IMAGE, BOXES, may_be_free=True)
    assert finding.operation in operations.split(), str(finding)


FOUR = tf.TensorSpec([4, 4])


def test_boxes_of_other_images_are_refused():
    """First the first boxes of all images, then the second ones."""

    def mixed(x, boxes):
        boxes = tf.reshape(tf.transpose(boxes, [1, 0, 2]), [-1, 4])
        return _crop(x, boxes, tf.repeat(graphs.rows(x), 2))

    finding = graphs.refused(mixed, IMAGE, TWO_EACH)
    assert "hold the examples differently" in finding.reason


SEARCHES = {
    "examples among the numbers of one": (
        lambda x, v: tf.transpose(
            R.LowerBound(sorted_inputs=x, values=tf.transpose(v))
        ),
        FOUR,
        FOUR,
    ),
    "in another number of rows": (
        lambda x, v: R.LowerBound(sorted_inputs=tf.ones([3, 2]), values=v),
        X,
        VALUES,
    ),
    "among other examples": (
        lambda x, v: R.LowerBound(sorted_inputs=tf.transpose(x), values=v),
        tf.TensorSpec([4, 4]),
        FOUR,
    ),
    "rows of others": (
        lambda x, v: R.LowerBound(sorted_inputs=x, values=tf.reverse(v, [0])),
        X,
        VALUES,
    ),
    "among the numbers of the rows": (
        lambda x, v: _search(graphs.rows(x), tf.cast(v[:, 0], tf.int32)),
        X,
        VALUES,
    ),
    "among as many numbers as examples": (
        lambda x, v: _search(tf.ones([graphs.size(x)]), v[:, 0]),
        X,
        VALUES,
    ),
    "in a list of its own for every row": (
        lambda x, v: R.UpperBound(
            sorted_inputs=tf.cast(graphs.rows(x), tf.float32)[:, None],
            values=v,
        ),
        X,
        VALUES,
    ),
    "one row's numbers among examples": (
        lambda x, v: R.LowerBound(
            sorted_inputs=tf.transpose(x[:, :1]), values=tf.ones([1, 3])
        ),
        X,
        VALUES,
    ),
}


@pytest.mark.parametrize("name", SEARCHES)
def test_searches_among_others_are_refused(name):
    function, *specs = SEARCHES[name]
    graphs.refused(function, *specs, may_be_free=True)
