import hashlib
import hmac

import numpy as np
import pytest

from tf_dpfp.cards import digests


def _of(array, key=None):
    (found,) = digests.of_data({"x": array}, key)
    return found["sha256"]


def test_digests_are_of_type_shape_and_content():
    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    by_hand = hashlib.sha256(b"<f4 [2, 3]\n" + x.tobytes()).hexdigest()
    assert _of(x) == by_hand
    for other in (x.astype("float64"), x.reshape(3, 2), x + 1, x[:1]):
        assert _of(other) != by_hand


def test_it_does_not_matter_how_an_array_lies_in_memory():
    x = np.arange(6, dtype=np.float32)
    assert _of(x.astype(">f4")) == _of(x)
    assert _of(np.asfortranarray(x.reshape(2, 3))) == _of(x.reshape(2, 3))


def test_texts_and_empty_arrays_have_digests():
    assert _of(np.array(["a", "bc"])) != _of(np.array(["a", "bd"]))
    assert _of(np.zeros((0, 3))) != _of(np.zeros((0, 4)))


def test_who_lacks_the_key_can_not_compute_a_digest():
    x, key = np.arange(3, dtype=np.int64), b"s" * 16
    by_hand = hmac.new(key, b"<i8 [3]\n" + x.tobytes(), hashlib.sha256)
    assert _of(x, key) == by_hand.hexdigest()
    assert len({_of(x), _of(x, key), _of(x, b"t" * 16)}) == 3


@pytest.mark.parametrize("key", [b"short", "x" * 32])
def test_weak_keys_are_refused(key):
    with pytest.raises(ValueError, match="`data_key` must be"):
        _of(np.zeros(3), key)


def test_what_is_no_array_is_refused():
    for wrong in (np.array([{}, 1], object), 3.0):
        with pytest.raises(ValueError, match="can't be computed"):
            _of(wrong)
    with pytest.raises(ValueError, match="`data` must be a dict"):
        digests.of_data(np.zeros(3))
