"""The privacy statement: the guarantee in words, and what it leaves out.

The wording follows `compute_dp_sgd_privacy_statement` of TensorFlow Privacy,
which reports the training that the caller describes; this one reports the
training that was recorded, and keeps what is proved apart from what is not.
"""

from collections.abc import Iterable, Sequence

from tf_dpfp.accounting import entries as entries_lib
from tf_dpfp.accounting import epsilon as epsilon_lib
from tf_dpfp.accounting import paragraphs as wording
from tf_dpfp.accounting import representation_statement
from tf_dpfp.accounting import table


def statement(
    entries: Iterable[entries_lib.LedgerEntry],
    delta: float,
    *,
    accountant: str = "rdp",
    population: int | None = None,
    seeded: bool = False,
    recorded: bool = True,
    objections: Sequence[str] = (),
    notes: Sequence[str] = (),
) -> str:
    """Writes the privacy statement of a training.

    Args:
        entries: What ran.
        delta: Probability with which the guarantee may fail, in (0, 1).
        accountant: `"rdp"` or `"pld"`.
        population: Number of examples, if it is known and may be told.
            Entries with `UnknownSampling` bring their own.
        seeded: Whether the noise or the sampling was drawn from a seed that
            the user chose; entries may say so themselves.
        recorded: Whether the entries were recorded while training. `False`
            for numbers that somebody gave: the statement then claims nothing
            about what ran.
        objections: Why the entries do not tell what was released: epsilon is
            infinite then. For noised representations, as `notes`.
        notes: What else there is to say.

    Returns:
        Plain text in paragraphs of 80 columns. Epsilons are rounded up.

    Raises:
        ValueError: If `delta`, `accountant` or `population` is out of range.

    Reference:
        - [How to DP-fy ML](https://arxiv.org/abs/2303.00654), section 5.3
    """
    epsilon_lib.check_delta(delta, accountant)
    if population is not None:
        # Held to the same rule as the sizes of the entries.
        population = entries_lib.UnknownSampling(population).population
    ran = [entry for entry in table.merge(entries) if entry.steps]
    if not ran and not objections:
        return (
            wording.fill("No training step has been recorded: epsilon is 0.")
            + "\n"
        )
    if objections or entries_lib.replaces_one(ran):
        return _statement_of_rows(
            ran, delta, population, seeded, objections, notes
        )
    paragraphs = _describe_training(ran, population, recorded)
    if any(entry.noise_multiplier == 0.0 for entry in ran):
        return "\n\n".join([*paragraphs, _no_privacy(ran)]) + "\n"
    paragraphs += [
        *_warn_delta(ran, delta, population),
        *_describe_guarantee(ran, delta, accountant),
        *_describe_sampling(ran, recorded),
        *_describe_seed(seeded or any(entry.seeded for entry in ran)),
        *_describe_limits(),
    ]
    return "\n\n".join(paragraphs) + "\n"


def _statement_of_rows(
    entries: Sequence[entries_lib.LedgerEntry],
    delta: float,
    population: int | None,
    seeded: bool,
    objections: Sequence[str],
    notes: Sequence[str],
) -> str:
    paragraphs = [
        representation_statement.describe_training(entries, population)
    ]
    claim = representation_statement.describe_claim(entries, delta)
    reasons = [*representation_statement.reasons(entries), *objections]
    if reasons:
        listed = [wording.fill(f"- {r}", hanging=2) for r in reasons]
        head = wording.fill(
            "NO PRIVACY: nothing about the training data is proved to be "
            "protected. Epsilon is infinite, for:"
        )
        return "\n\n".join(
            [*paragraphs, "\n".join([head, *listed]), *claim]
        ) + ("\n")
    paragraphs += [
        *_warn_delta(entries, delta, population),
        *representation_statement.describe_guarantee(entries, delta),
        *map(wording.fill, notes),
        *claim,
        *representation_statement.describe_sampling(entries),
        *_describe_seed(seeded or any(entry.seeded for entry in entries)),
        *_describe_limits(),
    ]
    return "\n\n".join(paragraphs) + "\n"


def _describe_training(
    entries: Sequence[entries_lib.LedgerEntry],
    population: int | None,
    recorded: bool,
) -> list[str]:
    total = sum(entry.steps for entry in entries)
    examples = "" if population is None else f" over {population} examples"
    verb = "performed" if recorded else "to be performed"
    lines = [f"DP-SGD {verb}{examples} for {_steps(total)}:"]
    lines += [
        wording.fill(
            f"{_steps(entry.steps)} with noise multiplier "
            f"{entry.noise_multiplier:g} and {_sampling_words(entry.sampling)}",
            indent=4,
        )
        for entry in entries
    ]
    paragraphs = ["\n".join(lines)]
    if not recorded:
        paragraphs.append(
            wording.fill(
                "These are given numbers, not the record of a training. What "
                "follows holds for a training that does exactly this."
            )
        )
    return paragraphs


def _sampling_words(sampling: entries_lib.Sampling) -> str:
    match sampling:
        case entries_lib.PoissonSampling():
            words = f"Poisson sampling at rate {sampling.sampling_rate:g}"
            if sampling.overflow_probability:
                words += (
                    ", each step dropping surplus examples with probability at "
                    f"most {sampling.overflow_probability:.3g}"
                )
            return words
        case entries_lib.UnknownSampling():
            words = "batches of unknown sampling"
            if sampling.batch_size is not None:
                words += f", {sampling.batch_size} examples each"
            if sampling.population is not None:
                words += f" out of {sampling.population}"
            return words
        case _:
            raise TypeError(f"Unknown kind of sampling: {sampling!r}.")


def _no_privacy(entries: Sequence[entries_lib.LedgerEntry]) -> str:
    bare = sum(e.steps for e in entries if e.noise_multiplier == 0.0)
    total = sum(entry.steps for entry in entries)
    return wording.fill(
        f"NO PRIVACY: {bare} of {_steps(total)} without noise (noise "
        "multiplier 0). Epsilon is infinite: nothing about the training data "
        "is protected."
    )


def _warn_delta(
    entries: Sequence[entries_lib.LedgerEntry],
    delta: float,
    population: int | None,
) -> list[str]:
    known = [size for size in (population, *map(_population, entries)) if size]
    if not known or delta < 1.0 / max(known):
        return []
    return [
        wording.fill(
            f"WARNING: delta = {delta} is not below one over the number of "
            f"examples ({max(known)}). At such a delta even the release of one "
            "random example in clear could be called private. Choose a delta "
            "well below it."
        )
    ]


def _describe_guarantee(
    entries: Sequence[entries_lib.LedgerEntry], delta: float, accountant: str
) -> list[str]:
    def epsilon(described: Sequence[entries_lib.LedgerEntry]) -> float:
        return epsilon_lib.compute_epsilon(described, delta, accountant)

    rows = [
        (
            "Epsilon without any assumption on the sampling:",
            [_without_sampling(entry) for entry in entries],
        )
    ]
    if not all(map(_is_unknown, entries)):
        rows.insert(0, ("Epsilon with the Poisson sampling above:", entries))
    head = wording.fill(
        "Example-level DP with add-or-remove-one adjacency at delta = "
        f"{delta} computed with {accountant.upper()} accounting, proved for "
        "the steps above:"
    )
    paragraphs = [
        wording.fill(
            "This privacy guarantee protects the release of all model "
            "checkpoints in addition to the final model: the trainable "
            "weights and the optimizer state after every step."
        ),
        "\n".join(
            [head, *(wording.row(label, epsilon(ran)) for label, ran in rows)]
        ),
    ]
    conditional = _conditional_rows(entries)
    if conditional:
        head = wording.fill(
            "Conditional figures, NOT proved for this training. They hold "
            "only if the condition is true of the input pipeline, which is not "
            "observed:"
        )
        paragraphs.append(
            "\n".join(
                [
                    head,
                    *(
                        wording.row(label, epsilon(then))
                        for label, then in conditional
                    ),
                ]
            )
        )
    paragraphs.append(
        wording.fill(
            "No user-level privacy guarantee is possible without a bound on "
            "the number of examples per user."
        )
    )
    return paragraphs


def _conditional_rows(
    entries: Sequence[entries_lib.LedgerEntry],
) -> list[tuple[str, list[entries_lib.LedgerEntry]]]:
    """Returns what would have run if the pipeline had been well-behaved."""
    unknown = [entry.sampling for entry in entries if _is_unknown(entry)]
    if not unknown or any(
        sampling.population is None or sampling.batch_size is None
        for sampling in unknown
    ):
        return []
    return [
        (
            "Epsilon if each example occurred at most once per epoch:",
            [_once_per_epoch(entry) for entry in entries],
        ),
        (
            "Epsilon if the batches had been Poisson-sampled (*):",
            [_as_if_poisson(entry) for entry in entries],
        ),
    ]


def _once_per_epoch(entry: entries_lib.LedgerEntry) -> entries_lib.LedgerEntry:
    """Keeps one release for each epoch begun.

    An epoch is taken as short as it can be, without its incomplete batch, so
    that no pipeline has begun more of them.
    """
    if not _is_unknown(entry):
        return entry
    sampling = entry.sampling
    steps_per_epoch = max(1, sampling.population // sampling.batch_size)
    return entries_lib.LedgerEntry(
        sampling, entry.noise_multiplier, -(-entry.steps // steps_per_epoch)
    )


def _as_if_poisson(entry: entries_lib.LedgerEntry) -> entries_lib.LedgerEntry:
    if not _is_unknown(entry):
        return entry
    rate = min(1.0, entry.sampling.batch_size / entry.sampling.population)
    return entries_lib.LedgerEntry(
        entries_lib.PoissonSampling(rate), entry.noise_multiplier, entry.steps
    )


def _without_sampling(
    entry: entries_lib.LedgerEntry,
) -> entries_lib.LedgerEntry:
    return entries_lib.LedgerEntry(
        entries_lib.UnknownSampling(), entry.noise_multiplier, entry.steps
    )


def _describe_sampling(
    entries: Sequence[entries_lib.LedgerEntry], recorded: bool
) -> list[str]:
    paragraphs = []
    if not all(map(_is_unknown, entries)):
        paragraphs.append(
            "Poisson sampling puts each example into each step independently "
            "of all others. "
            + (
                "It was performed, not assumed. "
                if recorded
                else "Shuffled batches do not do so. "
            )
            + "The figure needs the choice of examples to stay secret."
        )
    if any(_is_unknown(entry) for entry in entries):
        paragraphs.append(
            "Batches came from an ordinary input pipeline. What is proved for "
            "them lets every example be in every step, at most once in each; "
            "a pipeline that repeats an example within a batch is not covered."
        )
    if _conditional_rows(entries):
        paragraphs.append(
            "(*) Poisson sampling is not usually done in training pipelines. "
            "Shuffling is not Poisson sampling, and can be less private than "
            "this figure."
        )
    return [wording.fill(paragraph) for paragraph in paragraphs]


def _describe_seed(seeded: bool) -> list[str]:
    if not seeded:
        return []
    return [
        wording.fill(
            "SEEDED: the randomness came from a seed chosen by the user. "
            "Anyone who knows or guesses the seed can regenerate the noise "
            "and subtract it; the guarantee holds only towards those who "
            "cannot. Use a seed to reproduce experiments, and none for a "
            "release."
        )
    ]


def _describe_limits() -> list[str]:
    bullets = [
        "training metrics and losses, shown or logged, which are computed "
        "from the training data without noise;",
        "the choice of hyper-parameters, if it looked at trainings on the "
        "same data;",
        "early stopping, or keeping the best checkpoint, by a metric of the "
        "training data;",
        "preprocessing adapted to the data (Normalization statistics, "
        "vocabularies, lookups);",
        "the number of examples, which the sampling rate and this statement "
        "may reveal;",
        "data seen before this training, such as that of pretrained weights;",
        "other trainings or releases from the same data, whose epsilons and "
        "deltas add to these;",
        "attacks on the rounding of floating-point noise: the guarantee is "
        "for exact arithmetic.",
    ]
    return [
        "\n".join(
            [
                "This guarantee does not cover:",
                *(wording.fill(f"- {bullet}", hanging=2) for bullet in bullets),
            ]
        )
    ]


def _is_unknown(entry: entries_lib.LedgerEntry) -> bool:
    return isinstance(entry.sampling, entries_lib.UnknownSampling)


def _population(entry: entries_lib.LedgerEntry) -> int | None:
    return getattr(entry.sampling, "population", None)


def _steps(count: int) -> str:
    return wording.count(count, "step")
