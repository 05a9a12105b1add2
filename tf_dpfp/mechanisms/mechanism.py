"""Mechanism of a private model: the interface of the three ways to train.

    Gradients        clipped per-example gradients, noised sums (DP-SGD)
    Representations  clipped representations, noised in the forward pass (DP-FP)
    Joint            both, of the same examples, as one release

`compile` chooses one; see `mechanisms.choose`. Every question that the three
answer differently is a method here, so that no other room asks which one it is.
"""

import abc
import contextlib
import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import keras
import tensorflow as tf

from tf_dpfp import accounting
from tf_dpfp import counting
from tf_dpfp import layers as layers_lib
from tf_dpfp import sampling as sampling_lib
from tf_dpfp import user_warnings
from tf_dpfp import validation
from tf_dpfp.mechanisms import state as state_lib
from tf_dpfp.sampling import pipelines

Entry: TypeAlias = accounting.LedgerEntry
# Called with the mechanism, the description of the data and the arguments of
# `fit`, before anything is traced.
Calibrate: TypeAlias = Callable[[Any, pipelines.Pipeline, dict[str, Any]], None]


@dataclasses.dataclass(frozen=True)
class Mechanism(abc.ABC):
    """Way in which one compiled model is private.

    Args:
        model: A private model.
        optimizer: Its optimizer; `None` if it is not compiled.
        layers: The `DPRepresentationClip` layers of the model.
    """

    model: keras.Model
    optimizer: Any
    layers: tuple[layers_lib.DPRepresentationClip, ...] = ()

    @property
    def state(self) -> state_lib.State:
        """State of the model."""
        return state_lib.state_of(self.model)

    @property
    def layer_checks(self) -> tuple[validation.LayerCheck, ...]:
        """Checks that every layer of the model must pass."""
        return validation.LAYER_CHECKS

    def check_layers(self) -> None:
        """Refuses a model with layers that can't be trained privately.

        Raises:
            ValueError: With every problem and the way out of each.
        """
        validation.raise_if_invalid(self.model, self.layer_checks)

    @abc.abstractmethod
    def entries(self) -> list[accounting.LedgerEntry]:
        """Lists what the model has released so far."""

    @abc.abstractmethod
    def next_entries(self) -> list[accounting.LedgerEntry]:
        """Lists what the next step releases; empty if it can't be told."""

    def pending(self) -> list[accounting.LedgerEntry]:
        """Lists what the next step counts as, beside itself.

        The first step of a chain of correlated noise counts as several.
        """
        return []

    def committed(self) -> list[accounting.LedgerEntry]:
        """Lists what was released, and what the next step adds to one step."""
        return accounting.merge([*self.entries(), *self.pending()])

    def draw_on(self, batches: Any) -> None:
        """Has a seed of batches draw others than for the steps before.

        Args:
            batches: The data of steps to come.
        """
        origins = [ledger.origin for ledger in self.ledgers()]

        def brought() -> int:
            return sum(origin.steps_elsewhere() for origin in origins)

        before = sum(entry.steps for entry in self.entries()) - brought()

        def after(sampler: object) -> tuple[int, ...]:
            # And what a callback restores as the training begins.
            steps = before + brought()
            return steps, *(o.number_of(sampler, steps) for o in origins)

        sampling_lib.draw_after(batches, after)

    def ledgers(self) -> list[counting.Ledger]:
        """Lists the ledgers that count the steps of the model."""
        return [layer.ledger for layer in self.layers if layer.built]

    @abc.abstractmethod
    def count_now(self, claim: counting.Claim) -> None:
        """Counts one release that is made outside of a step, before it is.

        Args:
            claim: Kind of the release.
        """

    @abc.abstractmethod
    def planned(
        self, arguments: dict[str, Any], steps: int
    ) -> list[accounting.LedgerEntry]:
        """Lists what a `fit` will release, before it begins.

        Args:
            arguments: Its bound arguments.
            steps: Number of its steps.
        """

    def warn_of_labels(self, pipeline: pipelines.Pipeline) -> None:
        """Warns that nobody declared the labels: epsilon is infinite then.

        Args:
            pipeline: Description of the data of a `fit`.
        """
        for layer in self.layers:
            kind = layer.kind_of(pipeline.drawn)
            if getattr(kind, "labels", None) == "undeclared":
                user_warnings.warn(
                    f"The noise of layer '{layer.name}' does not cover the "
                    "labels, and nothing is declared of them: epsilon of this "
                    "training is infinite. Make the layer with "
                    "labels='public' if anyone may know them, or with what "
                    "tf_dpfp.representations.randomize_labels returns.",
                )

    def objections(self) -> list[str]:
        """Lists reasons why epsilon is infinite; empty if there are none."""
        return []

    def keep_uncounted(self) -> None:  # noqa: B027
        """Keeps in mind steps that no ledger counted, before `compile`."""

    def names(self) -> frozenset[str]:
        """Returns the names of its ledgers, other ones in each process."""
        names = [ledger.origin.names for ledger in self.ledgers()]
        return frozenset().union(*names)

    def counted_here(self) -> list[accounting.LedgerEntry]:
        """Lists what was released in this process, and came from no file."""
        return accounting.merge(
            entry
            for ledger in self.ledgers()
            for entry in ledger.origin.here(ledger.entries())
        )

    @abc.abstractmethod
    def absorb(
        self,
        entries: Sequence[accounting.LedgerEntry],
        elsewhere: bool = False,
    ) -> None:
        """Adds entries of an earlier ledger of the model to its ledger.

        Args:
            entries: The entries.
            elsewhere: True if they were not counted in this process.
        """

    @abc.abstractmethod
    def take_over(self, before: Any) -> None:
        """Keeps counted what the model released under another optimizer.

        Args:
            before: The optimizer that the model had before `compile`.
        """

    @abc.abstractmethod
    def check_compiled(self) -> None:
        """Checks the model at the end of `compile`.

        Raises:
            ValueError: If the model can't be trained so.
        """

    @abc.abstractmethod
    def fit(
        self, args: tuple, kwargs: dict, calibrate: Calibrate
    ) -> keras.callbacks.History:
        """Runs `fit`: checks, opens the ledger for the data, trains.

        Args:
            args: Positional arguments of `fit`.
            kwargs: Keyword arguments of `fit`.
            calibrate: Finds the noise multiplier of an optimizer that leaves
                it to `fit`; see `Calibrate`.

        Returns:
            The history.
        """

    @abc.abstractmethod
    def train_on_batch(self, args: tuple, kwargs: dict) -> Any:
        """Runs `train_on_batch`, counted without amplification by sampling.

        Args:
            args: Positional arguments of `train_on_batch`.
            kwargs: Keyword arguments of `train_on_batch`.

        Returns:
            The logs, as Keras returns them.
        """

    @abc.abstractmethod
    def train_step(self, data: Any) -> dict[str, Any]:
        """Takes one step; part of the compiled training function.

        Args:
            data: A batch, as Keras gives it to `train_step`.

        Returns:
            The logs of the step.
        """

    @abc.abstractmethod
    def sampled_steps(
        self, batches: tf.data.Dataset
    ) -> contextlib.AbstractContextManager:
        """Opens the ledger for the batches of a custom training loop.

        Args:
            batches: A data set of a sampler that fits the mechanism.

        Returns:
            A context; the claim ends with it.

        Raises:
            ValueError: If nothing is proved of how `batches` was drawn.
        """
