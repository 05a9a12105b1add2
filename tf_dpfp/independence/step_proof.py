"""Proof of a private step: what is clipped, and what a step writes.

Everything that leaves the forward and backward pass of a micro-batch towards
clipping is proved to be per example: the losses, the factors of every
per-example gradient, the mask of the examples that take part, and what reaches
a layer that releases representations. What the pass writes, prints or hands to
Python must be free of data.
"""

from collections.abc import Collection, Iterator, Sequence

import keras
import tensorflow as tf

from tf_dpfp import layers as layers_lib
from tf_dpfp import per_example
from tf_dpfp.independence import proof as proof_lib
from tf_dpfp.independence import seed_origins
from tf_dpfp.independence.findings import Category
from tf_dpfp.independence.findings import Finding
from tf_dpfp.independence.given import Given
from tf_dpfp.independence.proof import Released
from tf_dpfp.keras_private import layers as keras_layers
from tf_dpfp.step.traced import Traced

# That a step fails for some data is said in the documentation.
ALLOWED = (Category.ABORT,)
_MOST_LISTED = 5
_KNOWN = {
    False: "that can be known",
    None: "of which it can't be told that it is secret",
}


def prove_step(
    traced: Traced,
    layers: Collection[str] = (),
) -> proof_lib.Proof:
    """Proves the forward and backward pass of a micro-batch.

    With a batch size that is known while it is traced, the size is a number
    like any other, and the proof holds for batches of this size.

    Args:
        traced: The pass.
        layers: Names of the model's layers, for messages.

    Returns:
        The `Proof`.
    """
    trackers = frozenset(map(id, handles(traced.trackers)))
    of_data = handles([*traced.metrics, *traced.trackers])
    keys = [key for release in traced.representations for key in release.keys]
    return proof_lib.prove(
        traced.graph,
        traced.examples,
        _released(traced),
        [o for o in traced.operations if not tracks_a_loss(o, trackers)],
        layers,
        secret_handles=traced.secret_handles,
        data_handles=of_data,
        # What is written, or drawn, once in each tells which one it is. But
        # keys of what is released have no use but noise, and what holds data,
        # and may begin with zeros here, is not read.
        kept_handles=(
            [*traced.secret_handles, *keys, *of_data]
            if traced.in_pieces
            else None
        ),
        given=Given(
            public=[traced.piece] if tf.is_tensor(traced.piece) else (),
            of_weights=traced.of_weights,
            noises=_noises(traced.representations),
        ),
    )


def handles(variables: Sequence[tf.Variable]) -> list[tf.Tensor]:
    """Lists the handles of variables, and of their copies on replicas.

    Args:
        variables: The variables.
    """
    return [c.handle for v in variables for c in getattr(v, "values", [v])]


def _noises(
    releases: Sequence[layers_lib.Release],
) -> list[tuple[tf.Tensor, tf.Tensor]]:
    """Lists the noise of representations; its key is of a `NoiseSource`."""
    return [(r.noise, r.clipped) for r in releases if r.noise is not None]


def tracks_a_loss(op: tf.Operation, trackers: Collection[int]) -> bool:
    """Tells the metrics that Keras keeps of the loss of each output.

    It updates them as it adds up the losses. Training metrics are not private,
    and nothing in a step reads them.
    """
    writes = op.type in ("AssignVariableOp", "AssignAddVariableOp")
    return writes and id(seed_origins.outside(op.inputs[0])) in trackers


def findings_of(model: keras.Model, traced: Traced) -> tuple[Finding, ...]:
    """Lists what is not proved of a step."""
    names = {layer.name for layer in keras_layers.all_layers(model)}
    proof = prove_step(traced, names)
    return (*proof.refusals(ALLOWED), *known_draws(proof))


def known_draws(proof: proof_lib.Proof) -> list[Finding]:
    """Lists random numbers by row whose seed is not secret."""
    return [
        Finding(
            Category.SEED,
            draw.layer,
            draw.operation,
            draw.name,
            "It draws random numbers by the number of the row, from a seed "
            f"{_KNOWN[draw.is_secret]}: an example left out moves all later "
            "ones to other numbers.",
            "Draw with `keras.random` and a `keras.random.SeedGenerator`, as "
            "the layers of Keras do: its seeds are secret in a private step.",
            is_definite=draw.is_secret is not None,
        )
        for draw in proof.draws
        if not draw.is_secret
    ]


def raise_unless_proved(
    model: keras.Model, found: Sequence[Finding], what: str = "trained"
) -> None:
    """Raises for what is not proved.

    Args:
        model: The model.
        found: The findings.
        what: What can't be done with the model.

    Raises:
        ValueError: If there is one.
    """
    definite = [f for f in found if f.is_definite]
    if definite:
        raise ValueError(
            f"Model '{model.name}' can't be {what} privately: its examples "
            "are not independent of each other, or their data leave without "
            f"noise, so clipping does not bound the influence of one:\n"
            f"{_listed(definite)}"
        )
    if found:
        raise ValueError(
            f"Model '{model.name}' can't be {what} privately: it is not "
            "proved that its examples are independent of each other. Not "
            f"proved:\n{_listed(found)}\nA layer can run one example at a "
            "time, which needs no proof: `tf_dpfp.PerExample(layer)`."
        )


def named(message: str, found: Sequence[Finding]) -> str:
    """Adds to the message of a trial what a proof says of it.

    Args:
        message: The message.
        found: Findings of a proof.
    """
    definite = [f for f in found if f.is_definite]
    if not definite:
        return message
    return f"{message} The proof found:\n{_listed(definite)}"


def _listed(found: Sequence[Finding]) -> str:
    # One operation makes everything after it unproved.
    causes = {(f.name, f.reason): f for f in reversed(found)}
    lines = [f"  - {finding}" for finding in reversed(causes.values())]
    more = len(lines) - _MOST_LISTED
    rest = [f"  and {more} more"] if more > 0 else []
    return "\n".join(lines[:_MOST_LISTED] + rest)


def _released(traced: Traced) -> list[Released]:
    released = [
        Released(traced.losses, "the losses"),
        Released(traced.present, "the mask of the examples"),
    ]
    for release in traced.representations:
        tensor = release.clipped
        released.append(Released(tensor, "the representations", False))
    for path, gradient in zip(traced.paths, traced.gradients, strict=True):
        if gradient is not None:
            released += [
                Released(tensor, f"the gradient of '{path}'")
                for tensor in _tensors(gradient)
            ]
    return released


def _tensors(value: object) -> Iterator[tf.Tensor]:
    """Lists the tensors that a per-example gradient is made of."""
    if tf.is_tensor(value):
        yield value
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _tensors(item)
    elif isinstance(value, per_example.PerExampleGradient):
        for item in vars(value).values():
            yield from _tensors(item)
