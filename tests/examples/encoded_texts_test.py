import types

import keras
import numpy as np
import pytest
from keras import ops

from examples.trainers import encoded_texts


class _Mixes(keras.layers.Layer):
    """A block whose tokens see the means of those that are there."""

    def __init__(self, factor, **kwargs):
        super().__init__(**kwargs)
        self.factor = factor

    def call(self, hidden, mask):
        mask = ops.cast(mask, "float32")[:, :, None]
        total = ops.sum(hidden * mask, axis=1, keepdims=True)
        return hidden + self.factor * total / ops.sum(mask, 1, keepdims=True)


def _backbone():
    token_ids = keras.Input((None,), dtype="int32", name="token_ids")
    mask = keras.Input((None,), dtype="int32", name="padding_mask")
    hidden = keras.layers.Embedding(30, 4, name="embedding")(token_ids)
    for number, factor in enumerate((1.0, -0.5, 2.0)):
        name = f"transformer_layer_{number}"
        hidden = _Mixes(factor, name=name)(hidden, mask)
    model = keras.Model({"token_ids": token_ids, "padding_mask": mask}, hidden)
    model.num_layers = 3
    keras.utils.set_random_seed(0)
    model.set_weights([np.random.default_rng(0).normal(size=(30, 4))])
    return model


def _preprocess(texts, sequence_length):
    token_ids = np.zeros((len(texts), sequence_length), "int32")
    mask = np.zeros_like(token_ids)
    for row, text in enumerate(texts):
        codes = [1, *(ord(word[0]) - ord("a") + 2 for word in text.split())]
        codes = codes[:sequence_length]
        token_ids[row, : len(codes)] = codes
        mask[row, : len(codes)] = 1
    return {"token_ids": token_ids, "padding_mask": mask}


@pytest.fixture(autouse=True)
def _tiny(monkeypatch, tmp_path):
    monkeypatch.setenv("TF_DPFP_CACHE", str(tmp_path))
    tiny = types.SimpleNamespace(backbone=_backbone, preprocess=_preprocess)
    monkeypatch.setattr(encoded_texts, "ENCODERS", {"tiny": tiny})


def test_each_text_is_read_by_itself_and_once(monkeypatch, tmp_path):
    texts = ["a b c d e f g h i j k l", "", "z", "c d", "a b c d e f g h i j"]
    options = dict(encoder="tiny", levels=2, sequence_length=12, windows=2)
    together = encoded_texts.encode(texts, **options)
    assert together.shape == (5, 2, 4)
    for text, vector in zip(texts, together, strict=True):
        (alone,) = encoded_texts.encode([text], **options)
        np.testing.assert_allclose(vector, alone, rtol=1e-5, atol=1e-6)
    kept = len(list((tmp_path / "features").iterdir()))
    again = encoded_texts.encode(texts, **options)
    np.testing.assert_array_equal(again, together)
    assert len(list((tmp_path / "features").iterdir())) == kept


def test_a_long_text_has_the_mean_of_its_windows():
    options = dict(encoder="tiny", levels=3, sequence_length=6)
    # Four words of each window: two tokens are left for longer words.
    (found,) = encoded_texts.encode(
        ["a b c d e f g h i j"], windows=2, **options
    )
    parts = encoded_texts.encode(["a b c d", "e f g h"], windows=1, **options)
    np.testing.assert_allclose(found, parts.mean(axis=0), rtol=1e-5)
    (one,) = encoded_texts.encode(["a b c d e f g"], windows=1, **options)
    (cut,) = encoded_texts.encode(["a b c d e"], windows=1, **options)
    np.testing.assert_allclose(one, cut, rtol=1e-5)


def test_there_are_no_more_levels_than_blocks():
    with pytest.raises(ValueError, match="--levels must be at most 3"):
        encoded_texts.encode(["a"], "tiny", levels=4)


def test_vectors_are_of_one_length_without_what_texts_have_in_common():
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(50, 2, 6)) + 10.0
    found = encoded_texts.scaled(vectors, vectors[:20])
    assert found.shape == (50, 12) and found.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 10**0.5, 1e-5)
    halves = np.linalg.norm(found.reshape(50, 2, 6), axis=2)
    np.testing.assert_allclose(halves, 5**0.5, rtol=1e-5)
    assert np.linalg.norm(found.mean(axis=0)) < 1.0
    # Each by itself: no other private text is looked at.
    np.testing.assert_allclose(
        encoded_texts.scaled(vectors[7:8], vectors[:20])[0], found[7], 1e-5
    )
