import dataclasses
import json
import math
import os
import pathlib
import re
import runpy
import signal
import textwrap
import time

import keras
import matplotlib.image
import numpy as np
import pytest

import tf_dpfp
from examples.trainers import checkpoints
from examples.trainers import commands
from examples.trainers import datasets
from examples.trainers import models
from examples.trainers import plots
from examples.trainers import training
from tests import programs
from tf_dpfp import accounting

ROOT = pathlib.Path(__file__).resolve().parents[2]
TUTORIALS = ROOT / "examples" / "tutorials"
EXAMPLES = 400


def _synthetic(name="mnist", count=EXAMPLES):
    """Images that are bright on the left or right, as their labels say."""
    del name
    rng = np.random.default_rng(0)

    def split(size):
        labels = rng.integers(0, 2, size)
        images = rng.uniform(0.0, 0.3, (size, 4, 4, 1))
        for side in (0, 1):
            images[labels == side, :, 2 * side : 2 * side + 2] += 0.6
        return images.astype("float32"), labels.astype("int64")

    return split(count), split(50)


@pytest.fixture(autouse=True)
def _data(monkeypatch, without_trial):
    monkeypatch.setattr(datasets, "load", _synthetic)


def _config(folder, **changes):
    settings = dict(
        model="mlp",
        batch_size=100,
        epochs=3,
        delta=1e-4,
        epsilon=8.0,
        learning_rate=10.0,
        output_dir=str(folder),
    )
    return training.Config(**(settings | changes))


# What is refused.


@pytest.mark.parametrize(
    "changes, message",
    [
        (dict(epsilon=3.0, noise_multiplier=1.0), "not both"),
        (dict(epsilon=-1.0), "epsilon"),
        (dict(epsilon=math.nan), "epsilon"),
        (dict(delta=0.0), "delta"),
        (dict(model="resnet"), "--model is one of cnn, mlp"),
        (dict(optimizer="sgdm"), "--optimizer is one of sgd"),
        (dict(batch_size=0), "--batch_size must be at least 1"),
        (dict(epochs=0), "--epochs must be at least 1"),
        (dict(l2_norm_clip=0.0), "--l2_norm_clip must be above 0"),
        (dict(l2_norm_clip=math.nan), "--l2_norm_clip must be above 0"),
        (dict(strategy="ps"), "--strategy is one of one_device, mirrored"),
        (dict(strategy="mirrored"), "on one device"),
        (dict(strategy="mirrored", model="scattering"), "on one device"),
        (dict(multiplicity=2), "views need theirs"),
    ],
)
def test_bad_settings_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        training.Config(**changes)


@pytest.mark.parametrize(
    "changes, message",
    [
        (dict(delta=1 / EXAMPLES), "one over the number of examples"),
        (dict(batch_size=EXAMPLES + 1), "at most the number of examples"),
        (dict(held_out=EXAMPLES), "--held_out must be at least 0 and below"),
        (dict(model="cnn"), "may be too small"),
        (dict(epsilon=None, noise_multiplier=-1.0), "noise_multiplier"),
        (dict(epsilon=None, noise_multiplier=math.nan), "noise_multiplier"),
        (
            dict(epsilon=None, noise_multiplier=1.0, l2_norm_clip=math.inf),
            "l2_norm_clip",
        ),
        (dict(microbatch_size=0), "microbatch_size"),
        (dict(clipping="layers"), "clipping"),
        (dict(seed=-1), "seed|Seed"),
    ],
)
def test_what_does_not_fit_the_data_leaves_no_folder(
    tmp_path, changes, message
):
    folder = tmp_path / "out"
    with pytest.raises(ValueError, match=message):
        training.prepare(_config(folder, **changes))
    assert not folder.exists()


def test_the_budget_is_2_93_unless_noise_is_given():
    assert training.Config().budget == 2.93
    assert training.Config(epsilon=1.0).budget == 1.0
    assert training.Config(noise_multiplier=1.0).budget is None


def test_what_is_not_given_is_of_the_recipe_of_the_model():
    def of(**changes):
        config = training.Config(**changes)
        return (
            config.batch_size,
            config.epochs,
            config.momentum,
            config.weight_averaging,
        )

    assert of() == (8192, 60, 0.9, 0.98)
    assert of(model="cnn") == (2048, 45, 0.0, 0.0)
    assert of(optimizer="adam") == (8192, 60, 0.0, 0.98)
    assert of(batch_size=9, epochs=8, momentum=0.5, weight_averaging=0.0) == (
        9,
        8,
        0.5,
        0.0,
    )


@pytest.mark.parametrize("name", models.NAMES)
def test_each_model_has_a_recipe(name):
    recipe = models.RECIPES[name]
    assert recipe.step > 0.0
    training.Config(model=name)


@pytest.mark.parametrize(
    "changes, rate",
    [
        (dict(model="linear_scattering"), 12.0),
        (dict(model="linear_efficientnet"), 8.0),
        (dict(model="scattering"), 8.0),
        (dict(model="cnn"), 20.0),
        (dict(model="cnn", momentum=0.9, l2_norm_clip=1.0), 0.2),
        (dict(model="cnn", optimizer="adam"), 1e-3),
        (dict(model="cnn", learning_rate=3.0), 3.0),
    ],
)
def test_rates_are_those_of_the_recipe(changes, rate):
    optimizer = training.make_optimizer(training.Config(**changes), 60_000, 30)
    assert float(optimizer.learning_rate) == pytest.approx(rate)


def test_each_setting_has_a_default_folder_of_its_own():
    default = training.Config()
    others = [
        dataclasses.replace(default, **change)
        for change in (
            dict(epochs=3),
            dict(epsilon=1.0),
            dict(noise_multiplier=1.0),
            dict(model="mlp"),
            dict(dataset="tfds:cifar10/3.0.2"),
            dict(seed=1),
        )
    ]
    folders = [config.folder for config in (default, *others)]
    assert len(set(folders)) == len(folders)
    assert {folder.parent for folder in folders} == {pathlib.Path("runs")}
    same = dataclasses.replace(default, epsilon=2.93, microbatch_size=64)
    assert same.folder == default.folder


# A whole training.


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    config = _config(tmp_path_factory.mktemp("finished"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets, "load", _synthetic)
        return config, training.run(training.prepare(config))


def test_it_learns_within_the_budget(finished):
    config, result = finished
    assert result.accuracy > 0.8
    assert [row["epoch"] for row in result.history] == [1, 2, 3]
    spent = [row["epsilon"] for row in result.history]
    assert spent == sorted(spent) and 0 < spent[0]
    assert spent[-1] == pytest.approx(result.epsilon)
    # Calibration leaves nothing worth mentioning of the budget.
    assert 0.99 * config.epsilon < result.epsilon <= config.epsilon


def test_everything_is_written(finished):
    config, result = finished
    assert result.paths["statement"].read_text() == result.statement
    assert "Poisson sampling at rate 0.25" in result.statement
    assert f"over {EXAMPLES} examples for 12 steps" in result.statement
    assert "SEEDED" not in result.statement
    written = checkpoints.read_history(result.paths["history"])
    assert written == list(result.history)
    settings = json.loads((config.folder / "settings.json").read_text())
    assert settings == config.settings
    kept = sorted(p.name for p in result.paths["checkpoints"].iterdir())
    assert kept == ["epoch-00002", "epoch-00003"]


def test_the_saved_model_is_an_ordinary_one_with_the_accuracy(finished):
    _, result = finished
    model = keras.models.load_model(result.paths["model"])
    assert type(model) is keras.Sequential
    assert not model.compiled
    _, (x, y) = _synthetic()
    predicted = np.argmax(model.predict(x, verbose=0), axis=-1)
    assert np.mean(predicted == y) == pytest.approx(result.accuracy)


def test_the_plot_is_a_picture_of_both_curves(finished):
    _, result = finished
    picture = matplotlib.image.imread(result.paths["plot"])
    assert picture.shape[0] > 500 and picture.shape[1] > 700
    for color in (plots._BLUE, plots._ORANGE):
        rgb = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        near = np.all(np.abs(picture[..., :3] - rgb) < 0.02, axis=-1)
        assert np.count_nonzero(near) > 300


def test_the_report_names_accuracy_epsilon_and_paths(finished):
    config, result = finished
    text = training.report(result, config)
    assert text.startswith(result.statement)
    assert f"{100 * result.accuracy:.2f} %" in text
    (printed,) = re.findall(r"Epsilon +([0-9.]+) at delta 0.0001 \(RDP", text)
    assert result.epsilon <= float(printed) < result.epsilon + 1e-4
    assert all(str(path) in text for path in result.paths.values())


def test_a_finished_training_is_reported_and_not_repeated(finished):
    config, result = finished
    result.paths["statement"].unlink()
    again = training.prepare(config)
    assert again.epochs_done == config.epochs
    repeated = training.run(again)
    assert repeated == result
    assert repeated.paths["statement"].read_text() == result.statement


def test_other_settings_do_not_take_over_a_folder(finished):
    config, _ = finished
    other = dataclasses.replace(config, epochs=4, delta=1e-5)
    with pytest.raises(ValueError, match="--delta was 0.0001 and is 1e-05"):
        training.prepare(other)
    assert checkpoints.latest(config.folder / "checkpoints").epoch == 3


def test_without_noise_epsilon_is_infinite_everywhere(tmp_path):
    config = _config(tmp_path, epsilon=None, noise_multiplier=0.0, epochs=1)
    result = training.run(training.prepare(config))
    assert math.isinf(result.epsilon)
    assert "infinite at delta" in training.report(result, config)
    assert matplotlib.image.imread(result.paths["plot"]).size


def test_views_and_averages_are_switched_on_by_flags(tmp_path):
    config = _config(tmp_path, epochs=2, multiplicity=2, weight_averaging=0.9)
    begun = training.prepare(config)
    result = training.run(begun)
    assert "2 views of each example" in " ".join(result.statement.split())
    averaged = begun.network.classifier.get_weights()
    with begun.averaging.live():
        live = begun.network.classifier.get_weights()
    assert not np.array_equal(averaged[0], live[0])
    # Finished: the averages are what is given away.
    again = training.prepare(config)
    assert training.run(again) == result
    for a, b in zip(
        again.network.classifier.get_weights(), averaged, strict=True
    ):
        np.testing.assert_array_equal(a, b)
    # Resumed: the training goes on from its own weights.
    resumed = training.prepare(dataclasses.replace(config, output_dir=None))
    checkpoint = checkpoints.latest(config.folder / "checkpoints")
    checkpoint.restore(resumed.network.classifier)
    for a, b in zip(
        resumed.network.classifier.get_weights(), live, strict=True
    ):
        np.testing.assert_array_equal(a, b)
    with pytest.raises(ValueError, match="features of each image once"):
        _config(tmp_path, model="scattering", multiplicity=2)


def test_a_seed_repeats_a_run_and_is_confessed(tmp_path):
    def train(name):
        config = _config(
            tmp_path / name,
            seed=7,
            epochs=1,
            epsilon=None,
            noise_multiplier=1.0,
        )
        return training.run(training.prepare(config))

    first, second = train("first"), train("second")
    assert first.history == second.history
    assert "SEEDED" in first.statement


def test_what_is_left_of_a_seeded_run_draws_other_batches():
    seeds = [training._sampling_seed(7, epoch) for epoch in range(5)]
    assert len(set(seeds)) == 5
    assert training._sampling_seed(None, 3) is None
    # A finished or resumed run must agree with itself.
    assert seeds == [training._sampling_seed(7, epoch) for epoch in range(5)]


# Checkpoints and kills.


def _model():
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    tf_dpfp.make_private(model)
    optimizer = tf_dpfp.DPAdam(0.1, noise_multiplier=1.0)
    model.compile(optimizer=optimizer, loss="mse")
    return model


def _values(model):
    """Weights and optimizer state, without the ledger's own layout."""
    variables = model.variables + model.optimizer.variables
    return [v.numpy() for v in variables if "privacy" not in v.path]


def test_a_checkpoint_brings_back_weights_state_and_ledger(tmp_path):
    x, y = np.ones((8, 2), "float32"), np.ones((8, 1), "float32")
    model = _model()
    batches = tf_dpfp.poisson_batches(x, y, expected_batch_size=2)
    model.fit(batches, epochs=2, verbose=0)
    saved = checkpoints.save(tmp_path, model, [{"epoch": 1}, {"epoch": 2}])
    assert checkpoints.latest(tmp_path) == saved
    restored = _model()
    saved.restore(restored)
    assert list(tf_dpfp.ledger(restored)) == list(tf_dpfp.ledger(model))
    assert tf_dpfp.ledger(restored)[0].steps == 8
    for mine, theirs in zip(_values(restored), _values(model), strict=True):
        np.testing.assert_array_equal(mine, theirs)


def test_a_checkpoint_cut_short_does_not_count(tmp_path):
    model = _model()
    model.optimizer.build(model.trainable_variables)
    checkpoints.save(tmp_path, model, [{"epoch": 1}])

    def die(path):
        raise KeyboardInterrupt

    model.save_weights = die
    rows = [{"epoch": 1}, {"epoch": 2}]
    with pytest.raises(KeyboardInterrupt):
        checkpoints.save(tmp_path, model, rows)
    assert checkpoints.latest(tmp_path).epoch == 1
    del model.save_weights
    # What was left behind is in nobody's way.
    assert checkpoints.save(tmp_path, model, rows).epoch == 2
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["epoch-00001", "epoch-00002"]


def test_an_interruption_says_how_to_go_on(monkeypatch, tmp_path, capsys):
    config = _config(tmp_path)
    monkeypatch.setattr(commands, "read_flags", lambda *_: config)

    def interrupted(prepared):
        raise KeyboardInterrupt

    monkeypatch.setattr(training, "run", interrupted)
    program = runpy.run_module("examples.trainers.train")
    assert program["main"](["train"]) == 130
    assert f"saved in {config.folder}" in capsys.readouterr().err


_PROGRAM = """
    import sys, time
    sys.path[:0] = [{root!r}, {here!r}]
    import keras
    import train_test
    from examples.trainers import datasets, training
    from examples.trainers.training import Config
    datasets.load = train_test._synthetic

    class Slow(keras.callbacks.Callback):
        # The second epoch hangs, so that the kill comes in its middle.
        def on_train_batch_end(self, batch, logs=None):
            if self.epoch == 1 and batch == 1:
                print("hanging", flush=True)
                time.sleep(600)

        def on_epoch_begin(self, epoch, logs=None):
            self.epoch = epoch

    prepared = training.prepare({config!r})
    model = prepared.network.classifier
    fit = model.fit

    def slow_fit(*args, callbacks, **kwargs):
        return fit(*args, callbacks=[*callbacks, Slow()], **kwargs)

    object.__setattr__(model, "fit", slow_fit)
    training.run(prepared)
"""


def test_a_killed_training_resumes_with_its_ledger(tmp_path):
    config = _config(tmp_path / "out", seed=3)
    program = textwrap.dedent(_PROGRAM).format(
        root=str(ROOT), here=str(ROOT / "tests" / "examples"), config=config
    )
    log = tmp_path / "log"
    log.write_text("")
    process = programs.start(["-c", program], log)
    try:
        deadline = time.monotonic() + 300
        while "hanging" not in log.read_text():
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.1)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == -signal.SIGKILL
    assert not (config.folder / "model.keras").exists()

    resumed = training.prepare(config)
    model = resumed.network.classifier
    assert resumed.epochs_done == 1
    (entry,) = tf_dpfp.ledger(model)
    # Four steps an epoch; the two of the second epoch were never released.
    assert entry.steps == 4
    assert entry.sampling == accounting.PoissonSampling(0.25)
    result = training.run(resumed)
    (entry,) = tf_dpfp.ledger(model)
    assert entry.steps == 12
    assert int(model.optimizer.iterations.numpy()) == 12
    assert [row["epoch"] for row in result.history] == [1, 2, 3]
    expected = accounting.compute_epsilon([entry], config.delta)
    assert result.history[-1]["epsilon"] == pytest.approx(expected)
    assert result.epsilon == pytest.approx(expected)
    assert 0.99 * config.epsilon < expected <= config.epsilon
    assert "for 12 steps" in result.statement


_REPLICATED = """
    import sys
    sys.path[:0] = [{root!r}, {here!r}]
    import train_test
    from examples.trainers import datasets, training
    from examples.trainers.training import Config
    datasets.load = train_test._synthetic
    training.run(training.prepare({config!r}))
"""


def test_replicas_change_no_result(tmp_path):
    one = _config(
        tmp_path / "one", seed=4, epochs=1, epsilon=None, noise_multiplier=1.0
    )
    two = dataclasses.replace(
        one,
        output_dir=str(tmp_path / "two"),
        strategy="mirrored",
        num_logical_cpus=2,
    )
    assert two.settings == one.settings
    expected = training.run(training.prepare(one))
    program = textwrap.dedent(_REPLICATED).format(
        root=str(ROOT), here=str(ROOT / "tests" / "examples"), config=two
    )
    programs.run(["-c", program], tmp_path, check=True)
    model = keras.models.load_model(tmp_path / "two" / "model.keras")
    assert type(model) is keras.Sequential
    statements = [
        (tmp_path / name / "statement.txt").read_text()
        for name in ("one", "two")
    ]
    assert statements[0] == statements[1] == expected.statement


def test_workers_keep_to_folders_of_their_own(monkeypatch):
    cluster = {"worker": ["localhost:1", "localhost:2"]}
    folders = set()
    for index in range(2):
        task = {"type": "worker", "index": index}
        config = json.dumps({"cluster": cluster, "task": task})
        monkeypatch.setenv("TF_CONFIG", config)
        config = training.Config(model="cnn", strategy="multi_worker")
        folders.add(config.folder)
    assert {folder.name for folder in folders} == {"worker-0", "worker-1"}
    one = training.Config(model="cnn")
    assert {folder.parent for folder in folders} == {one.folder}


# The command.


def test_the_command_refuses_in_one_line(tmp_path):
    given = "--epsilon=3", "--noise_multiplier=1", "--output_dir=out"
    done = programs.run(
        ["-m", "examples.trainers.train", *given],
        tmp_path,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 2
    assert "error: Give one of --epsilon and --noise_multiplier" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()


def test_every_setting_has_a_flag(monkeypatch):
    from absl import flags

    values = flags.FlagValues()
    # In place of the process's own, which other programs define flags on.
    program = runpy.run_path(str(ROOT / "examples" / "trainers" / "train.py"))
    for name in ("string", "enum", "float", "integer"):
        define = getattr(flags, f"DEFINE_{name}")
        monkeypatch.setattr(
            flags,
            f"DEFINE_{name}",
            lambda *args, _define=define: _define(*args, flag_values=values),
        )
    program["_define_flags"]()
    values.mark_as_parsed()
    fields = {f.name: f.default for f in dataclasses.fields(training.Config)}
    given = {name: values[name].value for name in fields}
    assert given == fields
