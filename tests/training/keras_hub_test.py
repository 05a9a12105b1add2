"""KerasHub tasks: raw strings in, their preprocessors at work."""

import json

import keras
import numpy as np
import pytest

import tf_dpfp
from tests.hub import preset_worker
from tests.oracles import reference
from tests.training import worker_process
from tf_dpfp import per_example
from tf_dpfp.independence import gradients as trial_lib

keras_hub = pytest.importorskip(
    "keras_hub", reason="KerasHub is not installed (the extra `hub`)"
)

# Those that compare a step with the loop try each task.
pytestmark = pytest.mark.usefixtures("without_trial")

LENGTH = 6
CLIP = 0.05
LEARNING_RATE = 0.5
WORDS = ["good", "bad", "film", "plot", "fine", "dull"]


def _sentences(count):
    rng = np.random.default_rng(0)
    # Of one to seven words: some are padded, some are cut.
    texts = [
        " ".join(rng.choice(WORDS, rng.integers(1, 8))) for _ in range(count)
    ]
    return np.array(texts), np.array([int("good" in t) for t in texts])


def _classifier():
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    preprocessor = keras_hub.models.BertTextClassifierPreprocessor(
        keras_hub.models.BertTokenizer(vocabulary=vocabulary),
        sequence_length=LENGTH,
    )
    backbone = keras_hub.models.BertBackbone(
        vocabulary_size=len(vocabulary),
        num_layers=1,
        num_heads=2,
        hidden_dim=8,
        intermediate_dim=12,
        dropout=0.0,
        max_sequence_length=LENGTH + 3,
    )
    return keras_hub.models.BertTextClassifier(
        backbone, num_classes=2, preprocessor=preprocessor, dropout=0.0
    )


def _language_model():
    letters = sorted(set("".join(WORDS)))
    tokens = ["Ġ", *letters, "go", "od", "good", "Ġgood", "<|endoftext|>"]
    preprocessor = keras_hub.models.GPT2CausalLMPreprocessor(
        keras_hub.models.GPT2Tokenizer(
            vocabulary={token: index for index, token in enumerate(tokens)},
            merges=["g o", "o d", "go od", "Ġ good"],
        ),
        sequence_length=LENGTH,
    )
    backbone = keras_hub.models.GPT2Backbone(
        vocabulary_size=len(tokens),
        num_layers=1,
        num_heads=2,
        hidden_dim=8,
        intermediate_dim=12,
        dropout=0.0,
        max_sequence_length=LENGTH,
    )
    return keras_hub.models.GPT2CausalLM(backbone, preprocessor=preprocessor)


def _lora_classifier():
    classifier = _classifier()
    classifier.backbone.enable_lora(2)
    return classifier


TASKS = {"classifier": _classifier, "language_model": _language_model}


def _compile_arguments():
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    return {"loss": loss}


def _private(build, noise_multiplier=0.0, metrics=None, **arguments):
    keras.utils.set_random_seed(0)
    task = tf_dpfp.make_private(build())
    # Biases start at zero and would hide a wrong gradient.
    for v in task.trainable_variables:
        v.assign_add(keras.random.normal(v.shape, stddev=0.3, seed=len(v.path)))
    task.compile(
        optimizer=tf_dpfp.DPSGD(
            LEARNING_RATE,
            l2_norm_clip=CLIP,
            noise_multiplier=noise_multiplier,
            **arguments,
        ),
        weighted_metrics=metrics,
        **_compile_arguments(),
    )
    return task


def _assert_same_weights(a, b, atol=1e-5):
    for v, w in zip(a.get_weights(), b.get_weights(), strict=True):
        np.testing.assert_allclose(v, w, atol=atol)


@pytest.mark.parametrize("name", TASKS)
def test_no_layer_takes_the_generic_rule(name):
    units = per_example.find_units(TASKS[name]())
    assert len(units) > 10
    for unit in units:
        assert not isinstance(unit.rule, per_example.GenericRule), unit.layer


@pytest.mark.usefixtures("with_trial")
@pytest.mark.parametrize(
    ("name", "clipping", "microbatch_size"),
    # 5 rows in pieces of 3: the last has a row of padding.
    [("classifier", "per_layer", None), ("language_model", "flat", 3)],
)
def test_fit_on_strings_equals_the_loop_over_examples(
    name, clipping, microbatch_size
):
    task = _private(
        TASKS[name],
        expected_batch_size=4.0,
        clipping=clipping,
        microbatch_size=microbatch_size,
    )
    groups = {
        "flat": reference.flat_group,
        "per_layer": reference.layer_groups,
    }
    truth = reference.Reference(
        TASKS[name],
        task,
        lambda: keras.optimizers.SGD(LEARNING_RATE),
        groups[clipping],
        CLIP,
        4.0,
        _compile_arguments,
    )
    if name == "classifier":
        texts, labels = _sentences(10)

        def batches():
            return tf_dpfp.poisson_batches(
                texts,
                labels,
                expected_batch_size=4,
                steps_per_epoch=1,
                padded="static",
                seed=3,
            )

        ((strings, y, weights),) = batches().as_numpy_iterator()
        drawn = weights > 0
        # Padding is empty strings, which the preprocessor turns into tokens.
        assert 2 < np.sum(drawn) < len(drawn)
        task.fit(batches(), verbose=0)
        strings = [string.decode() for string in strings[drawn]]
        truth.step(task.preprocessor(strings), y[drawn])
    else:
        texts, _ = _sentences(5)
        task.fit(texts, batch_size=5, shuffle=False, verbose=0)
        x, y, weights = task.preprocessor(texts.tolist())
        assert 0 < np.mean(weights) < 1  # There is something to leave out.
        truth.step(x, y, weights)
    truth.assert_weights_equal(task)


def test_classifier_on_poisson_batches_of_strings():
    texts, labels = _sentences(20)
    task = _private(_classifier, 0.7, metrics=["accuracy"], microbatch_size=2)
    # A third of the batches are empty and go through the tokenizer, too.
    batches = tf_dpfp.poisson_batches(
        texts, labels, sampling_rate=0.05, steps_per_epoch=12
    )
    before = task.get_weights()
    history = task.fit(
        batches, epochs=2, validation_data=(texts, labels), verbose=0
    ).history
    assert np.all(np.isfinite(history["val_loss"]))
    for a, b in zip(before, task.get_weights(), strict=True):
        # The noise alone moves every weight.
        assert np.all(np.isfinite(b)) and np.mean(a != b) > 0.9
    (entry,) = tf_dpfp.ledger(task)
    assert entry.sampling.sampling_rate == 0.05
    assert entry.steps == 24
    assert 0 < tf_dpfp.compute_epsilon(task, delta=1e-3) < np.inf
    logs = task.evaluate(texts, labels, verbose=0, return_dict=True)
    logits = task(task.preprocessor(texts.tolist())).numpy()
    np.testing.assert_allclose(
        logs["accuracy"], np.mean(logits.argmax(-1) == labels)
    )


@pytest.mark.usefixtures("with_trial")
def test_lora_step_equals_the_loop_and_leaves_the_rest():
    task = _private(
        _lora_classifier,
        expected_batch_size=4.0,
        clipping="per_layer",
        microbatch_size=3,
    )
    truth = reference.Reference(
        _lora_classifier,
        task,
        lambda: keras.optimizers.SGD(LEARNING_RATE),
        reference.layer_groups,
        CLIP,
        4.0,
        _compile_arguments,
    )
    before = {v.path: v.numpy() for v in task.variables}
    texts, labels = _sentences(5)
    task.fit(texts, labels, batch_size=5, shuffle=False, verbose=0)
    truth.step(task.preprocessor(texts.tolist()), labels)
    truth.assert_weights_equal(task)
    trained = {v.path for v in task.trainable_variables}
    lora = {path for path in trained if "lora" in path}
    # Two factors of queries and two of values, their biases, the head.
    assert len(lora) == 4 and len(trained - lora) == 4
    for v in task.variables:
        changed = np.any(v.numpy() != before[v.path])
        assert changed == (v.path in trained), v.path


@pytest.fixture(scope="module")
def language_model():
    """A private language model that has trained, and takes the best word."""
    task = _private(_language_model, 0.7, expected_batch_size=4)
    texts, _ = _sentences(8)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(trial_lib, "check", lambda *_: True)
        task.fit(texts, batch_size=4, shuffle=False, verbose=0)
    # Once: whatever is set there has `generate` traced anew.
    task.sampler = keras_hub.samplers.get("greedy")
    return task


def _steps(task):
    return sum(entry.steps for entry in tf_dpfp.ledger(task))


def test_a_private_language_model_generates(language_model):
    task = language_model
    ledger = tf_dpfp.ledger(task)
    found = preset_worker.generated(task)
    # One word after the other, without the cache of `generate`.
    prompts = task.preprocessor.generate_preprocess(preset_worker.PROMPTS)
    ids, given = (
        np.array(prompts[name]) for name in ("token_ids", "padding_mask")
    )
    assert 0 < np.mean(given) < 1
    for i in range(1, LENGTH):
        mask = np.tile(np.arange(LENGTH) < i, (2, 1))
        logits = task({"token_ids": ids, "padding_mask": mask})
        best = np.argmax(logits[:, i - 1], axis=-1)
        ids[:, i] = np.where(given[:, i], ids[:, i], best)
    assert found == task.preprocessor.generate_postprocess(
        {"token_ids": ids, "padding_mask": np.ones_like(given)}
    )
    # To generate reads weights alone, and training goes on after it.
    assert tf_dpfp.ledger(task) == ledger
    steps = _steps(task)
    task.fit(_sentences(8)[0], batch_size=4, shuffle=False, verbose=0)
    assert _steps(task) == steps + 2


def test_presets_of_private_tasks_load_without_the_package(
    language_model, tmp_path
):
    texts, _ = _sentences(8)
    (tmp_path / "texts.json").write_text(json.dumps(texts.tolist()))
    expected = {}
    tasks = {
        preset_worker.LANGUAGE_MODEL: language_model,
        "lora": _private(_lora_classifier, 0.7, expected_batch_size=4),
    }
    for name, task in tasks.items():
        is_language = name == preset_worker.LANGUAGE_MODEL
        task.save_to_preset(str(tmp_path / name))
        inputs = task.preprocessor(texts.tolist())
        if is_language:
            inputs, _, _ = inputs
        # With LoRA beside its kernels; in the preset it is merged into them.
        expected[name] = {
            "class": type(task).__name__,
            "outputs": task(inputs).numpy(),
        }
        if is_language:
            expected[name]["texts"] = preset_worker.generated(task)
    found = worker_process.results_of(
        preset_worker, tmp_path / "results.json", timeout=300
    )
    assert set(found) == set(expected)
    for name, mine in found.items():
        outputs = expected[name].pop("outputs")
        np.testing.assert_allclose(mine.pop("outputs"), outputs, atol=1e-5)
        assert mine == expected[name]


def test_a_loaded_task_keeps_its_ledger(tmp_path):
    data = _sentences(8)
    task = _private(_classifier, 0.7, expected_batch_size=4)
    task.fit(*data, batch_size=4, shuffle=False, verbose=0)
    assert _steps(task) == 2
    task.save(tmp_path / "task.keras")

    loaded = keras.saving.load_model(tmp_path / "task.keras")
    assert type(loaded) is type(task)
    # It is an ordinary model with a private optimizer, which refuses that.
    with pytest.raises(tf_dpfp.errors.NotPrivateError):
        loaded.fit(*data, batch_size=4, verbose=0)
    tf_dpfp.make_private(loaded)
    assert tf_dpfp.ledger(loaded) == tf_dpfp.ledger(task)
    _assert_same_weights(loaded, task, atol=0.0)
    loaded.fit(*data, batch_size=4, shuffle=False, verbose=0)
    assert _steps(loaded) == 4
    # Another private optimizer takes over what was released before.
    loaded.compile(
        tf_dpfp.DPAdam(noise_multiplier=0.9, l2_norm_clip=1.0),
        **_compile_arguments(),
    )
    assert _steps(loaded) == 4

    # Weights alone, with an optimizer of the same kind.
    resumed = _private(_classifier, 0.7, expected_batch_size=4)
    resumed.optimizer.build(resumed.trainable_variables)
    resumed.load_weights(tmp_path / "task.keras")
    assert tf_dpfp.ledger(resumed) == tf_dpfp.ledger(task)
    _assert_same_weights(resumed, task, atol=0.0)


def test_a_loaded_task_keeps_the_moments_of_its_optimizer(tmp_path):
    data = _sentences(8)
    task = tf_dpfp.make_private(_classifier())
    task.compile(
        tf_dpfp.DPAdam(noise_multiplier=0.7, expected_batch_size=4),
        **_compile_arguments(),
    )
    task.fit(*data, batch_size=4, shuffle=False, verbose=0)
    task.save(tmp_path / "task.keras")

    # Its tokenizer was never called, and makes no weights.
    loaded = keras.saving.load_model(tmp_path / "task.keras")
    tf_dpfp.make_private(loaded)
    assert tf_dpfp.ledger(loaded) == tf_dpfp.ledger(task)
    moments, expected = (
        [v for v in each.optimizer.variables if "_velocity" in v.path]
        for each in (loaded, task)
    )
    assert len(moments) == len(task.trainable_variables)
    for mine, saved in zip(moments, expected, strict=True):
        assert np.any(saved)
        np.testing.assert_array_equal(mine, saved)
    loaded.fit(*data, batch_size=4, shuffle=False, verbose=0)
    assert _steps(loaded) == 4


def test_an_ordinary_task_loads_as_ever(tmp_path):
    task = _classifier()
    task.save(tmp_path / "task.keras")
    with pytest.warns(UserWarning, match="method is custom"):
        loaded = keras.saving.load_model(tmp_path / "task.keras")
    assert type(loaded.optimizer) is keras.optimizers.Adam


@keras.saving.register_keras_serializable(package="tests")
class OwnCompile(keras.Sequential):
    """Its `compile` takes something that no file has."""

    def compile(self, optimizer="adam", *, secret, **kwargs):
        super().compile(optimizer, **kwargs)


def test_a_ledger_that_would_be_lost_is_refused(tmp_path):
    model = OwnCompile([keras.Input((3,)), keras.layers.Dense(2)])
    tf_dpfp.make_private(model)
    model.compile(
        secret=1, optimizer=tf_dpfp.DPSGD(noise_multiplier=1.0), loss="mse"
    )
    model.fit(np.ones((4, 3)), np.ones((4, 2)), batch_size=4, verbose=0)
    model.save(tmp_path / "model.keras")
    with pytest.raises(ValueError, match="holds the ledger"):
        keras.saving.load_model(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras", compile=False)
    _assert_same_weights(loaded, model, atol=0.0)


def test_a_private_task_refuses_the_optimizer_of_the_hub():
    task = tf_dpfp.make_private(_classifier())
    with pytest.raises(tf_dpfp.errors.NotPrivateError, match="auto"):
        task.compile()
    texts, labels = _sentences(4)
    with pytest.raises(tf_dpfp.errors.NotPrivateError):
        # As the hub compiled it when it was made.
        task.fit(texts, labels, verbose=0)
