"""Plots of audits. They need matplotlib (`pip install tf_dpfp[plot]`)."""

import pathlib
from collections.abc import Mapping

import numpy as np

from tf_dpfp.auditing.audits import AuditPoint
from tf_dpfp.auditing.audits import AuditReport
from tf_dpfp.auditing.membership import RocCurve

_COLORS = ("#1f5fa8", "#c8501e", "#2f8f5b", "#8a4fa3", "#8c6d1f")
_GREY = "#6b6b6b"


def plot_roc(
    path: str | pathlib.Path,
    curves: Mapping[str, RocCurve],
    title: str = "Membership inference",
) -> None:
    """Draws ROC curves with logarithmic axes, to show low false positive rates.

    Args:
        path: Path of the PNG file to write.
        curves: Curves by name.
        title: Title of the plot.

    Raises:
        ImportError: If matplotlib is not installed.
    """
    figure, axes = _figure(title)
    least = 1.0
    for color, (name, curve) in zip(_cycle(), curves.items(), strict=False):
        axes.step(
            curve.false_positive_rate,
            curve.true_positive_rate,
            where="post",
            color=color,
            linewidth=1.8,
            label=f"{name} (area {curve.area:.3f})",
        )
        least = min(least, 1.0 / curve.non_members, 1.0 / curve.members)
    diagonal = np.geomspace(least, 1.0, 50)
    axes.plot(
        diagonal,
        diagonal,
        color=_GREY,
        linewidth=1,
        linestyle=(0, (4, 3)),
        label="guessing",
    )
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlim(least, 1.0)
    axes.set_ylim(least, 1.0)
    axes.set_xlabel("False positive rate")
    axes.set_ylabel("True positive rate")
    axes.legend(frameon=False, fontsize=9)
    figure.savefig(path)


def plot_audit(
    path: str | pathlib.Path, report: AuditReport, title: str = "Audit"
) -> None:
    """Draws the scores of an audit, and writes its bounds beside the claims.

    Args:
        path: Path of the PNG file to write.
        report: Result of the audit.
        title: Title of the plot.

    Raises:
        ImportError: If matplotlib is not installed.
    """
    figure, axes = _figure(title)
    inside = report.scores[report.included]
    outside = report.scores[~report.included]
    edges = np.histogram_bin_edges(report.scores, bins=40)
    for color, name, values in (
        (_COLORS[0], "without the canary", outside),
        (_COLORS[1], "with the canary", inside),
    ):
        axes.hist(values, edges, color=color, alpha=0.55, label=name)
    axes.set_xlabel("Score")
    axes.set_ylabel("Runs" if report.method == "many_runs" else "Canaries")
    axes.set_ylim(0, 1.25 * axes.get_ylim()[1])
    axes.legend(frameon=False, fontsize=9, loc="upper right")
    axes.text(
        0.02,
        0.97,
        "\n".join(map(_in_words, report.points)),
        transform=axes.transAxes,
        va="top",
        fontsize=9,
        color=_GREY,
    )
    figure.savefig(path)


def _in_words(point: AuditPoint) -> str:
    bound = np.floor(point.lower_bound * 100) / 100
    words = f"delta {point.delta:g}: epsilon >= {bound:.2f}"
    if point.claimed_epsilon is not None:
        words += f", claimed {point.claimed_epsilon:.3g}"
    return words + " - REFUTED" * point.refuted


def _figure(title: str):
    try:
        # Not by pyplot: no display, and no state shared with other plots.
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(
            "Plots need matplotlib, which is not installed: pip install "
            "tf_dpfp[plot]."
        ) from error
    figure = Figure(figsize=(6.4, 4.6), dpi=110, layout="constrained")
    axes = figure.subplots()
    axes.set_title(title, loc="left", fontweight="bold")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="#e3e3e3", linewidth=0.8)
    axes.set_axisbelow(True)
    return figure, axes


def _cycle():
    while True:
        yield from _COLORS
