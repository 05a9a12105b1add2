"""DP-FP: representations clipped and noised in the forward pass.

**Mechanism.** Each step releases one noised representation for each example;
everything above them is trained by ordinary gradients, which is
post-processing. Nothing below is trained. Adjacency: one example replaced by
another of the same label. Sensitivity: twice the clip norm of the layer.
"""

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import keras
import tensorflow as tf
from keras import tree

from tf_dpfp import accounting
from tf_dpfp import counting
from tf_dpfp import layers as layers_lib
from tf_dpfp import optimizers
from tf_dpfp import replicas
from tf_dpfp import sampling as sampling_lib
from tf_dpfp import validation
from tf_dpfp.independence.representations import Findings
from tf_dpfp.keras_private import forked
from tf_dpfp.keras_private import lookups as keras_lookups
from tf_dpfp.keras_private import random as keras_random
from tf_dpfp.mechanisms import clip_layers
from tf_dpfp.mechanisms import dealt
from tf_dpfp.mechanisms import eager_passes
from tf_dpfp.mechanisms import fit_batches
from tf_dpfp.mechanisms import fit_steps
from tf_dpfp.mechanisms import proved_releases
from tf_dpfp.mechanisms import state as state_lib
from tf_dpfp.mechanisms.mechanism import Calibrate
from tf_dpfp.mechanisms.mechanism import Mechanism
from tf_dpfp.sampling import pipelines


@dataclasses.dataclass(frozen=True)
class Representations(Mechanism):
    """Noises representations; any optimizer trains what is above them."""

    @property
    def layer_checks(self) -> tuple[validation.LayerCheck, ...]:
        """Checks of random mixing alone: no per-example gradient is taken.

        A layer above the noise may do anything. A trial tells about those
        below, but for layers that mix examples in some of their calls only.
        """
        return validation.RANDOM_MIXING_CHECKS

    def entries(self) -> list[accounting.LedgerEntry]:
        """Lists what the layers have released so far."""
        return [e for layer in self.layers for e in layer.ledger_entries]

    def next_entries(self) -> list[accounting.LedgerEntry]:
        """Lists what the next call of each built layer releases."""
        return [layer.next_entry for layer in self.layers if layer.built]

    def objections(self) -> list[str]:
        """Tells if the optimizer took steps that no layer counted."""
        return clip_layers.uncounted_steps(self.model, self._counted())

    def keep_uncounted(self) -> None:
        """Keeps in mind steps that no layer counted, before `compile`."""
        clip_layers.keep_uncounted(self.model, self._counted())

    def _counted(self) -> int:
        return sum(
            e.steps for e in self.entries() if e.release.has_representations
        )

    def planned(
        self, arguments: dict[str, Any], steps: int
    ) -> list[accounting.LedgerEntry]:
        """Lists what the steps of a `fit` will release."""
        pipeline = pipelines.describe_representations(arguments)
        self._check_drawn(arguments["x"], pipeline)
        claims = self.claims(pipeline)
        return [claim.entry(claim.draws * steps) for claim in claims.values()]

    # Pieces of a batch get no rows that are no examples.
    pads = False

    def build_dealt(
        self, strategy: tf.distribute.Strategy, batch: Any
    ) -> Sequence[Any]:
        """Gets ready for replicas; nothing is clipped in groups."""
        with tf.init_scope():
            places, rows = _rows_of(dealt.specs_of(batch))
            x, _, _ = replicas.build(strategy, self.model, rows)
            self.check_layers()
            self.try_on(x)
            for layer in self.layers:
                release = layers_lib.of_places(layer.release, places)
                layer.ledger.ensure_open(release)
        return ()

    def claims(
        self, pipeline: pipelines.Pipeline
    ) -> dict[counting.Ledger, counting.Claim]:
        """Returns the claims of steps on a pipeline, by ledger."""
        found = self._claims(pipeline.drawn, pipeline.draws)
        places = pipeline.max_examples_per_user
        if places is None:
            return found
        return {
            ledger: _claim_of_persons(claim, places, pipeline)
            for ledger, claim in found.items()
        }

    def _strategy(self) -> tf.distribute.Strategy | None:
        """Returns the strategy, if it has several replicas.

        Raises:
            ValueError: If rows are not released under it.
        """
        model = self.model
        if not replicas.deals(model.distribute_strategy):
            return None
        strategy = replicas.strategy_for(model, self.optimizer)
        eager = model.run_eagerly or tf.config.functions_run_eagerly()
        replicas.check_rows(strategy, bool(eager))
        return strategy

    def count_now(self, claim: counting.Claim) -> None:
        """Counts a release outside of a step with those of the first layer."""
        self.layers[0].ledger.count_now(claim)

    def absorb(
        self,
        entries: Sequence[accounting.LedgerEntry],
        elsewhere: bool = False,
    ) -> None:
        """Adds entries to the ledger of the first layer."""
        self.layers[0].absorb_ledger(list(entries), elsewhere)

    def take_over(self, before: Any) -> None:
        """Keeps counted what a private optimizer released before."""
        if isinstance(before, optimizers.PrivateOptimizer):
            earlier = before.ledger_entries
            if earlier:
                self.layers[0].ledger.origin.go_on_with(before.ledger.origin)
                self.absorb(earlier)

    def check_compiled(self) -> None:
        """Tries a functional model at once."""
        inputs = clip_layers.inputs_of(self.model)
        if self.model.built and inputs is not None:
            self.try_on(inputs)

    def try_on(self, x: Any) -> Findings:
        """Tries the model on made-up inputs.

        Args:
            x: Inputs of a batch, or their specifications.

        Returns:
            The findings.

        Raises:
            ValueError: If the noise does not protect the examples, or weights
                below it are to be trained.
        """
        found = clip_layers.findings(self.model, x, self.layer_checks)
        end_to_end = any(layer.end_to_end for layer in self.layers)
        if found.trainable_below and not end_to_end:
            raise ValueError(
                "These weights are trainable and below a DPRepresentationClip, "
                "where the gradient stops: "
                f"{clip_layers.listed(found.trainable_below)}. Freeze their "
                "layers (`layer.trainable = False`), or compile the model with "
                "a private optimizer, which noises their gradient."
            )
        return found

    def fit(
        self,
        args: tuple,
        kwargs: dict,
        calibrate: Calibrate,  # noqa: ARG002
    ) -> keras.callbacks.History:
        """Runs Keras's `fit`; the layers count how their batches are drawn."""
        ordinary = state_lib.ordinary(self.model, "fit")
        arguments = state_lib.bound(ordinary, args, kwargs)
        x = arguments["x"]
        self.check_layers()
        pipeline = pipelines.describe_representations(arguments)
        strategy = self._strategy()
        if pipeline.max_examples_per_user is not None:
            fit_batches.weighed(ordinary, args, kwargs)  # Refuses weights.
        self._check_drawn(x, pipeline)
        self.warn_of_labels(pipeline)
        self.draw_on(x)
        self._trace_anew_for(pipeline)
        if pipeline.is_dataset:
            # Keras would warn that it can't shuffle a data set.
            kwargs.setdefault("shuffle", False)
        if strategy is not None:
            pipeline = replicas.pipeline_of(strategy, x, pipeline)
            return dealt.fit(self, strategy, pipeline, arguments)
        drawn = fit_batches.handed_on(ordinary, args, kwargs, pipeline)
        with (
            fit_batches.built_before(self.model, x),
            fit_steps.announced(self.state, self.claims(pipeline), drawn),
        ):
            return ordinary(*args, **kwargs)

    def _trace_anew_for(self, pipeline: pipelines.Pipeline) -> None:
        """Drops a training function for other numbers of rows of a person."""
        places = pipeline.max_examples_per_user
        if places != self.state.joined_for:
            self.model.train_function = None
        self.state.joined_for = places

    def train_on_batch(self, args: tuple, kwargs: dict) -> Any:
        """Runs Keras's `train_on_batch`; the layers count it."""
        ordinary = state_lib.ordinary(self.model, "train_on_batch")
        strategy = self._strategy()
        if strategy is not None:
            arguments = state_lib.bound(ordinary, args, kwargs)
            return dealt.train_on_batch(self, strategy, arguments)
        return ordinary(*args, **kwargs)

    def train_step(self, data: Any) -> dict[str, Any]:
        """Takes an ordinary step of a model that passed its trial."""
        optimizers.check_dealt(self.state.dealt_to)
        _, (x, _, _) = _rows_of(data)
        self.try_on(x)
        if any(layer.end_to_end for layer in self.layers):
            return self._step(data)
        in_graph = tf.executing_eagerly() and not forked.is_forked()
        if in_graph and proved_releases.is_plain(data):
            return eager_passes.whole_step(self.model, self._step, data)
        return self._step(data)

    def _step(self, data: Any) -> dict[str, Any]:
        step = state_lib.ordinary(self.model, "train_step")
        places, rows = _rows_of(data)
        persons = None
        if places is not None:
            persons = layers_lib.Persons.of(places, tree.flatten(rows[2]))
            data = rows
        # A representation that is not finite is replaced by zeros.
        guarded = keras_lookups.guarded(labels=False)
        of_persons = layers_lib.of_persons(persons)
        with self._secret_seeds(), guarded, layers_lib.dealt(), of_persons:
            if any(layer.end_to_end for layer in self.layers):
                return step(data)  # Nothing is claimed of it.
            return proved_releases.train_step(self.model, data, step)

    def _secret_seeds(self) -> contextlib.AbstractContextManager[None]:
        """Gives random layers seeds of the source that noise comes from."""
        seeded = [layer for layer in self.layers if layer.seed is not None]
        (layer, *_) = seeded or self.layers
        return keras_random.seeds_from(layer.pass_seeds())

    @contextlib.contextmanager
    def sampled_steps(self, batches: tf.data.Dataset) -> Iterator[None]:
        """Counts the forward passes inside as draws of `batches`."""
        info = _draws_of(batches)
        if info is None:
            raise ValueError(
                "`sampled_steps` takes the data set that tf_dpfp."
                "representations.stratified_batches returned, itself, for a "
                "model with a DPRepresentationClip: another proves nothing. "
                f"Received: batches={batches!r}"
            )
        self._check_draws(batches.element_spec[0], info.population)
        if not any(layer.end_to_end for layer in self.layers):
            proved_releases.check(self.model, batches.element_spec[0])
        self.draw_on(batches)
        claims = self._claims(info)
        announced = counting.announced(None, claims, drawn=True)
        with announced, self._secret_seeds():
            yield

    def _check_drawn(self, batches: Any, pipeline: pipelines.Pipeline) -> None:
        """Checks the model for batches of this package, of any kind."""
        if not pipeline.is_dataset:
            return
        _, (x, _, _) = _rows_of(batches.element_spec)
        self._check_draws(x, pipeline.population)

    def _check_draws(self, x: Any, population: int | None) -> None:
        """Refuses a model that releases a draw more than once."""
        found = self.try_on(x)
        if found.calls != 1:
            raise ValueError(
                f"DPRepresentationClip layers are called {found.calls} times "
                "in a forward pass: several releases of one draw are not "
                "amplified as one. Use one layer once, or train on ordinary "
                "batches, which are counted without amplification."
            )
        if population is not None:
            self.state.populations.add(population)

    def _claims(
        self, info: sampling_lib.SamplingInfo | None, draws: int = 1
    ) -> dict[counting.Ledger, counting.Claim]:
        """Returns the claims of the layers on the batches of a data set."""
        found: dict[counting.Ledger, counting.Claim] = {}
        for layer in self.layers:
            found |= layer.claims(info, draws)
        return found


def _claim_of_persons(
    claim: counting.Claim, places: int, pipeline: pipelines.Pipeline
) -> counting.Claim:
    """Returns the claim of steps on persons.

    Args:
        claim: The claim of steps on examples, of unknown sampling.
        places: Number of rows of a person.
        pipeline: Description of the data.
    """
    release = layers_lib.of_places(claim.release, places)
    if release.kind.unit != "person":  # End to end: it protects nobody.
        return claim
    return counting.Claim(release, pipeline.sampling, pipeline.seeded)


def _rows_of(data: Any) -> tuple[int | None, tuple]:
    """Returns how many rows a person has, and `(x, y, sample_weight)`.

    Args:
        data: A batch, or its specification.

    Returns:
        The number, `None` if a row is an example, and all rows end to end.
    """
    places = sampling_lib.max_examples_of(data)
    if places is None:
        return None, keras.utils.unpack_x_y_sample_weight(data)
    return places, tuple(sampling_lib.flat(data))


def _draws_of(batches: Any) -> sampling_lib.SamplingInfo | None:
    """Finds how `stratified_batches` draws; `None` for any other data."""
    info = sampling_lib.sampling_of(batches)
    if info is None or not isinstance(
        info.sampling, accounting.WithoutReplacement
    ):
        return None
    return info
