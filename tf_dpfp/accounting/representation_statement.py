"""The privacy statement of trainings on noised representations."""

import dataclasses
from collections.abc import Sequence

from tf_dpfp.accounting import claimed
from tf_dpfp.accounting import entries as entries_lib
from tf_dpfp.accounting import epsilon as epsilon_lib
from tf_dpfp.accounting import paragraphs as wording


def describe_training(
    entries: Sequence[entries_lib.LedgerEntry], population: int | None
) -> str:
    """Lists what was released.

    Args:
        entries: What ran, rows or labels among it.
        population: Number of examples, if it is known and may be told.

    Returns:
        A paragraph.
    """
    examples = "" if population is None else f" over {population} examples"
    lines = [f"DP-FP (noised representations) performed{examples}:"]
    lines += [wording.fill(_words(entry), indent=4) for entry in entries]
    return "\n".join(lines)


def _words(entry: entries_lib.LedgerEntry) -> str:
    sampling = entry.sampling
    if entry.release is entries_lib.Release.LABELS:
        return (
            f"all labels, of {sampling.num_classes} classes, randomised once "
            f"with epsilon {wording.round_up(1.0 / entry.noise_multiplier)}"
        )
    noise = f"with noise multiplier {entry.noise_multiplier:g}"
    if entry.release.is_rows_and_sums:
        noise = (
            "of rows and, from the same examples, sums of clipped gradients, "
            f"with noise multiplier {entry.noise_multiplier:g} of both together"
        )
    if entry.release is entries_lib.Release.SUMS:
        steps = wording.count(entry.steps, "step")
        return f"{steps} of DP-SGD {noise}"
    if isinstance(sampling, entries_lib.WithoutReplacement):
        draws = wording.count(entry.steps, "draw")
        return (
            f"{draws} {noise}, each without replacement, of at most "
            f"{sampling.sample_size} in {sampling.population} of the examples "
            "of one label"
        )
    batches = wording.count(entry.steps, "batch", "batches")
    return f"{batches} {noise} and unknown sampling"


def reasons(entries: Sequence[entries_lib.LedgerEntry]) -> list[str]:
    """Why entries protect nothing.

    Args:
        entries: What ran.

    Returns:
        A sentence for each reason; empty if there is none.
    """
    release = entries_lib.Release
    found = []
    bare = [entry for entry in entries if entry.noise_multiplier == 0.0]
    if bare:
        found.append(
            f"{wording.count(_steps(bare), 'release')} had no noise (noise "
            "multiplier 0)."
        )
    undeclared = (
        release.ROWS_LABELS_UNDECLARED,
        release.ROWS_AND_SUMS_LABELS_UNDECLARED,
    )
    if any(e.release in undeclared for e in entries):
        found.append(
            "Labels are neither declared public nor randomised, and the noise "
            "of the representations does not cover them. Give "
            'DPRepresentationClip `labels="public"`, or use '
            "tf_dpfp.randomize_labels."
        )
    if any(e.release is release.ROWS_END_TO_END for e in entries):
        found.append(
            "The layers below the noise were trained end to end: their "
            "gradients depend on the examples in clear, beside the noised "
            "representations, and so do labels."
        )
    return found


def describe_claim(
    entries: Sequence[entries_lib.LedgerEntry], delta: float
) -> list[str]:
    """Prints the central-limit figure, where there is one.

    Args:
        entries: What ran.
        delta: Probability with which the guarantee may fail.

    Returns:
        No paragraph or one.
    """
    drawn = [
        entry
        for entry in entries
        if isinstance(entry.sampling, entries_lib.WithoutReplacement)
        and entry.noise_multiplier
    ]
    if len(drawn) != 1 or drawn[0].release.is_rows_and_sums:
        return []
    figure = claimed.claimed_epsilon(
        drawn[0].noise_multiplier,
        drawn[0].sampling.sampling_rate,
        drawn[0].steps,
        delta,
    )
    head = wording.fill(
        "Claimed elsewhere for noised representations, NOT proved for this "
        "training nor for any other of its kind (see claimed_epsilon):"
    )
    label = "Epsilon by the central limit theorem for sampled sums:"
    return ["\n".join([head, wording.row(label, figure)])]


def describe_guarantee(
    entries: Sequence[entries_lib.LedgerEntry], delta: float
) -> list[str]:
    """Prints epsilon, and for what neighbours it holds.

    Args:
        entries: What ran.
        delta: Probability with which the guarantee may fail.

    Returns:
        Paragraphs.
    """

    def epsilon(described: Sequence[entries_lib.LedgerEntry]) -> float:
        return epsilon_lib.compute_epsilon(described, delta)

    unsampled = [_unsampled(entry) for entry in entries]
    rows = [("Epsilon without any assumption on the sampling:", unsampled)]
    if unsampled != list(entries):
        rows.insert(0, ("Epsilon with the sampling above:", entries))
    head = wording.fill(
        "Example-level DP with replace-one adjacency at delta = "
        f"{delta} computed with RDP accounting, proved for the releases above:"
    )
    return [
        "\n".join([head, *(wording.row(name, epsilon(e)) for name, e in rows)]),
        wording.fill(
            "Replace-one: one example is another one. A figure of DP-SGD with "
            "add-or-remove-one adjacency can't be compared with this one."
        ),
        wording.fill(
            "This guarantee protects the release of all model checkpoints in "
            "addition to the final model: the trained weights and the state of "
            "the optimizer after every step."
        ),
        *_describe_labels(entries),
        wording.fill(_describe_below(entries)),
        wording.fill(
            "No user-level privacy guarantee is possible without a bound on "
            "the number of examples per user."
        ),
    ]


def _describe_below(entries: Sequence[entries_lib.LedgerEntry]) -> str:
    if any(entry.release.is_rows_and_sums for entry in entries):
        return (
            "The layers below the noise of DPRepresentationClip were trained "
            "by DP-SGD, with noise of its own. Inputs reach what is above "
            "through the noised representations alone."
        )
    return (
        "The layers below the noise were not trained: the gradient stops at "
        "DPRepresentationClip. Inputs reach the model through it alone."
    )


def _describe_labels(
    entries: Sequence[entries_lib.LedgerEntry],
) -> list[str]:
    kinds = {entry.release for entry in entries}
    release, paragraphs = entries_lib.Release, []
    public = {release.ROWS_LABELS_PUBLIC, release.ROWS_AND_SUMS_LABELS_PUBLIC}
    if kinds & public:
        paragraphs.append(
            "Public, and not protected: the labels of all examples, and their "
            "weights where there are any. The example that replaces another "
            "has the same label."
        )
    if kinds & {
        release.ROWS_LABELS_RANDOMIZED,
        release.ROWS_AND_SUMS_LABELS_RANDOMIZED,
    }:
        paragraphs.append(
            "Labels were randomised once before the training, which saw no "
            "others; epsilon includes what they cost. The example that "
            "replaces another may have another label."
        )
    return [wording.fill(paragraph) for paragraph in paragraphs]


def describe_sampling(entries: Sequence[entries_lib.LedgerEntry]) -> list[str]:
    """Says what the figures assume of the sampling.

    Args:
        entries: What ran.

    Returns:
        Paragraphs.
    """
    paragraphs = []
    if any(
        isinstance(entry.sampling, entries_lib.WithoutReplacement)
        for entry in entries
    ):
        paragraphs.append(
            "Each draw takes a fixed number of the examples of every label, "
            "all subsets being equally likely, in random order, independently "
            "of all other draws; a step is of several draws where the sampler "
            "was given `draws`. It was performed, not assumed. The "
            "figure needs the choice of examples to stay secret."
        )
    if any(
        isinstance(entry.sampling, entries_lib.UnknownSampling)
        for entry in entries
    ):
        paragraphs.append(
            "Batches came from an ordinary input pipeline. What is proved for "
            "them lets every example be in every batch, at most once in each; "
            "a pipeline that repeats an example within a batch is not covered."
        )
    return [wording.fill(paragraph) for paragraph in paragraphs]


def _unsampled(entry: entries_lib.LedgerEntry) -> entries_lib.LedgerEntry:
    if entry.release is entries_lib.Release.LABELS:
        return entry
    return dataclasses.replace(entry, sampling=entries_lib.UnknownSampling())


def _steps(entries: Sequence[entries_lib.LedgerEntry]) -> int:
    return sum(entry.steps for entry in entries)
