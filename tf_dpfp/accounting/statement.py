"""The privacy statement: the guarantee in words, and its limits.

The wording follows `compute_dp_sgd_privacy_statement` of TensorFlow Privacy,
which reports a training that the caller describes. This one reports the
training that was recorded, and separates proved from conditional figures.
"""

import dataclasses
from collections.abc import Iterable, Sequence

from tf_dpfp.accounting import entries as entries_lib
from tf_dpfp.accounting import epsilon as epsilon_lib
from tf_dpfp.accounting import paragraphs as text
from tf_dpfp.accounting import person_statement
from tf_dpfp.accounting import persons
from tf_dpfp.accounting import record as record_lib
from tf_dpfp.accounting import releases
from tf_dpfp.accounting import representation_statement
from tf_dpfp.accounting import samplings

_NOTHING = "No training step has been recorded: epsilon is 0."
_GIVEN = (
    "These are given numbers, not the record of a training. What follows holds "
    "for a training that does exactly this."
)
_CONDITIONAL = (
    "Conditional figures, NOT proved for this training, under zero-out "
    "adjacency. They hold only if the condition is true of the input pipeline, "
    "which is not observed:"
)
_CORRELATED = (
    "Correlated noise: each {one} belongs to one part, by a coin of its own, "
    "and a step draws from one part by Poisson sampling, one part after the "
    "other. So {a} {one}'s steps are so far apart that no two of them share "
    "noise, and epsilon counts one of as many steps as there are parts "
    "(banded matrix factorisation). It was performed, not assumed. Noise that "
    "begins anew, as in every `fit`, counts as one step less than there are "
    "parts, and is among the steps above. The figure needs parts, the choice "
    "of {one}s and the noise of earlier steps to stay secret."
)
_VIEWS = (
    "Augmentation multiplicity: each view is made of one example alone, and "
    "the mean of the gradients of an example's views is clipped, so an example "
    "moves a sum by no more than it would with one view. Neighbours differ by "
    "one example with all of its views, made with random numbers that stay "
    "secret."
)
_AS_IF = (
    "(*) Poisson sampling is not usually done in training pipelines. Shuffling "
    "is not Poisson sampling, and can be less private than this figure."
)


def statement(
    entries: Iterable[entries_lib.LedgerEntry],
    delta: float,
    *,
    accountant: str = "rdp",
    population: int | None = None,
    seeded: bool = False,
    recorded: bool = True,
    objections: Sequence[str] = (),
    ordinary_steps: int = 0,
    trained_apart: Sequence[str] = (),
    examples_per_user: int | None = None,
) -> str:
    """Writes the privacy statement of a training.

    Args:
        entries: Ledger entries of the training.
        delta: Probability with which the guarantee may fail, in (0, 1).
        accountant: `"rdp"` or `"pld"`.
        population: Number of examples, if it is known and may be told.
            Entries with `UnknownSampling` bring their own.
        seeded: True if noise or sampling came from a seed that the user chose;
            entries may say so themselves.
        recorded: False for entries that somebody describes instead of a
            record. The statement then claims nothing about what ran.
        objections: Reasons why the entries do not cover all that was released,
            so that epsilon is infinite.
        ordinary_steps: Number of steps of ordinary training that the model
            took before, of which no entry knows.
        trained_apart: Other trainings of the same weights, in words, of which
            no entry knows.
        examples_per_user: Bound on the examples that one person has in the
            data, for a figure of whole persons; `None` if there is none.

    Returns:
        Plain text in paragraphs of 80 columns. Epsilons are rounded up.

    Raises:
        ValueError: If an argument is out of range, or nothing is proved for
            several examples of a person.

    Reference:
        - [How to DP-fy ML](https://arxiv.org/abs/2303.00654), section 5.3
    """
    record = record_lib.Record(
        tuple(entries),
        population=population,
        seeded=seeded,
        observed=recorded,
        objections=tuple(objections),
        ordinary_steps=ordinary_steps,
        trained_apart=tuple(trained_apart),
    )
    said = paragraphs_of(record, delta, accountant, examples_per_user)
    return written(said)


def written(said: Iterable[text.Paragraph]) -> str:
    """Writes paragraphs as the text of a statement."""
    return "\n\n".join(paragraph.text for paragraph in said) + "\n"


def paragraphs_of(
    record: record_lib.Record,
    delta: float,
    accountant: str = "rdp",
    examples_per_user: int | None = None,
) -> list[text.Paragraph]:
    """Says what a training guarantees, as fields.

    Args:
        record: What is known of the training.
        delta: Probability with which the guarantee may fail, in (0, 1).
        accountant: `"rdp"` or `"pld"`.
        examples_per_user: Bound on the examples that one person has in the
            data, for a figure of whole persons; `None` if there is none.

    Returns:
        The paragraphs of the statement.

    Raises:
        ValueError: If an argument is out of range, or nothing is proved for
            several examples of a person.
    """
    delta = epsilon_lib.check_delta(delta, accountant)
    examples_per_user = persons.check_examples(examples_per_user)
    ran = record.entries
    if not ran and not record.objections:
        return [
            text.Paragraph("training", _NOTHING),
            *text.trained_before(record.ordinary_steps),
            *text.trained_apart(record.trained_apart),
        ]
    adjacency = entries_lib.adjacency_of(ran)
    if (examples_per_user or 1) > 1:
        persons.check_entries(ran, adjacency)
    if record.objections or adjacency is releases.Adjacency.REPLACE_ONE:
        said, is_private = representation_statement.describe(
            ran, delta, record.population, record.objections
        )
    else:
        said, is_private = _describe(
            record, delta, accountant, examples_per_user
        )
    said += text.searches(ran)
    if is_private:
        said += text.trained_before(record.ordinary_steps)
        said += text.trained_apart(record.trained_apart)
        said += text.warnings_and_limits(
            record.seeded, any(entry.search for entry in ran)
        )
    return said


def _describe(
    record: record_lib.Record,
    delta: float,
    accountant: str,
    examples_per_user: int | None,
) -> tuple[list[text.Paragraph], bool]:
    """Describes DP-SGD: paragraphs, and `False` if there is no guarantee."""
    entries, population = record.entries, record.population
    recorded = record.observed
    unit = person_statement.unit_of(entries)
    training = text.training(
        "DP-SGD performed" if recorded else "DP-SGD to be performed",
        population,
        entries,
        _words,
        f" for {_steps(entries)}",
        unit.many,
    )
    given = [] if recorded else [text.Paragraph("given", _GIVEN)]
    bare = [entry for entry in entries if entry.is_bare]
    if bare:
        no_privacy = text.Paragraph(
            "no_privacy",
            f"NO PRIVACY: {sum(e.steps for e in bare)} of {_steps(entries)} "
            "without noise (noise multiplier 0). Epsilon is infinite: nothing "
            "about the training data is protected.",
        )
        return [training, *given, no_privacy], False
    conditional = _conditional_cases(entries)
    performed = text.PERFORMED if recorded else "Shuffled batches do not do so."
    return [
        training,
        *given,
        *text.delta_warning(entries, delta, population, unit.many),
        *text.guarantee(
            entries,
            delta,
            accountant,
            f"{unit.level} with add-or-remove-one adjacency at delta = "
            f"{delta} computed with {accountant.upper()} accounting, proved "
            "for the steps above:",
            "Epsilon with the Poisson sampling above:",
        ),
        *_figures_of(conditional, delta, accountant),
        *person_statement.describe(
            entries, delta, accountant, examples_per_user
        ),
        *text.sampling(
            entries,
            samplings.PoissonSampling,
            f"Poisson sampling puts each {unit.one} into each step "
            f"independently of all others. {performed}",
        ),
        *_of_correlated_noise(entries),
        *_of_views(entries),
        *([text.Paragraph("sampling", _AS_IF)] if conditional else []),
    ], True


def _figures_of(
    conditional: list[tuple[str, list[entries_lib.LedgerEntry]]],
    delta: float,
    accountant: str,
) -> list[text.Paragraph]:
    """Lists epsilon under assumptions on the sampling, if there are any."""
    if not conditional:
        return []
    # An example left out would move others in every step.
    adjacency = releases.Adjacency.ZERO_OUT
    return [
        text.figures(
            "conditional",
            _CONDITIONAL,
            conditional,
            delta,
            accountant,
            adjacency,
        )
    ]


def _of_correlated_noise(
    entries: Sequence[entries_lib.LedgerEntry],
) -> list[text.Paragraph]:
    """Explains steps whose noise is correlated, if any ran."""
    banded = [e for e in entries if isinstance(e.release, releases.BandedSums)]
    if not banded:
        return []
    unit = person_statement.unit_of(banded).one
    article = "a" if unit == "person" else "an"
    return [
        text.Paragraph(
            "sampling",
            _CORRELATED.format(one=unit, a=article),
        )
    ]


def _of_views(
    entries: Sequence[entries_lib.LedgerEntry],
) -> list[text.Paragraph]:
    """Explains steps on several views of each example, if any ran."""
    if not any(entry.release.views > 1 for entry in entries):
        return []
    return [text.Paragraph("unit", _VIEWS)]


def _words(entry: entries_lib.LedgerEntry) -> str:
    if isinstance(entry.release, releases.Evaluation):
        return text.evaluation(entry)
    sampling = entry.sampling
    words = f"{_steps([entry])} with noise multiplier "
    words += f"{entry.noise_multiplier:g} and "
    if isinstance(entry.release, releases.BandedSums):
        words += f"noise correlated over {entry.release.bands} steps, "
    if isinstance(sampling, samplings.CyclicPoissonSampling):
        words += f"one of {sampling.parts} parts after the other, with "
    if isinstance(sampling, samplings.PoissonSampling):
        words += f"Poisson sampling at rate {sampling.sampling_rate:g}"
        words += person_statement.words(entry)
        if sampling.overflow_probability:
            words += (
                f", each step dropping surplus {entry.release.unit}s with "
                f"probability at most {sampling.overflow_probability:.3g}"
            )
    elif isinstance(sampling, samplings.UnknownSampling):
        words += "batches of unknown sampling"
        if sampling.batch_size is not None:
            words += f", {sampling.batch_size} examples each"
        if sampling.population is not None:
            words += f" out of {sampling.population}"
    if entry.release.views > 1:
        words += (
            f", the mean gradient of {entry.release.views} views of each "
            "example clipped once"
        )
    return words


def _conditional_cases(
    entries: Sequence[entries_lib.LedgerEntry],
) -> list[tuple[str, list[entries_lib.LedgerEntry]]]:
    """Returns the entries that a well-behaved pipeline would have given."""
    once, as_if = [], []
    for entry in entries:
        match entry.sampling:
            case samplings.UnknownSampling(int(population), int(batch_size)):
                once.append(_once_per_epoch(entry, population, batch_size))
                as_if.append(_as_if_poisson(entry, population, batch_size))
            case samplings.UnknownSampling():
                return []
            case _:
                once.append(entry)
                as_if.append(entry)
    if as_if == list(entries):
        return []
    return [
        ("Epsilon if each example occurred at most once per epoch:", once),
        ("Epsilon if the batches had been Poisson-sampled (*):", as_if),
    ]


def _once_per_epoch(
    entry: entries_lib.LedgerEntry, population: int, batch_size: int
) -> entries_lib.LedgerEntry:
    """Keeps one release for each epoch begun."""
    # An epoch is as short as it can be, without its incomplete batch, so that
    # no pipeline has begun more of them.
    steps_per_epoch = max(1, population // batch_size)
    return dataclasses.replace(entry, steps=-(-entry.steps // steps_per_epoch))


def _as_if_poisson(
    entry: entries_lib.LedgerEntry, population: int, batch_size: int
) -> entries_lib.LedgerEntry:
    sampling = samplings.PoissonSampling(min(1.0, batch_size / population))
    return dataclasses.replace(entry, sampling=sampling)


def _steps(entries: Sequence[entries_lib.LedgerEntry]) -> str:
    return text.length(entries)
