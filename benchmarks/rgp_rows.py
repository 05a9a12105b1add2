"""The rows that `benchmarks.rgp_table` writes, and the table made of them."""

import statistics
from collections.abc import Iterator


def summary(rows: list[dict]) -> Iterator[str]:
    """Lines of a Markdown table: mean and standard deviation by kind.

    Args:
        rows: What trainings printed, of any number of tasks.

    Yields:
        The lines.
    """
    columns = sorted({(r["task"], r["epsilon"]) for r in rows})
    titles = [f"{task}, epsilon {epsilon:g}" for task, epsilon in columns]
    yield "| " + " | ".join(["method", *titles]) + " |"
    yield "|---" * (1 + len(columns)) + "|"
    kinds = dict.fromkeys(map(_kind, rows))
    for kind in kinds:
        cells = [
            _cell(
                [
                    r["accuracy"]
                    for r in rows
                    if _kind(r) == kind and (r["task"], r["epsilon"]) == column
                ]
            )
            for column in columns
        ]
        yield "| " + " | ".join([kind, *cells]) + " |"


def best_rates(rows: list[dict]) -> dict[tuple, float]:
    """Chooses the learning rate of each method on held-out examples.

    Args:
        rows: What trainings printed that held examples out, at any budgets.

    Returns:
        By task, method or source of carriers, and rank: the rate of the best
        mean accuracy.

    Raises:
        ValueError: If a row was tested on the test set.
    """
    found: dict[tuple, dict[float, list[float]]] = {}
    for row in rows:
        if not row["held_out"]:
            raise ValueError(
                "Learning rates are chosen on examples that are held out. "
                f"Received: a row of task {row['task']!r}, method "
                f"{row['method']!r}, with held_out=0."
            )
        key = row["task"], row["source"] or row["method"], row["rank"]
        rates = found.setdefault(key, {})
        rates.setdefault(row["learning_rate"], []).append(row["accuracy"])
    return {
        key: max(rates, key=lambda rate: statistics.mean(rates[rate]))
        for key, rates in found.items()
    }


def _kind(row: dict) -> str:
    words = [row["method"].replace("_", " ")]
    if row["rank"] is not None:
        words = [row["source"], f"rank {row['rank']}"]
    words += [w for w in ("left_only", "kernels_only") if row[w]]
    return ", ".join(words)


def _cell(accuracies: list[float]) -> str:
    if not accuracies:
        return ""
    percent = [100.0 * a for a in accuracies]
    mean = f"{statistics.mean(percent):.2f}"
    if len(percent) == 1:
        return mean
    return f"{mean} ± {statistics.stdev(percent):.2f}"
