"""The picture of a private training: accuracy and epsilon by epoch."""

import math
import pathlib
from collections.abc import Sequence

import matplotlib.figure
from matplotlib import ticker

_BLUE = "#1f5fa8"
_ORANGE = "#c8501e"
_GREY = "#6b6b6b"


def training_plot(
    path: pathlib.Path,
    history: Sequence[dict[str, float]],
    title: str,
    subtitle: str = "",
    budget: float | None = None,
) -> None:
    """Draws test accuracy and epsilon against epochs, as PNG.

    Args:
        path: Where to.
        history: Rows with `"epoch"`, `"val_accuracy"` and `"epsilon"`.
        title: First line above the plot.
        subtitle: Second line, smaller.
        budget: The epsilon that the training may not exceed, if there is one.
    """
    epochs = [row["epoch"] for row in history]
    accuracy = [100.0 * row["val_accuracy"] for row in history]
    epsilon = [row["epsilon"] for row in history]
    # Not by pyplot: no display, and no state shared with the caller's plots.
    figure = matplotlib.figure.Figure(figsize=(7.2, 6.0), dpi=150)
    upper, lower = figure.subplots(
        2, sharex=True, gridspec_kw={"height_ratios": [3, 2]}
    )
    _draw(upper, epochs, accuracy, _BLUE, f"{accuracy[-1]:.2f} %")
    upper.set_ylabel("Test accuracy (%)")
    upper.set_ylim(*_accuracy_limits(accuracy))
    upper.yaxis.set_major_locator(ticker.MaxNLocator(6, steps=[1, 2, 5, 10]))
    lower.set_ylabel("Epsilon spent")
    lower.set_xlabel("Epoch")
    lower.xaxis.set_major_locator(
        ticker.MaxNLocator(integer=True, steps=[1, 2, 5, 10])
    )
    _draw_epsilon(lower, epochs, epsilon, budget)
    # Room on the right for the last value.
    lower.set_xlim(0, max(epochs) * 1.13)
    figure.subplots_adjust(
        left=0.11, right=0.97, top=0.87, bottom=0.09, hspace=0.12
    )
    figure.text(0.11, 0.945, title, fontsize=13, fontweight="bold")
    figure.text(0.11, 0.905, subtitle, fontsize=9.5, color=_GREY)
    figure.savefig(path)


def _draw_epsilon(axes, epochs, epsilon, budget: float | None) -> None:
    if not math.isfinite(epsilon[-1]):
        axes.set_yticks([])
        axes.text(
            *(0.5, 0.5),
            "infinite: no noise was added",
            ha="center",
            va="center",
            color=_ORANGE,
            transform=axes.transAxes,
        )
        return
    _draw(axes, epochs, epsilon, _ORANGE, f"{epsilon[-1]:.3g}")
    top = max(epsilon[-1], budget or 0.0)
    axes.set_ylim(0, 1.25 * top)
    if budget is not None:
        axes.plot(
            *([0, epochs[-1]], [budget, budget]),
            color=_GREY,
            linewidth=1,
            linestyle=(0, (4, 3)),
        )
        axes.annotate(
            f"budget {budget:g}",
            (0, budget),
            xytext=(6, 4),
            textcoords="offset points",
            fontsize=9,
            color=_GREY,
        )


def _draw(axes, epochs, values, color: str, label: str) -> None:
    axes.plot(epochs, values, color=color, linewidth=2)
    axes.plot(epochs[-1:], values[-1:], "o", color=color, markersize=5)
    axes.annotate(
        label,
        (epochs[-1], values[-1]),
        xytext=(8, 0),
        textcoords="offset points",
        va="center",
        fontsize=10,
        fontweight="bold",
        color=color,
    )
    axes.grid(axis="y", color="#e3e3e3", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _accuracy_limits(accuracy: Sequence[float]) -> tuple[float, float]:
    """Leaves out the first epochs' climb, where what follows would be flat."""
    middle = sorted(accuracy)[len(accuracy) // 4]
    room = max(2.0, 1.5 * (max(accuracy) - middle))
    return max(0.0, max(accuracy) - 2.0 * room), min(
        100.0, max(accuracy) + 0.25 * room
    )
