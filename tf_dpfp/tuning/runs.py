"""One run of a search: a fresh model, trained and scored; nothing is kept."""

import copy
import dataclasses
import math
import secrets
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
import numpy as np

from tf_dpfp import accounting
from tf_dpfp import evaluation
from tf_dpfp import mechanisms
from tf_dpfp import training
from tf_dpfp.keras_private import names as keras_names
from tf_dpfp.mechanisms import state as state_lib
from tf_dpfp.sampling import lengths
from tf_dpfp.tuning import cost

Candidate = Mapping[str, Any]
Build = Callable[..., keras.Model]
Score = evaluation.PrivateEvaluation | Callable[[keras.Model], float]

# Callbacks that keep nothing of a run, and look at what was released only.
_BY_MONITOR = (
    keras.callbacks.EarlyStopping,
    keras.callbacks.ReduceLROnPlateau,
)
_ALLOWED = (
    *_BY_MONITOR,
    keras.callbacks.LearningRateScheduler,
    evaluation.PrivateEvaluation,
)
_USED = "_tf_dpfp_of_a_search"
_LEDGER = "privacy_ledger"


class NotAsPlannedError(RuntimeError):
    """A run released something else than was planned before the first one."""


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What a run gives: everything that is kept of it.

    Attributes:
        candidate: The candidate.
        score: Its score, the greater the better.
        released: What the score was read from.
        weights: The trained weights.
    """

    candidate: Candidate
    score: float
    released: Any
    weights: list[np.ndarray]


@dataclasses.dataclass(frozen=True)
class Plan:
    """What all runs of a search have in common.

    Attributes:
        base: What the models of `build` have released before.
        of_run: What no run goes beyond.
        labels: Labels that were randomised once, for all runs.
        populations: Numbers of examples of the data.
    """

    base: frozenset[accounting.LedgerEntry]
    of_run: tuple[accounting.LedgerEntry, ...]
    labels: tuple[accounting.LedgerEntry, ...]
    populations: frozenset[int]


@dataclasses.dataclass(frozen=True)
class Runner:
    """Runs candidates.

    Attributes:
        build: Makes a private, compiled model of a candidate.
        fit: Arguments of `fit`, or a function from a candidate to them.
        score: Scores a trained model.
        names: Counters of Keras's names, from which every run begins.
    """

    build: Build
    fit: Mapping[str, Any] | Callable[..., Mapping[str, Any]]
    score: Score
    names: Mapping[str, int] = dataclasses.field(
        default_factory=keras_names.counters
    )

    def plan(self, space: Sequence[Candidate]) -> Plan:
        """Finds what no run goes beyond; trains nothing.

        Args:
            space: All candidates.

        Returns:
            The plan.

        Raises:
            ValueError: If a candidate can't be accounted for.
        """
        planned, labels, populations = [], [], set()
        bases = []
        for candidate in space:
            model = self.fresh(candidate)
            bases.append(_entries(model))
            of_run = self._planned(model, candidate)
            labels += [e for e in of_run if _is_of_labels(e)]
            planned.append([e for e in of_run if not _is_of_labels(e)])
            populations |= state_lib.state_of(model).populations
        if any(base != bases[0] for base in bases):
            raise ValueError(
                "The models of `build` come with ledgers that differ, so that "
                "a run can't be told from what was before it. Load the same "
                "weights for all candidates, or none."
            )
        found = cost.worst(planned)
        seeded = [entry for entry in (*found, *labels) if entry.seeded]
        if any(not _is_of_labels(entry) for entry in seeded):
            raise ValueError(
                "A run takes its noise or its sampling from a seed, and every "
                "other run would take the same: runs of a search must be "
                "independent. Leave `seed` out of the optimizer, the layers, "
                f"the batches and the score. Received: {seeded[0]}"
            )
        units = {entry.release.unit for entry in (*bases[0], *found)}
        if len(units) > 1:
            raise ValueError(
                "Some of the steps protect examples, and others persons: "
                "nothing is proved of both together. Give the score `users=`, "
                f"or train by example. Received: {found}"
            )
        return Plan(
            bases[0],
            tuple(found),
            tuple(accounting.merge(labels)),
            frozenset(populations),
        )

    def _planned(
        self, model: keras.Model, candidate: Candidate
    ) -> list[accounting.LedgerEntry]:
        """Lists what a run of a candidate releases."""
        mechanism = mechanisms.mechanism_of(model)
        arguments = state_lib.bound(
            state_lib.ordinary(model, "fit"), (), self._fit_of(candidate)
        )
        steps = lengths.steps_of(arguments, int(model.steps_per_execution))
        if not steps:
            raise ValueError(
                "The cost of a run must be known before the first one. Give "
                "`fit` data of known length or `steps_per_epoch=`, and at "
                f"least one epoch. Received: epochs={arguments['epochs']}, "
                f"steps_per_epoch={arguments.get('steps_per_epoch')}"
            )
        found = mechanism.planned(arguments, steps)
        # Labels may have been counted on the way.
        found += [e for e in mechanism.entries() if _is_of_labels(e)]
        found += evaluation.planned(arguments.get("callbacks"), arguments)
        if isinstance(self.score, evaluation.PrivateEvaluation):
            found.append(self.score.next_entry)
        return found

    def _fit_of(self, candidate: Candidate) -> dict[str, Any]:
        """Returns the arguments of `fit`, with callbacks of their own."""
        given = self.fit(**candidate) if callable(self.fit) else self.fit
        if not isinstance(given, Mapping):
            raise ValueError(
                "`fit` is a dictionary of arguments of `model.fit`, such as "
                "{'x': batches, 'epochs': 10}, or a function that returns one. "
                f"Received: {type(given).__name__}"
            )
        callbacks = [_copied(each) for each in _checked(given.get("callbacks"))]
        return {**given, "callbacks": callbacks, "verbose": 0}

    def fresh(self, candidate: Candidate) -> keras.Model:
        """Builds a model of a candidate, from randomness of its own.

        Args:
            candidate: The candidate.

        Returns:
            A private, compiled, built model that no other run had.

        Raises:
            ValueError: If it is none.
        """
        # Initial weights and shuffles of Keras are drawn by its global seed.
        keras.utils.set_random_seed(secrets.randbelow(2**31))
        # Names that go on counting would tell the number of runs.
        keras_names.set_counters(self.names)
        model = self.build(**candidate)
        _check_compiled(model)
        if not model.built:
            raise ValueError(
                f"`build` must return a model that is built. Call '{model.name}"
                "' on a batch first, or begin it with keras.Input."
            )
        if state_lib.state_of(model).has_released:
            raise ValueError(
                f"`build` trained or evaluated model '{model.name}', which "
                "every run would do anew, and the ledger would count it once. "
                "Train in `fit`; or train before the search, and let `build` "
                f"load the weights. Received: ledger={_listed(model)}"
            )
        parts = [*model.trainable_variables, model.optimizer]
        if any(hasattr(part, _USED) for part in parts):
            raise ValueError(
                f"`build` returned model '{model.name}' with weights or an "
                "optimizer of an earlier run. Make all of them in `build`, "
                "anew in every call; frozen weights may be shared."
            )
        for part in parts:
            object.__setattr__(part, _USED, True)
        return model

    def run(self, candidate: Candidate, plan: Plan) -> Outcome:
        """Trains and scores a candidate.

        Args:
            candidate: The candidate.
            plan: What no run goes beyond.

        Returns:
            The outcome.

        Raises:
            NotAsPlannedError: If the run released more than was planned.
        """
        with warnings.catch_warnings():
            # Warnings would tell of runs that are not returned.
            warnings.simplefilter("ignore")
            model = self.fresh(candidate)
            base = _entries(model)
            model.fit(**self._fit_of(candidate))
            score, released = self._scored(model)
        # Metrics that `build` made once hold counts of the last run.
        model.reset_metrics()
        _check(model, base, plan)
        return Outcome(candidate, score, released, _weights(model))

    def _scored(self, model: keras.Model) -> tuple[float, Any]:
        if not isinstance(self.score, evaluation.PrivateEvaluation):
            value = float(self.score(model))
            return (-math.inf if math.isnan(value) else value), value
        found = self.score.evaluate(model)
        if found.accuracy is not None:
            return found.accuracy.value, found
        assert found.loss is not None
        return -found.loss.value, found


def _check_compiled(model: Any) -> None:
    """Raises `ValueError` unless a model is private and compiled."""
    is_private = isinstance(model, keras.Model) and training.is_private(model)
    if is_private and getattr(model, "optimizer", None) is not None:
        return
    lacks = "is not compiled" if is_private else "is not private"
    raise ValueError(
        "`build` must return a model that is private and compiled: "
        "tf_dpfp.make_private(model), then model.compile(...). "
        f"Received: {type(model).__name__}, which {lacks}"
    )


def put(model: keras.Model, weights: Sequence[np.ndarray] | None) -> None:
    """Gives a fresh model the weights of a run, and nothing else of it.

    Args:
        model: A model of the same candidate.
        weights: The weights; `None` leaves those that it has.
    """
    if weights is not None:
        for variable, value in zip(_kept(model), weights, strict=True):
            variable.assign(value)
    if not model.optimizer.built and model.trainable_variables:
        # So that files can restore it.
        model.optimizer.build(model.trainable_variables)


def _weights(model: keras.Model) -> list[np.ndarray]:
    return [keras.ops.convert_to_numpy(v.value) for v in _kept(model)]


def _kept(model: keras.Model) -> list[keras.Variable]:
    return [v for v in model.weights if not v.path.endswith(_LEDGER)]


def _is_of_labels(entry: accounting.LedgerEntry) -> bool:
    return isinstance(entry.release, accounting.Labels)


def _entries(model: keras.Model) -> frozenset[accounting.LedgerEntry]:
    """Returns what a model released, without randomised labels."""
    entries = mechanisms.mechanism_of(model).entries()
    return frozenset(e for e in entries if e.steps and not _is_of_labels(e))


def _listed(model: keras.Model) -> list[accounting.LedgerEntry]:
    return list(mechanisms.mechanism_of(model).entries())


def _check(
    model: keras.Model, base: frozenset[accounting.LedgerEntry], plan: Plan
) -> None:
    """Holds the ledger of a run against the plan."""
    mechanism = mechanisms.mechanism_of(model)
    added = accounting.missing(_entries(model), base)
    if base != plan.base or not cost.is_within(added, plan.of_run):
        raise NotAsPlannedError(
            f"A run released more than was planned before the first one: "
            f"{added} is not within {list(plan.of_run)}. Nothing of the search "
            "is released. Let `build` and `fit` do the same in every call."
        )
    if mechanism.objections():
        raise NotAsPlannedError(
            "A run trained without the noise that its ledger counts: "
            f"{mechanism.objections()[0]}"
        )


def _checked(callbacks: Any) -> list[keras.callbacks.Callback]:
    """Refuses callbacks that could keep or tell something of a run."""
    found = keras.tree.flatten(callbacks) if callbacks else []
    for each in found:
        if isinstance(each, training.PrivacyBudget):
            raise ValueError(
                "A search has one budget for all of its runs. Give it "
                "budget=tf_dpfp.PrivacyBudget(...), and leave the callback "
                "out of `fit`. Received: a PrivacyBudget in `callbacks`"
            )
        if type(each) not in _ALLOWED:
            raise ValueError(
                "Callbacks of a search may keep nothing of a run, and look at "
                "nothing that was not released with noise. Allowed are "
                f"{[kind.__name__ for kind in _ALLOWED]}. Received: {each!r}"
            )
        monitor = getattr(each, "monitor", "private_")
        if type(each) in _BY_MONITOR and not monitor.startswith("private_"):
            raise ValueError(
                f"{type(each).__name__} looks at '{monitor}', which is "
                "computed of the data without noise. Let it monitor "
                "'private_accuracy' or 'private_loss' of a "
                f"tf_dpfp.PrivateEvaluation. Received: monitor={monitor!r}"
            )
    return found


def _copied(
    callback: keras.callbacks.Callback,
) -> keras.callbacks.Callback:
    """Returns a callback that dies with its run, and says nothing of it."""
    copied = copy.copy(callback)
    if hasattr(copied, "verbose"):
        # What it prints would tell of runs that are not returned.
        copied.verbose = 0
    if isinstance(copied, evaluation.PrivateEvaluation):
        copied.released = []
    return copied
