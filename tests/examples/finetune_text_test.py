import dataclasses
import importlib.util
import math

import keras
import numpy as np
import pytest

import tf_dpfp
from examples.trainers import datasets
from examples.trainers import finetune_config
from examples.trainers import finetune_starts
from examples.trainers import finetuning
from examples.trainers import minilm
from examples.trainers import text_datasets
from examples.trainers import text_encoders
from tf_dpfp import accounting

keras_hub = pytest.importorskip(
    "keras_hub", reason="KerasHub is not installed (the extra `hub`)"
)

WORDS = ["good", "bad", "film", "plot", "fine", "dull"]
VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]


def _reviews():
    rng = np.random.default_rng(0)

    def split(count):
        texts = [
            " ".join(rng.choice(WORDS, rng.integers(1, 6)))
            for _ in range(count)
        ]
        labels = np.array([int("good" in text) for text in texts])
        # The shortest there is: nothing between the two ends.
        texts[0], labels[0] = "", 0
        return np.array(texts, dtype=object), labels

    return split(60), split(20)


@pytest.fixture(scope="module")
def preset(tmp_path_factory):
    """A tiny encoder and its tokenizer in a folder."""
    return _write_preset(tmp_path_factory, num_layers=2)


@pytest.fixture(scope="module")
def low_preset(tmp_path_factory):
    """The same of one block, for what does not tell blocks apart."""
    return _write_preset(tmp_path_factory, num_layers=1)


def _write_preset(tmp_path_factory, num_layers):
    keras.utils.set_random_seed(0)
    folder = str(tmp_path_factory.mktemp("presets") / "tiny")
    backbone = keras_hub.models.BertBackbone(
        vocabulary_size=len(VOCABULARY),
        num_layers=num_layers,
        num_heads=2,
        hidden_dim=8,
        intermediate_dim=12,
        max_sequence_length=8,
    )
    backbone.save_to_preset(folder)
    preprocessor = keras_hub.models.BertTextClassifierPreprocessor(
        keras_hub.models.BertTokenizer(vocabulary=VOCABULARY),
        sequence_length=8,
    )
    preprocessor.save_to_preset(folder)
    return folder


@pytest.fixture(autouse=True)
def _data(monkeypatch, tmp_path, without_trial):
    monkeypatch.setenv("TF_DPFP_CACHE", str(tmp_path / "cache"))
    loaders = {"movie_reviews": _reviews, "public_snippets": _reviews}
    monkeypatch.setattr(text_datasets, "LOADERS", loaders)


def _config(preset, **changes):
    settings = dict(
        preset=preset,
        rank=2,
        epsilon=8.0,
        delta=1e-3,
        batch_size=20,
        microbatch_size=None,
        epochs=2,
        sequence_length=8,
    )
    return finetune_config.Config(**(settings | changes))


@pytest.mark.parametrize(
    "changes, message",
    [
        (dict(epsilon=-1.0), "epsilon"),
        (dict(delta=1.0), "delta"),
        (dict(method="adapters"), "--method is one of head, lora"),
        (dict(clipping="none"), "--clipping is one of flat"),
        (dict(dataset="imdb"), "--dataset is one of movie_reviews"),
        (dict(blocks=0), "--blocks must be at least 1"),
        (dict(levels=0), "--levels must be at least 1"),
        (dict(head_epsilon=9.0), "--head_epsilon is a part of --epsilon"),
        (dict(ema=1.0), r"--ema is in \[0, 1\)"),
        (dict(rank=0), "--rank must be at least 1"),
        (dict(l2_norm_clip=0.0), "--l2_norm_clip must be above 0"),
        (dict(microbatches=0), "--microbatches must be at least 1"),
        (dict(method="dpfp"), "not their labels.*--public_labels"),
        (
            dict(method="dpfp", public_labels=True, epsilon=math.inf),
            "a new head at a finite",
        ),
    ],
)
def test_what_makes_no_sense_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        _config("tiny", **changes)


def test_the_blocks_above_look_at_a_prefix(preset):
    config = _config(preset, method="prefix", blocks=1, levels=2)
    backbone, _ = text_encoders.load_encoder(config)
    lower, upper = text_encoders.split_encoder(backbone, config)
    plain = dataclasses.replace(config, method="bias")
    _, expected = text_encoders.split_encoder(backbone, plain)
    x = {
        "token_ids": np.array([[2, 5, 6, 3, 0, 0, 0, 0]]),
        "padding_mask": np.array([[1, 1, 1, 1, 0, 0, 0, 0]]),
        "segment_ids": np.zeros((1, 8), int),
    }
    states = lower(x)
    with_prefix = upper(states).numpy()
    without = expected(states).numpy()
    assert with_prefix.shape == without.shape
    # The frozen level is the same; the one above looks at the prefix too.
    np.testing.assert_array_equal(with_prefix[:, :8], without[:, :8])
    assert np.abs(with_prefix[:, 8:] - without[:, 8:]).max() > 1e-4
    prefix = upper.get_layer("prefix")
    padded = prefix.padded(x["padding_mask"])
    np.testing.assert_array_equal(padded, [[1] * 12 + [0] * 4])


def test_a_start_with_a_prefix_is_refused(preset, tmp_path):
    (tmp_path / "trained_on.json").write_text("[]")
    (tmp_path / "prefix.npz").touch()
    config = _config(preset, start=str(tmp_path))
    with pytest.raises(ValueError, match="encoders without a prefix"):
        finetuning.prepare(config)


def _assert_loads_as_an_ordinary_encoder(prepared, folder):
    # What names nothing of this package loads without it.
    for file in (folder / "backbone").rglob("*.json"):
        assert "tf_dpfp" not in file.read_text()
    # LoRA is merged into the kernels that it stood beside.
    encoder = keras_hub.models.Backbone.from_preset(
        str(folder / "backbone"), dropout=0.0
    )
    assert not any("lora" in v.path for v in encoder.variables)
    x, _ = prepared.test
    out = encoder(x)["sequence_output"]
    expected = prepared.backbone(x)["sequence_output"]
    np.testing.assert_allclose(out, expected, atol=1e-5)
    vectors = minilm.mean_over_tokens(out, x["padding_mask"])
    head = np.load(folder / "head.npz")
    np.testing.assert_allclose(
        np.array(vectors) @ head["kernel"] + head["bias"],
        prepared.model(x),
        atol=1e-4,
    )


def _weights(model):
    return {v.path: v.numpy() for v in model.variables}


BY_GRADIENTS = [m for m in finetune_config.METHODS if m != "dpfp"]


@pytest.mark.parametrize("method", BY_GRADIENTS)
def test_each_method_trains_what_it_says_within_the_budget(
    low_preset, method, tmp_path, request
):
    # The other methods train less of the same layers.
    if method in ("full", "rgp", "prefix", "lora"):
        request.getfixturevalue("with_trial")
    config = _config(
        low_preset,
        method=method,
        clipping="per_layer",
        microbatch_size=8 if method == "full" else None,
        output_dir=str(tmp_path),
    )
    prepared = finetuning.prepare(config)
    before = _weights(prepared.model)
    result = finetuning.run(prepared)
    assert 7.0 < result.epsilon <= 8.0
    assert sum(e.steps for e in tf_dpfp.ledger(prepared.trained)) == 6
    assert "6 steps" in result.statement and 0.0 <= result.accuracy <= 1.0
    assert method in finetuning.report(result, config)
    after = _weights(prepared.model)
    moved = {path for path in before if np.any(before[path] != after[path])}
    moved = {path for path in moved if "seed" not in path}
    trained = {v.path for v in prepared.model.trainable_variables}
    frozen = {v.path for v in prepared.backbone.variables}
    if method == "head":
        assert moved == {"logits/kernel", "logits/bias"}
        assert not moved & frozen
    else:
        # The noise moves every weight that is trained, and no other.
        assert moved == trained
    thin = {path.split("/")[-1] for path in moved if "lora" in path}
    assert thin == {
        "lora": {"lora_kernel_a", "lora_kernel_b"},
        "ffa_lora": {"lora_kernel_b"},
    }.get(method, set())
    if method == "prefix":
        assert moved == {"prefix/vectors", "logits/kernel", "logits/bias"}
        kept = np.load(tmp_path / "prefix.npz")
        np.testing.assert_array_equal(kept["vectors"], after["prefix/vectors"])
    statement = (tmp_path / "privacy_statement.txt").read_text()
    assert statement == result.statement
    if method == "lora":
        _assert_loads_as_an_ordinary_encoder(prepared, tmp_path)


@pytest.mark.parametrize("changes", [dict(blocks=3), dict(levels=3)])
def test_more_blocks_than_there_are_are_refused(preset, changes):
    with pytest.raises(ValueError, match="must be at most 2"):
        finetuning.prepare(_config(preset, method="head", **changes))


def test_vectors_of_held_out_sentences_are_computed_once(low_preset, tmp_path):
    config = _config(low_preset, method="head", held_out=20)
    data = finetuning.load(config)
    # The test set stays unseen; of 60 sentences 40 are left to train with.
    assert (len(data.train[0]), len(data.test[0])) == (40, 20)
    (_, labels), (_, test_labels) = datasets.hold_out(_reviews(), 20)
    np.testing.assert_array_equal(data.train[1], labels)
    np.testing.assert_array_equal(data.test[1], test_labels)
    kept = sorted((tmp_path / "cache" / "features").iterdir())
    assert len(kept) == 2
    again = finetuning.load(config)
    np.testing.assert_array_equal(again.train[0], data.train[0])
    assert sorted((tmp_path / "cache" / "features").iterdir()) == kept


def _assert_nothing_moved_below_the_top_block(prepared, before):
    after = _weights(prepared.model)
    moved = {path for path in before if np.any(before[path] != after[path])}
    trained = {v.path for v in prepared.trained.trainable_variables}
    assert moved == trained and len(moved) > 2
    assert all(
        "logits" in path or "transformer_layer_1" in path for path in moved
    )


# "bias" is trained below, where the head goes first.
@pytest.mark.parametrize(("method", "levels"), [("full", 2), ("lora", 1)])
def test_below_the_top_block_nothing_moves(preset, method, levels):
    config = _config(preset, method=method, blocks=1, levels=levels, ema=0.5)
    prepared = finetuning.prepare(config)
    before = _weights(prepared.model)
    finetuning.run(prepared)
    _assert_nothing_moved_below_the_top_block(prepared, before)
    # The average is what is kept.
    optimizer = prepared.trained.optimizer
    for variable, average in zip(
        optimizer.updated_variables,
        optimizer._model_variables_moving_average,
        strict=True,
    ):
        np.testing.assert_array_equal(variable, average)
    # What was computed once is what the whole encoder computes.
    np.testing.assert_allclose(
        prepared.model(_tokens(preset)),
        prepared.trained(prepared.test[0]),
        atol=5e-3,
    )


def test_what_trains_the_head_first_is_in_the_same_ledger(preset, monkeypatch):
    # Streams of seeded noise are keyed by the count of steps.
    config = _config(
        preset,
        method="bias",
        blocks=1,
        head_epsilon=3.0,
        head_epochs=4,
        seed=1,
    )
    train_head, seen = finetuning._train_head, []

    def checked(prepared):
        rest = {v.path: v.numpy() for v in prepared.upper.trainable_variables}
        head = prepared.head.get_weights()
        train_head(prepared)
        # It trains the head and nothing else.
        for variable in prepared.upper.trainable_variables:
            np.testing.assert_array_equal(variable, rest[variable.path])
        assert np.any(prepared.head.get_weights()[0] != head[0])
        (first,) = tf_dpfp.ledger(prepared.trained)
        assert first.steps == 12
        alone = accounting.compute_epsilon([first], config.delta)
        assert 2.9 < alone <= 3.0
        seen.append(prepared)

    monkeypatch.setattr(finetuning, "_train_head", checked)
    prepared = finetuning.prepare(config)
    before = _weights(prepared.model)
    result = finetuning.run(prepared)
    assert seen == [prepared]
    _assert_nothing_moved_below_the_top_block(prepared, before)
    # Biases, and one matrix: that of the head.
    matrices = [
        v.path
        for v in prepared.trained.trainable_variables
        if len(v.shape) > 1 and "bias" not in v.path
    ]
    assert matrices == ["logits/kernel"]
    assert 7.9 < result.epsilon <= 8.0
    assert "18 steps" in result.statement
    assert "12 steps" in result.statement and "6 steps" in result.statement


def test_trainings_can_share_what_is_frozen(preset):
    config = _config(preset, method="bias", blocks=1, seed=3)
    alone = finetuning.prepare(config)
    shared = finetuning.prepare(config, finetuning.load(config))
    for of_one, of_other in [
        (alone.train, shared.train),
        (alone.test, shared.test),
        (alone.trained.get_weights(), shared.trained.get_weights()),
        (alone.model.get_weights(), shared.model.get_weights()),
    ]:
        for a, b in zip(
            *map(keras.tree.flatten, (of_one, of_other)), strict=True
        ):
            np.testing.assert_array_equal(a, b)


def test_a_training_starts_where_a_public_one_ended(preset, tmp_path):
    folder = str(tmp_path)
    public = finetuning.prepare(
        _config(
            preset,
            method="full",
            dataset="public_snippets",
            epsilon=math.inf,
            learning_rate=0.02,
            epochs=20,
            decay=True,
            seed=1,
            output_dir=folder,
        )
    )
    # Or its variables come with a first trace, and a second one is the step.
    public.trained.optimizer.build(public.trained.trainable_variables)
    result = finetuning.run(public)
    assert result.accuracy > 0.9 and math.isinf(result.epsilon)
    assert "without privacy" in result.statement
    assert not tf_dpfp.loops.is_private(public.trained)
    config = _config(preset, method="full", start=folder, blocks=1)
    tokens = public.test[0]
    expected = public.model(tokens)
    for levels in (1, 2):
        again = dataclasses.replace(config, levels=levels)
        prepared = finetuning.prepare(again)
        np.testing.assert_allclose(prepared.model(tokens), expected, atol=1e-5)
        assert tf_dpfp.loops.is_private(prepared.trained)


def test_several_starts_are_one_of_mean_weights(low_preset, tmp_path):
    folders = [tmp_path / "one", tmp_path / "two"]
    for scale, folder in enumerate(folders):
        config = _config(
            low_preset,
            method="full",
            dataset="public_snippets",
            epsilon=math.inf,
            output_dir=str(folder),
        )
        prepared = finetuning.prepare(config)
        for variable in prepared.model.trainable_variables:
            variable.assign(variable + 0.1 * scale)
        head = text_encoders.head_weights(prepared.head)
        finetune_starts.write(config, prepared.backbone, head, "")
    one, two, both = (
        finetuning.prepare(_config(low_preset, method="full", start=start))
        for start in [*map(str, folders), ",".join(map(str, folders))]
    )
    for a, b, mean in zip(
        one.model.weights, two.model.weights, both.model.weights, strict=True
    ):
        np.testing.assert_allclose(mean, (a.numpy() + b.numpy()) / 2, atol=1e-6)
    assert any(
        np.any(a.numpy() != b.numpy())
        for a, b in zip(one.model.weights, two.model.weights, strict=True)
    )


def test_a_start_that_saw_the_same_data_is_refused(low_preset, tmp_path):
    folder = str(tmp_path)
    config = _config(low_preset, method="head", output_dir=folder, steps=1)
    finetuning.run(finetuning.prepare(config))
    again = _config(low_preset, method="head", start=folder)
    with pytest.raises(ValueError, match="would leave out the first"):
        finetuning.prepare(again)
    # Whatever lies between: what was seen stays seen.
    between = dataclasses.replace(
        again, dataset="public_snippets", output_dir=str(tmp_path / "next")
    )
    finetuning.run(finetuning.prepare(between))
    late = dataclasses.replace(again, start=str(tmp_path / "next"))
    with pytest.raises(ValueError, match="movie_reviews, public_snippets"):
        finetuning.prepare(late)
    # One of several is enough.
    several = dataclasses.replace(late, start=f"{late.start},{folder}")
    with pytest.raises(ValueError, match="movie_reviews, public_snippets"):
        finetuning.prepare(several)
    (tmp_path / "trained_on.json").unlink()
    with pytest.raises(ValueError, match="must be a folder that an earlier"):
        finetuning.prepare(again)


def test_a_head_from_prompts_tells_praise_from_blame(preset, monkeypatch):
    monkeypatch.setattr(text_datasets, "PRAISE", ("good film", "fine good"))
    monkeypatch.setattr(text_datasets, "BLAME", ("bad film", "dull bad"))
    config = _config(preset, method="full", start="prompts")
    prepared = finetuning.prepare(config)
    means = [
        np.mean(prepared.model(_tokens(preset, texts)), axis=0)
        for texts in (text_datasets.PRAISE, text_datasets.BLAME)
    ]
    differences = [logits[1] - logits[0] for logits in means]
    np.testing.assert_allclose(differences, [1.0, -1.0], atol=1e-3)


def test_noised_vectors_train_the_head_within_the_budget(low_preset, tmp_path):
    config = _config(
        low_preset,
        method="dpfp",
        microbatches=4,
        public_labels=True,
        output_dir=str(tmp_path),
    )
    prepared = finetuning.prepare(config)
    before = _weights(prepared.model)
    result = finetuning.run(prepared)
    (entry,) = tf_dpfp.ledger(prepared.trained)
    # Six batches of four draws, of five of sixty.
    assert entry.steps == 24
    assert isinstance(entry.sampling, accounting.WithoutReplacement)
    assert 7.0 < result.epsilon <= 8.0
    said = " ".join(result.statement.split())
    assert "replace-one adjacency" in said
    assert "not protected: the labels of all examples" in said
    (noise,) = (
        layer
        for layer in prepared.trained.layers
        if isinstance(layer, tf_dpfp.DPRepresentationClip)
    )
    assert noise.noise_multiplier > 0
    # What is given to the noise is not longer than it clips at.
    x, _ = prepared.test
    np.testing.assert_allclose(np.linalg.norm(x, axis=1), 1.0, atol=1e-5)
    after = _weights(prepared.model)
    moved = {path for path in before if np.any(before[path] != after[path])}
    head = {v.path for v in prepared.model.layers[-1].variables}
    assert moved == head and len(head) == 3
    # The head that is written works on vectors of length 1.
    head = np.load(tmp_path / "head.npz")
    tokens = _tokens(low_preset)
    encoder = keras_hub.models.Backbone.from_preset(
        str(tmp_path / "backbone"), dropout=0.0
    )
    vectors = minilm.mean_over_tokens(
        encoder(tokens)["sequence_output"],
        tokens["padding_mask"],
    )
    np.testing.assert_allclose(
        keras.utils.normalize(np.array(vectors)) @ head["kernel"]
        + head["bias"],
        prepared.model(tokens),
        atol=1e-4,
    )


def _tokens(preset, texts=None):
    preprocessor = keras_hub.models.TextClassifierPreprocessor.from_preset(
        preset, sequence_length=8
    )
    if texts is None:
        _, (texts, _) = _reviews()
    return {k: np.array(v) for k, v in preprocessor(list(texts)).items()}


def test_frozen_embeddings_stay(preset):
    config = _config(preset, method="full", freeze_embeddings=True)
    prepared = finetuning.prepare(config)
    paths = {v.path for v in prepared.model.trainable_variables}
    assert not any("embedding" in path for path in paths)
    assert any("attention" in path for path in paths)


def test_command_has_a_flag_for_every_field():
    text = ""
    for name in ("finetune_text", "commands"):  # The latter has shared flags.
        source = importlib.util.find_spec(f"examples.trainers.{name}").origin
        with open(source) as file:
            text += file.read()
    for field in finetune_config.Config.__dataclass_fields__:
        assert f'"{field}"' in text
