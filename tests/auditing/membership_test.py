import math
import sys

import keras
import numpy as np
import pytest

from tf_dpfp import auditing


def brute_force(members, others):
    """Every threshold, counted."""
    thresholds = [math.inf, *sorted({*members, *others}, reverse=True)]
    return (
        [np.mean([o >= t for o in others]) for t in thresholds],
        [np.mean([m >= t for m in members]) for t in thresholds],
    )


def test_the_curve_is_that_of_every_threshold():
    rng = np.random.default_rng(0)
    members, others = rng.integers(0, 9, 40), rng.integers(0, 7, 25)
    curve = auditing.roc_curve(members, others)
    fpr, tpr = brute_force(members, others)
    np.testing.assert_allclose(curve.false_positive_rate, fpr)
    np.testing.assert_allclose(curve.true_positive_rate, tpr)
    # The area is the chance that a member scores higher; ties count half.
    wins = np.sign(members[:, None] - others[None]) / 2 + 0.5
    assert curve.area == pytest.approx(np.mean(wins))
    assert curve.advantage == pytest.approx(np.max(np.subtract(tpr, fpr)))
    for rate in (0.0, 0.1, 0.5, 1.0):
        best = max(t for f, t in zip(fpr, tpr, strict=True) if f <= rate)
        assert curve.true_positive_rate_at(rate) == pytest.approx(best)


def test_scores_that_make_no_curve_are_refused():
    with pytest.raises(ValueError, match="0 members, 2 others"):
        auditing.roc_curve([], [1.0, 2.0])
    with pytest.raises(ValueError, match="1 of 3 scores are NaN"):
        auditing.roc_curve([math.nan], [1.0, 2.0])
    with pytest.raises(ValueError, match="false_positive_rate=2"):
        auditing.roc_curve([1.0], [2.0]).true_positive_rate_at(2)


def classifier(loss):
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((20,)),
            keras.layers.Dense(64, "relu"),
            keras.layers.Dropout(0.5),
            keras.layers.Dense(3),
        ]
    )
    model.compile(keras.optimizers.Adam(0.01), loss=loss)
    return model


def test_losses_are_those_of_batches_of_one_without_dropout():
    model = classifier(
        keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    )
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(9, 20)), rng.integers(0, 3, 9)
    weight = rng.random(9)
    found = auditing.example_losses(model, x, y, batch_size=4)
    expected = [
        model.evaluate(x[i : i + 1], y[i : i + 1], verbose=0) for i in range(9)
    ]
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    weighted = auditing.example_losses(model, x, y, weight)
    np.testing.assert_allclose(weighted, found * weight, rtol=1e-4)


def test_a_model_without_loss_is_refused():
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    with pytest.raises(ValueError, match="compiled without a loss"):
        auditing.membership_inference(
            model, (np.ones((1, 2)), [1]), (np.ones((1, 2)), [1])
        )


@pytest.fixture(scope="module")
def overfitted():
    """A model that knows random labels by heart, and who was in."""
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(400, 20)), rng.integers(0, 3, 400)
    model = classifier(
        keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    )
    before = auditing.membership_inference(
        model, (x[:100], y[:100]), (x[100:], y[100:])
    )
    model.fit(x[:100], y[:100], epochs=40, verbose=0)
    after = auditing.membership_inference(
        model, (x[:100], y[:100]), (x[100:], y[100:])
    )
    return before, after


def test_members_of_an_overfitted_model_are_found(overfitted):
    before, after = overfitted
    assert 0.4 < before.area < 0.6
    assert after.area > 0.9
    assert after.true_positive_rate_at(0.1) > 0.6
    assert "100 members and 300 others" in str(after)
    assert f"{after.true_positive_rate_at(0.01):.2%} at 1 %" in str(after)
    assert "at 0.1 %" not in str(after)


def test_a_loss_that_is_no_number_is_no_members():
    model = classifier("mse")
    x = np.zeros((4, 20), np.float32)
    y = np.zeros((4, 3), np.float32)
    x[0] = np.nan
    curve = auditing.membership_inference(model, (x[:1], y[:1]), (x, y))
    assert curve.true_positive_rate_at(0.9) == 0.0


def test_plots_are_drawn(overfitted, tmp_path):
    pytest.importorskip("matplotlib")
    before, after = overfitted
    auditing.plot_roc(tmp_path / "roc.png", {"before": before, "after": after})
    rng = np.random.default_rng(0)
    included = np.arange(100) < 50
    report = auditing.audit_scores(
        rng.normal(size=100) + 9 * included,
        included,
        method="many_runs",
        delta=(0.0, 0.1),
        claimed_epsilon=1.0,
    )
    auditing.plot_audit(tmp_path / "audit.png", report, "An audit")
    for name in ("roc.png", "audit.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")


def test_without_matplotlib_plots_say_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"pip install tf_dpfp\[plot\]"):
        auditing.plot_roc("roc.png", {})
