"""Privacy cost of a model's training: epsilon, and a statement in words."""

import math
from collections.abc import Sequence

import keras

from tf_dpfp import accounting
from tf_dpfp import arguments
from tf_dpfp import mechanisms
from tf_dpfp import step as step_lib
from tf_dpfp.mechanisms import trained_apart


def ledger(model: keras.Model) -> Sequence[accounting.LedgerEntry]:
    """Lists what a private model has released so far, by kind of step.

    Args:
        model: A private, compiled model.

    Returns:
        One `LedgerEntry` for each kind of step that ran: how its examples
        were sampled, its noise multiplier, how many steps there were, and what
        they released.

    Raises:
        NotPrivateError: If the model or its optimizer is not private.
    """
    return mechanisms.mechanism_of(model).entries()


def compute_epsilon(
    model: keras.Model,
    delta: float,
    accountant: str = "rdp",
    *,
    examples_per_user: int | None = None,
) -> float:
    """Computes the epsilon of everything a model's training has released.

    Adjacency: one example added or removed; of a model with a
    `DPRepresentationClip`, one example replaced by another of the same label
    (of any label, if labels were randomised). The two can't be compared.
    Only what is proved counts: steps on `poisson_batches`, or representations
    of `stratified_batches`, are amplified by sampling. Others are not, and an
    example that is added to or removed from fixed batches moves each later sum
    by up to twice the clip norm.

    After steps on `poisson_batches(users=...)` neighbours differ by one person
    with all examples. After steps on persons and others on examples epsilon is
    infinite, unless `examples_per_user` bounds what a person has.

    A person with several examples is protected less. With `examples_per_user`
    neighbours differ by a whole person: with Poisson sampling each of the
    person's examples is in a step by a coin of its own, and the figure is that
    of a mixture of Gaussians over how many are; with unknown sampling all of
    them may be in every step.

    Example:

    ```python
    tf_dpfp.compute_epsilon(model, 1e-5)  # Of one example.
    tf_dpfp.compute_epsilon(model, 1e-5, examples_per_user=8)  # Of a person.
    ```

    Args:
        model: A private, compiled model.
        delta: Probability with which the guarantee may fail, in (0, 1); below
            one over the number of examples to mean anything.
        accountant: `"rdp"` or `"pld"` (tighter, slower; of persons a minute
            with dp_accounting 0.5 or later, and what RDP gives with earlier
            ones).
        examples_per_user: Greatest number of examples that one person has in
            the data, a promise of yours, at most 1000. `None`: of one
            example.

    Returns:
        Epsilon; 0 before the first step, infinity if a step added no noise or
        nothing is proved (`privacy_statement` says why).

    Raises:
        NotPrivateError: If the model or its optimizer is not private.
        ValueError: If an argument is out of range, or nothing is proved for
            several examples of a person: with a `DPRepresentationClip`, and
            with padded="static".

    Reference:
        - Choquette-Choo et al., 2023, arXiv 2310.15526.
        - Charles et al., 2024, arXiv 2407.07737.
    """
    mechanism = mechanisms.mechanism_of(model)
    spent = accounting.compute_epsilon(
        mechanism.entries(),
        delta,
        accountant,
        examples_per_user=examples_per_user,
    )
    return math.inf if mechanism.objections() else spent


def privacy_statement(
    model: keras.Model,
    delta: float,
    accountant: str = "rdp",
    *,
    examples_per_user: int | None = None,
    style: str = "tf_dpfp",
) -> str:
    """Says in words what a model's training guarantees and what it does not.

    Args:
        model: A private, compiled model.
        delta: Probability with which the guarantee may fail, in (0, 1).
        accountant: `"rdp"` or `"pld"`.
        examples_per_user: Greatest number of examples that one person has in
            the data, for a figure of whole persons; see `compute_epsilon`.
        style: `"tf_privacy"` adds what TensorFlow Privacy says of the same
            training, which it does not observe.

    Returns:
        Plain text.

    Raises:
        NotPrivateError: If the model or its optimizer is not private.
        ValueError: If an argument is out of range, or nothing is proved for
            several examples of a person; with style="tf_privacy", if
            TensorFlow Privacy can't describe the training.
        ImportError: With style="tf_privacy", if it is not installed.
    """
    arguments.one_of("style", style, ["tf_dpfp", "tf_privacy"])
    record = record_of(model)
    said = accounting.written(
        accounting.paragraphs_of(record, delta, accountant, examples_per_user)
    )
    if style == "tf_dpfp":
        return said
    return f"{said}\n" + accounting.tf_privacy_statement(
        record.entries, delta, accountant, record.population
    )


def record_of(model: keras.Model) -> accounting.Record:
    """Collects what a private model's statement and card are made of.

    Args:
        model: A private, compiled model.

    Returns:
        The record.

    Raises:
        NotPrivateError: If the model or its optimizer is not private.
    """
    mechanism = mechanisms.mechanism_of(model)
    return accounting.Record(
        tuple(mechanism.entries()),
        population=max(mechanism.state.populations, default=None),
        objections=tuple(mechanism.objections()),
        ordinary_steps=mechanism.state.ordinary_steps,
        trained_apart=tuple(trained_apart.found(model)),
    )


def clip_norms(model: keras.Model) -> dict[str, float]:
    """Returns the clip norm of each group of a model in the next step.

    Fixed thresholds are what they were set to. Adaptive ones come from noised
    counts only, so they are as private as the weights and may be logged.

    Args:
        model: A private, built model, compiled with a private optimizer.

    Returns:
        From the names of the groups to their thresholds C_k.

    Raises:
        NotPrivateError: If the model or its optimizer is not private.
        ValueError: If the model has no weights yet.
    """
    optimizer = mechanisms.gradients_of(model).optimizer
    if not model.built:
        raise ValueError(
            f"Model '{model.name}' has no weights to group yet. Call it on a "
            "batch, or `model.build(input_shape)`, first."
        )
    groups = optimizer.groups(step_lib.owned_variables(model))
    return {group.name: float(group.clip_norm) for group in groups}
