"""Paragraphs that every privacy statement shares, and their layout.

A `Paragraph` holds what is said as fields: words, lists, figures. The statement
is their text; a privacy card has the fields themselves. Lines of the text have
80 columns, and its figures are never rounded down.
"""

import dataclasses
import math
import textwrap
from collections.abc import Callable, Iterable, Sequence

from tf_dpfp.accounting import entries as entries_lib
from tf_dpfp.accounting import epsilon as epsilon_lib
from tf_dpfp.accounting import releases
from tf_dpfp.accounting import samplings

_WIDTH = 80
_LABEL_WIDTH = 61

_PROVED = (samplings.PoissonSampling, samplings.WithoutReplacement)

NO_USER_LEVEL = (
    "No user-level privacy guarantee is possible without a bound on the number "
    "of examples per user."
)
PERFORMED = "It was performed, not assumed."

_CHECKPOINTS = (
    "This privacy guarantee protects the release of all model checkpoints in "
    "addition to the final model: the trainable weights and the optimizer "
    "state after every step."
)
_ORDINARY_PIPELINE = (
    "Batches came from an ordinary input pipeline. What is proved for them "
    "lets every example be in every step, at most once in each; a pipeline "
    "that repeats an example within a batch is not covered."
)
_MOVED = (
    "Add-or-remove-one: an example left out moves all later ones by one place, "
    "so each batch may lose one and gain another, and its sum moves by twice "
    "the clip norm. This needs the same number of steps, batches that start "
    "anew in every epoch, and an order that nobody can compute. Zero-out: the "
    "example is replaced by one that contributes nothing, as one of weight 0, "
    "and all others keep their places: once the clip norm."
)
_IN_PLACE = (
    "Replace-one: the example is replaced in its place, and no other moves "
    "between batches. Leaving one out of an ordinary pipeline is not covered."
)
_SEEDED = (
    "SEEDED: the randomness came from a seed chosen by the user. Anyone who "
    "knows or guesses the seed can regenerate the noise and subtract it; the "
    "guarantee holds only towards those who cannot. Use a seed to reproduce "
    "experiments, and none for a release."
)
_CHOICE = (
    "the choice of hyper-parameters, if it looked at trainings on the same "
    "data;"
)
_CHOICE_BESIDE = (
    "the choice of hyper-parameters outside of the search, if it looked at "
    "trainings on the same data;"
)
_NOT_COVERED = (
    "training metrics and losses, shown or logged, which are computed from the "
    "training data without noise;",
    _CHOICE,
    "early stopping, or keeping the best checkpoint, by a metric of the "
    "training data;",
    "preprocessing adapted to the data (Normalization statistics, "
    "vocabularies, lookups);",
    "the number of examples, which the sampling rate and this statement may "
    "reveal;",
    "data seen before this training, such as that of pretrained weights;",
    "other trainings or releases from the same data, whose epsilons and deltas "
    "add to these;",
    "attacks on the rounding of floating-point noise: the guarantee is for "
    "exact arithmetic.",
)


@dataclasses.dataclass(frozen=True)
class Figure:
    """One epsilon of a statement.

    Attributes:
        label: What it is the epsilon of, in words.
        epsilon: The epsilon, not rounded.
    """

    label: str
    epsilon: float


@dataclasses.dataclass(frozen=True)
class Paragraph:
    """One paragraph of a statement.

    Attributes:
        kind: Name of what it is about.
        words: What it says.
        lines: Lines below, indented.
        items: Lines below, as a list.
        figures: Epsilons below.
    """

    kind: str
    words: str
    lines: tuple[str, ...] = ()
    items: tuple[str, ...] = ()
    figures: tuple[Figure, ...] = ()

    @property
    def text(self) -> str:
        """Text of 80 columns."""
        return "\n".join(
            [
                fill(self.words),
                *(fill(line, indent=4) for line in self.lines),
                *(fill(f"- {item}", hanging=2) for item in self.items),
                *(_figure(f.label, f.epsilon) for f in self.figures),
            ]
        )


def fill(text: str, indent: int = 0, hanging: int = 0) -> str:
    """Breaks a paragraph into lines; `hanging` indents all but the first."""
    return textwrap.fill(
        text,
        width=_WIDTH,
        initial_indent=" " * indent,
        subsequent_indent=" " * (indent + hanging),
    )


def figures(
    kind: str,
    words: str,
    cases: Iterable[tuple[str, Sequence[entries_lib.LedgerEntry]]],
    delta: float,
    accountant: str = "rdp",
    adjacency: releases.Adjacency | None = None,
) -> Paragraph:
    """Makes a paragraph with the epsilons of labelled cases below it."""
    found = [
        Figure(
            label,
            epsilon_lib.compute_epsilon(ran, delta, accountant, adjacency),
        )
        for label, ran in cases
    ]
    return Paragraph(kind, words, figures=tuple(found))


def _figure(label: str, epsilon: float) -> str:
    """Writes a label and its epsilon, rounded up, in one line."""
    return f"    {label:<{_LABEL_WIDTH}}{round_up(epsilon):>15}"


def round_up(epsilon: float) -> str:
    """Formats epsilon so that the printed figure is never below it."""
    if math.isinf(epsilon):
        return "infinite"
    if epsilon >= 1e12:
        # More than the half unit by which the last digit may be rounded down.
        return f"{epsilon * 1.001:.3e}"
    rounded = math.ceil(epsilon * 1000.0) / 1000.0
    return f"{rounded:.3f}"


def count(number: int, one: str, many: str | None = None) -> str:
    """Formats a number with its noun, singular or plural."""
    return f"{number} {one if number == 1 else many or one + 's'}"


def length(entries: Sequence[entries_lib.LedgerEntry]) -> str:
    """Counts steps and evaluations, in words."""
    steps, evaluations = 0, 0
    for entry in entries:
        if isinstance(entry.release, releases.Evaluation):
            evaluations += entry.steps
        else:
            steps += entry.steps
    words = count(steps, "step") if steps or not evaluations else ""
    if not evaluations:
        return words
    return " and ".join(filter(None, [words, count(evaluations, "evaluation")]))


def evaluation(entry: entries_lib.LedgerEntry) -> str:
    """Describes the evaluations that an entry counts."""
    return (
        f"{count(entry.steps, 'evaluation')} with noise multiplier "
        f"{entry.noise_multiplier:g}: noised counts of every "
        f"{entry.release.unit} of the data that were evaluated"
    )


def of_search(entry: entries_lib.LedgerEntry) -> str:
    """Says that an entry is one of a search; else nothing."""
    return ", in each run of a search" if entry.search else ""


def searches(
    entries: Sequence[entries_lib.LedgerEntry],
) -> list[Paragraph]:
    """Explains the searches among entries, one paragraph each."""
    found = dict.fromkeys(entry.search for entry in entries)
    return [
        Paragraph(
            "search",
            "SEARCH: the model is the best of a random number of runs, by "
            "their scores; the number was drawn from the "
            f"{search.runs} distribution with mean {search.expected_runs}, "
            "whatever the data are. Every run did no more than what is listed "
            "above for each. Epsilon is that of the whole search, by RDP "
            "(Papernot and Steinke, 2022), and the choice of hyper-parameters "
            "in it is covered. The number of runs, and all runs but the best, "
            "must stay secret.",
        )
        for search in found
        if search
    ]


def training(
    method: str,
    population: int | None,
    entries: Sequence[entries_lib.LedgerEntry],
    words: Callable[[entries_lib.LedgerEntry], str],
    length: str = "",
    units: str = "examples",
) -> Paragraph:
    """Makes a headline with one line per entry, of `words(entry)`, below."""
    examples = "" if population is None else f" over {population} {units}"
    return Paragraph(
        "training",
        f"{method}{examples}{length}:",
        lines=tuple(words(entry) + of_search(entry) for entry in entries),
    )


def delta_warning(
    entries: Sequence[entries_lib.LedgerEntry],
    delta: float,
    population: int | None,
    units: str = "examples",
) -> list[Paragraph]:
    """Warns of a delta that is too large for the number of examples."""
    sizes = [getattr(e.sampling, "population", None) for e in entries]
    known = [size for size in (population, *sizes) if size]
    if not known or delta < 1.0 / max(known):
        return []
    return [
        Paragraph(
            "delta",
            f"WARNING: delta = {delta} is not below one over the number of "
            f"{units} ({max(known)}). At such a delta even the release of one "
            "random example in clear could be called private. Choose a delta "
            "well below it.",
        )
    ]


def guarantee(
    entries: Sequence[entries_lib.LedgerEntry],
    delta: float,
    accountant: str,
    head: str,
    label: str,
) -> list[Paragraph]:
    """Says what is protected; prints epsilon with and without the sampling."""
    unsampled = [entry.without_sampling() for entry in entries]
    cases = [("Epsilon without any assumption on the sampling:", unsampled)]
    if any(isinstance(entry.sampling, _PROVED) for entry in entries):
        cases.insert(0, (label, list(entries)))
    return [
        Paragraph("released", _CHECKPOINTS),
        figures("proved", head, cases, delta, accountant),
        *_zero_out(entries, delta, accountant),
    ]


def _zero_out(
    entries: Sequence[entries_lib.LedgerEntry], delta: float, accountant: str
) -> list[Paragraph]:
    """Prints epsilon with every example in its place, where that differs."""
    by_replacement = _is_by_replacement(entries)
    if by_replacement or not any(e.sampling.by_position for e in entries):
        return []
    return [
        figures(
            "zero_out",
            "Another guarantee, with zero-out in place of add-or-remove-one "
            "adjacency (explained below), proved for the same steps:",
            [("Epsilon under zero-out adjacency:", entries)],
            delta,
            accountant,
            releases.Adjacency.ZERO_OUT,
        )
    ]


def _is_by_replacement(entries: Sequence[entries_lib.LedgerEntry]) -> bool:
    return entries_lib.adjacency_of(entries) is releases.Adjacency.REPLACE_ONE


def sampling(
    entries: Sequence[entries_lib.LedgerEntry], kind: type, words: str
) -> list[Paragraph]:
    """Explains a proved kind of sampling and unknown sampling, if they ran."""
    kinds = {type(entry.sampling) for entry in entries}
    secret = "The figure needs the choice of examples to stay secret."
    described = [f"{words} {secret}"] if kind in kinds else []
    if samplings.UnknownSampling in kinds:
        moved = _IN_PLACE if _is_by_replacement(entries) else _MOVED
        described += [_ORDINARY_PIPELINE, moved]
    return [Paragraph("sampling", said) for said in described]


def trained_before(steps: int) -> list[Paragraph]:
    """Warns of ordinary training before the private one, if there was any."""
    if not steps:
        return []
    return [
        Paragraph(
            "trained_before",
            f"TRAINED BEFORE: the model took {count(steps, 'ordinary step')} "
            "before it was made private. No figure here counts them. If they "
            "were on the data of this training, its weights give these data "
            "away, whatever is said above; data that only those steps saw have "
            "no guarantee at all.",
        )
    ]


def trained_apart(trainings: Sequence[str]) -> list[Paragraph]:
    """Warns of other trainings of the same weights, if there were any."""
    if not trainings:
        return []
    head = (
        "TRAINED APART: no figure here counts other trainings of the model's "
        "weights. Add what private ones cost; ordinary ones on private data "
        "give these data away:"
    )
    return [Paragraph("trained_apart", head, items=tuple(trainings))]


def warnings_and_limits(
    seeded: bool, searched: bool = False
) -> list[Paragraph]:
    """Warns of randomness from a seed, and lists what is never covered."""
    items = tuple(
        _CHOICE_BESIDE if item is _CHOICE and searched else item
        for item in _NOT_COVERED
    )
    limits = Paragraph(
        "not_covered", "This guarantee does not cover:", items=items
    )
    return [Paragraph("seeded", _SEEDED), limits] if seeded else [limits]
