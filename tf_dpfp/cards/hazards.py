"""Hazards of differential privacy in practice, one by one.

The topics are those on which NIST SP 800-226, Guidelines for Evaluating
Differential Privacy Guarantees, warns of hazards, and those of training; order,
names and words are this package's. A hazard is

- `"handled"`: what was recorded, or is built in, meets it;
- `"stated"`: the card has the figure, and its reader must judge it;
- `"open"`: outside of what this package can see or do; the publisher's task;
- `"found"`: something was found that makes the guarantee weaker than it looks.

Reference:
    - Near, Darais, Lefkovitz and Howarth, 2025, [NIST SP
      800-226](https://doi.org/10.6028/NIST.SP.800-226).
"""

import dataclasses
from typing import Any

from tf_dpfp import accounting


@dataclasses.dataclass(frozen=True)
class Facts:
    """What hazards depend on.

    Attributes:
        record: What is known of the training.
        fields: Fields of the card that follow from it and delta.
        secure: True if the noise is from a cryptographic generator.
        audit: The audit's fields, or `None`.
        tuning: The tuning's fields, or `None`.
        digests: The data's digests, or `None`.
    """

    record: accounting.Record
    fields: dict[str, Any]
    secure: bool
    audit: dict[str, Any] | None
    tuning: list[dict[str, Any]] | None
    digests: list[dict[str, Any]] | None


def hazards(facts: Facts) -> list[dict[str, str]]:
    """Goes through the hazards of a training.

    Args:
        facts: What is known of it.

    Returns:
        For each hazard its topic, status and words.
    """
    return [
        {"topic": topic, "status": status, "words": words}
        for topic, (status, words) in (
            ("unit of privacy", _unit(facts)),
            ("privacy parameters", _parameters(facts)),
            ("variants and adjacency", _variants(facts)),
            ("composition", _composition(facts)),
            ("sampling assumptions", _sampling(facts)),
            ("hyper-parameter tuning", _tuning(facts)),
            ("metrics and post-processing", _METRICS),
            ("preprocessing", _PREPROCESSING),
            ("pretrained weights", _PRETRAINED),
            ("trust model", _TRUST),
            ("release model", _RELEASE),
            ("data security and access", _SECURITY),
            ("exposure at collection", _COLLECTION),
            ("randomness", _randomness(facts)),
            ("floating point", _floating_point(facts)),
            ("timing and other side channels", _SIDE_CHANNELS),
            ("accuracy and bias", _BIAS),
            ("implementation faults", _faults(facts)),
            ("what is published beside the model", _beside(facts)),
        )
    ]


_METRICS = (
    "open",
    "What is computed from the released weights alone costs nothing. Training "
    "metrics and losses, early stopping by them and scores on private "
    "validation data are computed from data without noise, and not counted.",
)
_PREPROCESSING = (
    "open",
    "Statistics, vocabularies, filters and de-duplication that were fitted to "
    "the data are releases of their own. They are not counted.",
)
_PRETRAINED = (
    "open",
    "Data that the weights saw before this training are not protected by it. "
    "Examples that are in both are not protected either.",
)
_TRUST = (
    "stated",
    "Central model: whoever trains sees the data in clear, and is trusted with "
    "them, with the keys of the noise and with this card. The guarantee is "
    "towards those who get the weights.",
)
_RELEASE = (
    "handled",
    "The guarantee is for an adversary who sees the weights and the optimizer "
    "state after every step, as is usual for DP-SGD, and so for whoever sees "
    "the final model, or asks it any number of questions.",
)
_SECURITY = (
    "open",
    "Differential privacy is of the release, and protects no stored data. "
    "Access control, encryption and deletion of the data, of logs and of "
    "checkpoints of other trainings are tasks of their own.",
)
_COLLECTION = (
    "open",
    "Nothing here protects data while they are collected, moved or kept, nor "
    "makes up for consent or purpose. Collect no more than is needed.",
)
_SIDE_CHANNELS = (
    "open",
    "Batch sizes vary with the draw. Step times, memory, crashes and logs may "
    "tell of it, and of single examples, to whoever watches the machine.",
)
_BIAS = (
    "open",
    "Clipping and noise cost most accuracy where examples are few. Measure "
    "groups apart, on public data or inside of a budget: this card says "
    "nothing of accuracy.",
)


def _unit(facts: Facts) -> tuple[str, str]:
    protects = facts.fields["unit"]["protects"]
    if protects == "person" and _has_rows_of_persons(facts):
        return (
            "stated",
            "What all examples of a person are is protected, and not how many "
            "there are, nor their labels. It is as true as the ids are: a "
            "person with two ids is two persons.",
        )
    if protects == "person":
        return (
            "handled",
            "A person with all of their examples is protected. It is as true "
            "as the ids are: a person with two ids is two persons.",
        )
    if protects != "example":
        return (
            "found",
            "Some steps protect examples and others persons: together they "
            "protect neither without a bound on the examples of a person.",
        )
    persons = facts.fields["persons"]
    if persons is None:
        return (
            "open",
            "One example is protected. A person with several is protected "
            "less, and nobody gave a bound on how many a person has.",
        )
    return (
        "stated",
        "One example is protected. For a person the card has a figure of its "
        f"own, if none has more than {persons['most_examples']}: a promise of "
        "the publisher, not checked.",
    )


def _has_rows_of_persons(facts: Facts) -> bool:
    return any(
        isinstance(entry.release, accounting.PersonRepresentations)
        for entry in facts.record.entries
    )


def _parameters(facts: Facts) -> tuple[str, str]:
    if facts.fields["epsilon"]["rdp"]["infinite"]:
        return "found", "No finite epsilon is proved."
    if any(w["about"] == "delta" for w in facts.fields["warnings"]):
        return (
            "found",
            "Delta is too large for the number of examples; see the warnings.",
        )
    return (
        "stated",
        "Epsilon alone is hard to judge. The rates of attacks say what it "
        "allows in the worst case. No threshold makes a model safe; an epsilon "
        "above 10 or so is a weak promise, whatever attacks find today.",
    )


def _variants(facts: Facts) -> tuple[str, str]:
    name = facts.fields["adjacency"]["name"].replace("_", "-")
    return (
        "stated",
        f"(epsilon, delta)-DP under {name} adjacency. A figure under another "
        "adjacency, of another unit or of another variant (as zCDP or local "
        "DP) can't be compared with it as it stands.",
    )


def _composition(facts: Facts) -> tuple[str, str]:
    record = facts.record
    if record.objections or record.ordinary_steps or record.trained_apart:
        return (
            "found",
            "Training is known that no figure counts; see the warnings.",
        )
    return (
        "stated",
        "All steps in the ledger of the model are composed. Other trainings "
        "and statistics of the same data add to the figures, and so does every "
        "model that was trained and thrown away; they are not on this card.",
    )


def _sampling(facts: Facts) -> tuple[str, str]:
    kinds = {type(entry.sampling) for entry in facts.record.entries}
    if accounting.UnknownSampling in kinds:
        return (
            "handled",
            "Some batches are from an ordinary pipeline. For them no sampling "
            "is counted; figures that assume one are marked as conditional.",
        )
    return (
        "handled",
        "Only sampling that was performed by this package's own sampler "
        "amplifies. It must have stayed secret which examples were drawn.",
    )


def _tuning(facts: Facts) -> tuple[str, str]:
    if facts.tuning:
        return "handled", "The search is in the ledger, and in every figure."
    return (
        "open",
        "If settings were chosen by other trainings on the same data, the "
        "choice is a release, too. No search is in the ledger.",
    )


def _randomness(facts: Facts) -> tuple[str, str]:
    if facts.record.seeded:
        return (
            "found",
            "SEEDED: noise or sampling follow from a seed that the user chose. "
            "Who knows or guesses it can take the noise away.",
        )
    source = (
        "Noise is from AES-256 in counter mode, sampling"
        if facts.secure
        else "Noise is from counter-based generators, sampling"
    )
    return (
        "handled" if facts.secure else "stated",
        f"{source} from PCG64, all keyed by the operating system. "
        + (
            "Sampling's is not cryptographic."
            if facts.secure
            else "None of them is cryptographic; secure=True changes the "
            "noise's."
        ),
    )


def _floating_point(facts: Facts) -> tuple[str, str]:
    if facts.secure:
        return (
            "stated",
            "The proof is for exact arithmetic. Each number of the noise is "
            "half the sum of four normals, which hinders attacks on rounding, "
            "and proves nothing.",
        )
    return (
        "open",
        "The proof is for exact arithmetic. Attacks on the rounding of "
        "floating-point noise are not covered.",
    )


def _faults(facts: Facts) -> tuple[str, str]:
    audit = facts.audit
    if audit is None:
        return (
            "open",
            "No audit was run. Every step was proved on its graph to keep "
            "examples apart; a proof of the design is no test of a machine.",
        )
    if audit["refuted"]:
        return (
            "found",
            "An audit REFUTES the figures: its lower bound is above epsilon.",
        )
    return (
        "stated",
        "An audit was run, and does not refute the figures; that proves no "
        "more than that this attack failed.",
    )


def _beside(facts: Facts) -> tuple[str, str]:
    if any(not digest["keyed"] for digest in facts.digests or ()):
        return (
            "found",
            "This card has digests of the data without a key: who guesses the "
            "data can confirm the guess. If the data are private, publish it "
            "without them.",
        )
    return (
        "stated",
        "This card tells the number of examples, where it is known, the "
        "sampling rate and the number of steps. The guarantee does not cover "
        "these.",
    )
