"""Audits of every way to train, and of bugs that are planted for it.

    python -m benchmarks.audit_study
    python -m benchmarks.audit_study --parts=bugs --bug_runs=200
    python -m benchmarks.audit_study --plots=docs

Four parts: steps under the sharpest canary, which must not be refuted; the same
with a bug planted, which must be; forward propagation as published, which must
be, too; networks trained once with many canaries, scored by their loss. One
JSON object for each audit. With `--plots`,
the pictures of docs/auditing.md are drawn into a directory.
"""

import json
import pathlib
import time
import warnings

import keras
import numpy as np
from absl import app
from absl import flags

import tf_dpfp
from benchmarks import audit_cases
from benchmarks import forward_cases
from benchmarks import planted_bugs
from tf_dpfp import auditing

_PARTS = flags.DEFINE_list(
    "parts", ["steps", "bugs", "published", "networks"], "Parts of the study."
)
_RUNS = flags.DEFINE_integer("runs", 4000, "Runs with the canary, sound steps.")
_BUG_RUNS = flags.DEFINE_integer(
    "bug_runs", 1000, "The same, planted bugs and published forms."
)
_CANARIES = flags.DEFINE_integer("canaries", 1000, "Canaries of a network.")
_SEED = flags.DEFINE_integer("seed", 1, "Of coins, noise and batches.")
_PLOTS = flags.DEFINE_string("plots", None, "Directory for pictures.")

_DELTA = 1e-5


# Part, case, file and title.
_AUDIT_PLOTS = [
    (
        "steps",
        "DP-SGD, flat",
        "audit_sound.png",
        "DP-SGD, one step, noise as accounted for",
    ),
    (
        "bugs",
        "noise halved",
        "audit_bug.png",
        "The same step, half of the noise",
    ),
    (
        "published",
        "DP-FP as published, label gap",
        "audit_published.png",
        "DP-FP as published: the labels",
    ),
]


def _row(part: str, name: str, report: auditing.AuditReport, **more) -> dict:
    return {
        "part": part,
        "name": name,
        "method": report.method,
        "scores": len(report.scores),
        "bounds": [
            {
                "delta": point.delta,
                "lower_bound": round(point.lower_bound, 3),
                "claimed": None
                if point.claimed_epsilon is None
                else round(point.claimed_epsilon, 3),
            }
            for point in report.points
        ],
        "refuted": report.refuted,
        **more,
    }


def _print(row: dict) -> dict:
    print(json.dumps(row), flush=True)
    return row


def _audit_each(part: str, cases: dict, runs: int) -> dict:
    reports = {}
    for name, case in cases.items():
        start = time.perf_counter()
        reports[name] = case(runs, seed=_SEED.value)
        seconds = round(time.perf_counter() - start, 1)
        _print(_row(part, name, reports[name], seconds=seconds))
    return reports


def _steps() -> dict[str, auditing.AuditReport]:
    cases = {**audit_cases.SOUND, **forward_cases.SOUND}
    return _audit_each("steps", cases, _RUNS.value)


def _published() -> dict[str, auditing.AuditReport]:
    return _audit_each("published", forward_cases.PUBLISHED, _BUG_RUNS.value)


def _bugs() -> dict[str, auditing.AuditReport]:
    reports = {}
    for name, case in audit_cases.TELLTALE.items():
        start = time.perf_counter()
        without = case(_BUG_RUNS.value, seed=_SEED.value)
        with planted_bugs.BUGS[name]():
            reports[name] = case(_BUG_RUNS.value, seed=_SEED.value)
        seconds = round(time.perf_counter() - start, 1)
        _print(
            _row(
                "bugs",
                name,
                reports[name],
                case=case.__name__,
                refuted_without_the_bug=without.refuted,
                seconds=seconds,
            )
        )
    return reports


_FEATURES, _CLASSES, _OTHERS, _EPOCHS, _RATE = 20, 4, 1000, 30, 0.1


def _optimizer(**settings):
    return tf_dpfp.DPSGD(
        2.0,
        l2_norm_clip=0.5,
        noise_multiplier=2.0,
        seed=_SEED.value,
        **settings,
    )


# Name: (optimizer, whether kernels go through low-rank carriers).
_NETWORKS = {
    "no privacy (Adam)": (lambda: keras.optimizers.Adam(0.01), False),
    "DP-SGD, flat": (_optimizer, False),
    "DP-SGD, per layer, adaptive": (
        lambda: _optimizer(clipping=tf_dpfp.PerLayer(thresholds="adaptive")),
        False,
    ),
    "RGP, rank 2": (_optimizer, True),
}


def _network_data() -> tuple:
    """Examples with labels, and canaries: random inputs, random labels."""
    # Not the generator of the coins.
    rng = np.random.default_rng(_SEED.value + 1)
    centres = rng.normal(size=(_CLASSES, _FEATURES))
    y = rng.integers(0, _CLASSES, _OTHERS)
    x = centres[y] + rng.normal(size=(_OTHERS, _FEATURES))
    canary_x = 2.0 * rng.normal(size=(_CANARIES.value, _FEATURES))
    return x, y, canary_x, rng.integers(0, _CLASSES, _CANARIES.value)


def _train_network(name: str, included: np.ndarray) -> tuple:
    """Scores of the canaries, and epsilon of the training."""
    make_optimizer, low_rank = _NETWORKS[name]
    keras.utils.set_random_seed(_SEED.value)
    model = keras.Sequential(
        [
            keras.Input((_FEATURES,)),
            keras.layers.Dense(256, "relu"),
            keras.layers.Dense(_CLASSES),
        ]
    )
    if low_rank:
        tf_dpfp.reparametrize(model, rank=2)
    optimizer = make_optimizer()
    private = isinstance(optimizer, tf_dpfp.DPSGD)
    if private:
        tf_dpfp.make_private(model)
    model.compile(
        optimizer,
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    data = _network_data()
    batches = tf_dpfp.poisson_batches(
        *auditing.insert_canaries(*data, included),
        sampling_rate=_RATE,
        seed=_SEED.value,
    )
    model.fit(batches, epochs=_EPOCHS, shuffle=False, verbose=0)
    claim = tf_dpfp.compute_epsilon(model, _DELTA, "pld") if private else np.inf
    return -auditing.example_losses(model, *data[2:]), claim


def _networks() -> dict[str, auditing.AuditReport]:
    reports = {}
    for name in _NETWORKS:
        start = time.perf_counter()
        # One run with its coins, audited by the scores.
        rng = np.random.default_rng(_SEED.value)
        included = rng.integers(0, 2, _CANARIES.value).astype(bool)
        scores, claim = _train_network(name, included)
        reports[name] = auditing.audit_scores(
            scores,
            included,
            method="one_run",
            delta=_DELTA,
            claimed_epsilon=claim,
        )
        curve = _curve(reports[name])
        _print(
            _row(
                "networks",
                name,
                reports[name],
                area=round(curve.area, 3),
                true_positives_at_1_percent=round(
                    curve.true_positive_rate_at(0.01), 4
                ),
                seconds=round(time.perf_counter() - start, 1),
            )
        )
    return reports


def _curve(report: auditing.AuditReport) -> auditing.RocCurve:
    return auditing.roc_curve(
        report.scores[report.included], report.scores[~report.included]
    )


def main(argv: list[str]) -> None:
    """Prints one JSON object for each audit."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {argv[1:]}")
    # Of adaptive thresholds with batches of five: expected here.
    warnings.filterwarnings("ignore", message="The fractions that adaptive")
    parts = {
        "steps": _steps,
        "bugs": _bugs,
        "published": _published,
        "networks": _networks,
    }
    found = {part: parts[part]() for part in _PARTS.value}
    if not _PLOTS.value:
        return
    directory = pathlib.Path(_PLOTS.value)
    for part, case, name, title in _AUDIT_PLOTS:
        if part in found:
            auditing.plot_audit(directory / name, found[part][case], title)
    if "networks" in found:
        auditing.plot_roc(
            directory / "audit_roc.png",
            {n: _curve(report) for n, report in found["networks"].items()},
            "Which canaries were in? By their loss",
        )


if __name__ == "__main__":
    app.run(main)
