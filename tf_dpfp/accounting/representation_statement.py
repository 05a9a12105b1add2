"""Paragraphs of the privacy statement about noised representations."""

from collections.abc import Sequence

from tf_dpfp.accounting import claimed
from tf_dpfp.accounting import entries as entries_lib
from tf_dpfp.accounting import paragraphs as text
from tf_dpfp.accounting import person_statement
from tf_dpfp.accounting import persons
from tf_dpfp.accounting import releases
from tf_dpfp.accounting import samplings

_DRAWS = (
    "Each draw takes a fixed number of the examples of every label, all "
    "subsets being equally likely, in random order, independently of all other "
    "draws; a step is of several draws where the sampler was given `draws`. "
    f"{text.PERFORMED}"
)
_PERSONS_DRAWN = (
    "Each person is in a step by a coin of their own. The noised rows show who "
    "is: no figure counts the coins as secret, only that they are not foreseen."
)
_REPLACED = (
    "Replace-one: one example is replaced by another. A figure of DP-SGD with "
    "add-or-remove-one adjacency can't be compared with this one."
)
_PERSON_REPLACED = (
    "Replace-one: all examples of one person are replaced by others, each in "
    "the place of one, with its label and its weight. Those with the same id "
    "are one person's, as the ids say. In a step the representations of up to "
    "so many of them are clipped jointly. A figure of DP-SGD with "
    "add-or-remove-one adjacency can't be compared with this one."
)


def describe(
    entries: Sequence[entries_lib.LedgerEntry],
    delta: float,
    population: int | None,
    objections: Sequence[str],
) -> tuple[list[text.Paragraph], bool]:
    """Describes a training under replace-one; arguments as in `statement`.

    Returns:
        `(paragraphs, is_private)`, `False` if there is no guarantee.
    """
    unit = person_statement.unit_of(entries)
    training = text.training(
        "DP-FP (noised representations) performed",
        population,
        entries,
        _words,
        units=unit.many,
    )
    claim = _describe_claim(entries, delta)
    reasons = [*_reasons(entries), *objections]
    if reasons:
        head = (
            "NO PRIVACY: nothing about the training data is proved to be "
            "protected. Epsilon is infinite, for:"
        )
        no_privacy = text.Paragraph("no_privacy", head, items=tuple(reasons))
        return [training, no_privacy, *claim], False
    return [
        training,
        *text.delta_warning(entries, delta, population, unit.many),
        *_describe_guarantee(entries, delta),
        *claim,
        *text.sampling(entries, samplings.WithoutReplacement, _DRAWS),
        *_shown(entries),
    ], True


def _shown(
    entries: Sequence[entries_lib.LedgerEntry],
) -> list[text.Paragraph]:
    """Explains what coins of persons are good for, if any were drawn."""
    if not any(
        isinstance(e.release, releases.PersonRepresentations)
        and isinstance(e.sampling, samplings.PoissonSampling)
        for e in entries
    ):
        return []
    return [text.Paragraph("sampling", f"{_PERSONS_DRAWN} {text.PERFORMED}")]


def _words(entry: entries_lib.LedgerEntry) -> str:
    sampling = entry.sampling
    if isinstance(sampling, samplings.EveryLabel):
        return (
            f"all labels, of {sampling.num_classes} classes, randomised once "
            f"with epsilon {text.round_up(1.0 / entry.noise_multiplier)}"
        )
    noise = f"with noise multiplier {entry.noise_multiplier:g}"
    if isinstance(entry.release, releases.Joint):
        noise = (
            "of representations and, from the same examples, sums of clipped "
            f"gradients, {noise} of both together"
        )
    if isinstance(entry.release, releases.Evaluation):
        return text.evaluation(entry)
    if isinstance(entry.release, releases.Sums):
        return f"{text.count(entry.steps, 'step')} of DP-SGD {noise}"
    if isinstance(sampling, samplings.WithoutReplacement):
        return (
            f"{text.count(entry.steps, 'draw')} {noise}, each without "
            f"replacement, of at most {sampling.sample_size} in "
            f"{sampling.population} of the examples of one label"
        )
    batches = text.count(entry.steps, "batch", "batches")
    of_persons = person_statement.words(entry)
    if isinstance(sampling, samplings.PoissonSampling):
        rate = f"{sampling.sampling_rate:.6g}"
        return f"{batches} {noise}, drawn at rate {rate}{of_persons}"
    return f"{batches}{of_persons} {noise} and unknown sampling"


def _reasons(entries: Sequence[entries_lib.LedgerEntry]) -> list[str]:
    """Lists reasons why entries protect nothing; empty if there are none."""
    found = []
    bare = sum(e.steps for e in entries if e.noise_multiplier == 0.0)
    if bare:
        found.append(
            f"{text.count(bare, 'release')} had no noise (noise multiplier 0)."
        )
    if _labels_are(releases.LABELS_UNDECLARED, entries):
        found.append(
            "Labels are neither declared public nor randomised, and the noise "
            "of the representations does not cover them. Give "
            'DPRepresentationClip `labels="public"`, or use '
            "tf_dpfp.representations.randomize_labels."
        )
    if any(isinstance(e.release, releases.EndToEnd) for e in entries):
        found.append(
            "The layers below the noise were trained end to end: their "
            "gradients depend on the examples in clear, beside the noised "
            "representations, and so do labels."
        )
    if persons.units_differ(entries):
        found.append(
            "Some of the steps protect what one example is, and others what "
            "all examples of a person are. Nothing is proved of both together."
        )
    return found


def _describe_claim(
    entries: Sequence[entries_lib.LedgerEntry], delta: float
) -> list[text.Paragraph]:
    """Prints the central-limit figure of a single kind of draw."""
    drawn = [
        entry
        for entry in entries
        if isinstance(entry.sampling, samplings.WithoutReplacement)
        and entry.noise_multiplier
    ]
    if any(entry.search for entry in entries):
        return []
    if len(drawn) != 1 or isinstance(drawn[0].release, releases.Joint):
        return []
    (entry,) = drawn
    figure = claimed.claimed_epsilon(
        entry.noise_multiplier, entry.sampling.proved_rate, entry.steps, delta
    )
    head = (
        "Claimed elsewhere for noised representations, NOT proved for this "
        "training nor for any other of its kind (see claimed_epsilon):"
    )
    label = "Epsilon by the central limit theorem for sampled sums:"
    figures = (text.Figure(label, figure),)
    return [text.Paragraph("claimed", head, figures=figures)]


def _describe_guarantee(
    entries: Sequence[entries_lib.LedgerEntry], delta: float
) -> list[text.Paragraph]:
    """Prints epsilon, and explains its neighbours."""
    unit = person_statement.unit_of(entries)
    by_person = unit.one == "person"
    return [
        *text.guarantee(
            entries,
            delta,
            "rdp",
            f"{unit.level} with replace-one adjacency at delta = "
            f"{delta} computed with RDP accounting, proved for the releases "
            "above:",
            "Epsilon with the sampling above:",
        ),
        text.Paragraph("unit", _PERSON_REPLACED if by_person else _REPLACED),
        *(text.Paragraph("labels", s) for s in _describe_labels(entries)),
        text.Paragraph("below", _describe_below(entries)),
        *([] if by_person else [text.Paragraph("unit", text.NO_USER_LEVEL)]),
    ]


def _describe_labels(entries: Sequence[entries_lib.LedgerEntry]) -> list[str]:
    described = []
    if any(
        isinstance(e.release, releases.PersonRepresentations) for e in entries
    ):
        described.append(
            "Public, and not protected: whose each example is, so how many a "
            "person has, the labels of all examples, and their weights."
        )
    elif _labels_are(releases.LABELS_PUBLIC, entries):
        described.append(
            "Public, and not protected: the labels of all examples, and their "
            "weights where there are any. The example that replaces another "
            "has the same label."
        )
    if _labels_are(releases.LABELS_RANDOMIZED, entries):
        described.append(
            "Labels were randomised once before the training, which saw no "
            "others; epsilon includes what they cost. The example that "
            "replaces another may have another label."
        )
    return described


def _describe_below(entries: Sequence[entries_lib.LedgerEntry]) -> str:
    if any(isinstance(e.release, releases.Joint) for e in entries):
        return (
            "The layers below the noise of DPRepresentationClip were trained "
            "by DP-SGD, with noise of its own. Inputs reach what is above "
            "through the noised representations alone."
        )
    return (
        "The layers below the noise were not trained: the gradient stops at "
        "DPRepresentationClip. Inputs reach the model through it alone."
    )


def _labels_are(kind: str, entries: Sequence[entries_lib.LedgerEntry]) -> bool:
    return any(getattr(e.release, "labels", None) == kind for e in entries)
