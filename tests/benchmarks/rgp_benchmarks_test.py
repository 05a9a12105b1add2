"""What the tables and studies of low-rank carriers compute."""

import dataclasses

import numpy as np
import pytest
import tensorflow as tf

from benchmarks import carrier_energy
from benchmarks import rgp_rows
from benchmarks import rgp_tasks
from benchmarks import rgp_training
from tf_dpfp import low_rank
from tf_dpfp import per_example

ROWS, COLUMNS, RANK = 8, 6, 2


def _carriers(left_only):
    rng = np.random.default_rng(0)
    left, right = (
        tf.constant(np.linalg.qr(rng.normal(size=(size, RANK)))[0], tf.float32)
        for size in (ROWS, COLUMNS)
    )
    return low_rank.Carriers(left, None if left_only else right)


@pytest.mark.parametrize("left_only", [False, True])
def test_what_is_kept_is_what_a_step_makes_of_a_gradient(left_only):
    carriers = _carriers(left_only)
    rng = np.random.default_rng(1)
    matrix = rng.normal(size=(ROWS, COLUMNS)).astype(np.float32)
    view = low_rank.MatrixView((ROWS, COLUMNS), (0, 1), 1)
    gradient = per_example.PerExampleTensor(tf.constant(matrix[None]))
    released = low_rank.project(gradient, carriers, view).weighted_sum(
        tf.ones([1])
    )
    np.testing.assert_allclose(
        carrier_energy.kept(matrix, carriers),
        low_rank.reconstruct(released, carriers, view),
        atol=1e-5,
    )


@pytest.mark.parametrize("left_only", [False, True])
def test_noise_has_the_energy_that_is_said(left_only):
    carriers = _carriers(left_only)
    view = low_rank.MatrixView((ROWS, COLUMNS), (0, 1), 1)
    size = RANK * (COLUMNS + (0 if left_only else ROWS))
    # The energy that unit noise has on average is that of the unit vectors.
    energy = sum(
        np.sum(np.square(low_rank.reconstruct(unit, carriers, view)))
        for unit in tf.eye(size)
    )
    said = carrier_energy.noise_dimensions((ROWS, COLUMNS), carriers)
    assert energy == pytest.approx(said, rel=1e-5)


def _row(accuracy, **changes):
    row = dict(
        task="mlp",
        method="rgp",
        source="history",
        rank=4,
        epsilon=3.0,
        accuracy=accuracy,
        left_only=False,
        kernels_only=False,
    )
    return {**row, **changes}


def test_the_summary_has_mean_and_spread_by_kind_task_and_epsilon():
    flat = dict(method="flat", source=None, rank=None)
    rows = [
        _row(0.8, **flat),
        _row(0.7),
        _row(0.72),
        _row(0.9, epsilon=8.0),
    ]
    assert list(rgp_rows.summary(rows)) == [
        "| method | mlp, epsilon 3 | mlp, epsilon 8 |",
        "|---|---|---|",
        "| flat | 80.00 |  |",
        "| history, rank 4 | 71.00 ± 1.41 | 90.00 |",
    ]


def _trial(rate, accuracy, **changes):
    return _row(accuracy, learning_rate=rate, held_out=500, **changes)


def test_each_method_gets_the_rate_that_is_best_for_it():
    flat = dict(method="flat", source=None, rank=None)
    rows = [
        _trial(0.01, 0.7),
        _trial(0.1, 0.8),
        _trial(0.1, 0.4, epsilon=8.0),
        _trial(0.01, 0.6, **flat),
        _trial(0.1, 0.9, **flat),
    ]
    assert rgp_rows.best_rates(rows) == {
        ("mlp", "history", 4): 0.01,
        ("mlp", "flat", None): 0.1,
    }
    with pytest.raises(ValueError, match="held out"):
        rgp_rows.best_rates([{**rows[0], "held_out": 0}])


def test_what_is_held_out_is_tested_and_not_trained_with():
    x = {"a": np.arange(5), "b": np.arange(10).reshape(5, 2)}
    data = (x, np.arange(5)), (x, np.arange(5))
    settings = rgp_training.Settings(
        *("text", "flat", None, None, 3.0, 1, 1, 0.1, 0.1, None, False, False)
    )
    assert rgp_training.split(settings, data) is data
    held_out = dataclasses.replace(settings, held_out=2)
    (_, y), (x_test, y_test) = rgp_training.split(held_out, data)
    np.testing.assert_array_equal(y, [0, 1, 2])
    np.testing.assert_array_equal(y_test, [3, 4])
    np.testing.assert_array_equal(x_test["b"], [[6, 7], [8, 9]])


def test_only_kernels_and_the_head_are_left_to_train():
    model = rgp_tasks.mlp()
    rgp_tasks.freeze_all_but_kernels(model)
    paths = [v.path.split("/")[-2:] for v in model.trainable_variables]
    assert [name for _, name in paths] == ["kernel"] * 3 + ["bias"]
    assert paths[-1] == [rgp_tasks.HEAD, "bias"]


@pytest.mark.parametrize("tokens", [1, 7])
def test_the_cut_text_model_is_the_top_of_the_whole_one(monkeypatch, tokens):
    keras_hub = pytest.importorskip("keras_hub")
    backbone = keras_hub.models.BertBackbone(
        vocabulary_size=50,
        num_layers=rgp_tasks.BLOCKS,
        num_heads=12,
        hidden_dim=rgp_tasks.WIDTH,
        intermediate_dim=4 * rgp_tasks.WIDTH,
        max_sequence_length=rgp_tasks.TOKENS,
        dropout=0.0,
    )
    rng = np.random.default_rng(0)
    for variable in backbone.trainable_variables:
        noise = rng.normal(size=variable.shape)
        variable.assign(variable + 0.1 * noise)
    monkeypatch.setattr(rgp_tasks.minilm, "backbone", lambda: backbone)
    mask = np.arange(rgp_tasks.TOKENS)[None] < tokens
    inputs = {
        "token_ids": rng.integers(0, 50, mask.shape),
        "segment_ids": np.zeros(mask.shape, "int32"),
        "padding_mask": mask.astype("int32"),
    }
    hidden = rgp_tasks.below_top().predict(inputs, verbose=0)
    model = rgp_tasks.text_classifier()
    head = model.layers[-1]
    given = {"hidden": hidden, "padding_mask": inputs["padding_mask"]}
    whole = backbone.predict(inputs, verbose=0)["sequence_output"][:, 0]
    np.testing.assert_allclose(
        model.predict(given, verbose=0), head(whole), rtol=1e-3, atol=1e-4
    )
