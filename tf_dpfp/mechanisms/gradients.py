"""DP-SGD: clipped per-example gradients, released as noised sums.

**Mechanism.** Each step releases the noised sums of clipped gradients.
Adjacency: one example added or removed. Sensitivity: `l2_norm_clip` on Poisson
batches; twice that on fixed ones, where a row that is left out moves all later
rows. The noise is added by `optimizers.release`.
"""

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import keras
import tensorflow as tf
from keras import tree

from tf_dpfp import accounting
from tf_dpfp import compilation
from tf_dpfp import counting
from tf_dpfp import optimizers
from tf_dpfp import replicas
from tf_dpfp import step as step_lib
from tf_dpfp.independence import gradients as gradient_trial
from tf_dpfp.independence import inputs
from tf_dpfp.independence import step_proof
from tf_dpfp.independence.findings import Finding
from tf_dpfp.keras_private import layers as keras_layers
from tf_dpfp.keras_private import trainer as keras_trainer
from tf_dpfp.mechanisms import building
from tf_dpfp.mechanisms import clip_layers
from tf_dpfp.mechanisms import correlated
from tf_dpfp.mechanisms import dealt
from tf_dpfp.mechanisms import eager_passes
from tf_dpfp.mechanisms import fit_batches
from tf_dpfp.mechanisms import fit_steps
from tf_dpfp.mechanisms import proved
from tf_dpfp.mechanisms import state as state_lib
from tf_dpfp.mechanisms import train_step
from tf_dpfp.mechanisms.mechanism import Calibrate
from tf_dpfp.mechanisms.mechanism import Entry
from tf_dpfp.mechanisms.mechanism import Mechanism
from tf_dpfp.sampling import pipelines
from tf_dpfp.step import losses as losses_lib


@dataclasses.dataclass(frozen=True)
class Gradients(Mechanism):
    """Clips the gradient of every example and noises their sum."""

    optimizer: optimizers.PrivateOptimizer

    # The public sampler whose batches this mechanism amplifies.
    sampler = "poisson_batches"

    def entries(self) -> list[Entry]:
        """Lists what the optimizer has released so far."""
        return self.optimizer.ledger_entries

    def pending(self) -> list[Entry]:
        """Lists what the next step counts as, beside itself."""
        return self.optimizer.correlation.pending

    def next_entries(self) -> list[Entry]:
        """Lists what the next step of the optimizer releases."""
        return [self.optimizer.next_entry]

    def ledgers(self) -> list[counting.Ledger]:
        """Lists the ledgers of the optimizer and of the layers."""
        return [self.optimizer.ledger, *super().ledgers()]

    def planned(self, arguments: dict[str, Any], steps: int) -> list[Entry]:
        """Lists what the steps of a `fit` will release."""
        self.optimizer.check_calibrated()
        pipeline = self.describe(
            arguments, self.optimizer.expected_batch_size is None
        )
        if pipeline.population is not None:
            self.state.populations.add(pipeline.population)
        claim = self.claims(pipeline)[self.optimizer.ledger]
        return [claim.entry(claim.steps_of_training(steps))]

    def count_now(self, claim: counting.Claim) -> None:
        """Counts a release outside of a step with those of the optimizer."""
        self.optimizer.ledger.count_now(claim)

    def absorb(self, entries: Sequence[Entry], elsewhere: bool = False) -> None:
        """Adds entries to the ledger of the optimizer."""
        self.optimizer.absorb_ledger(entries, elsewhere)

    def take_over(self, before: Any) -> None:
        """Adds the ledger of an earlier private optimizer to this one's."""
        private = isinstance(before, optimizers.PrivateOptimizer)
        if private and before is not self.optimizer:
            self.optimizer.ledger.origin.go_on_with(before.ledger.origin)
            self.absorb(before.ledger_entries)

    def check_compiled(self) -> None:
        """Forgets what belongs to the loss compiled before."""
        self.state.loss = None

    # What the joint mechanism does differently.

    def describe(
        self, arguments: dict[str, Any], need_batch_size: bool
    ) -> pipelines.Pipeline:
        """Describes the data passed to `fit`; see `pipelines.describe`."""
        return pipelines.describe(arguments, need_batch_size)

    def strategy(self) -> tf.distribute.Strategy | None:
        """Returns the strategy that the model trains under, if any.

        Raises:
            ValueError: If tables are sparse and its replicas are not those of
                one machine.
        """
        strategy = replicas.strategy_for(self.model, self.optimizer)
        fit_batches.check_sparse(self.optimizer.sparse_tables, strategy)
        return strategy

    def below(self, x: Any) -> step_lib.Below | None:  # noqa: ARG002
        """Returns what is trained below noised representations, if any.

        Args:
            x: Inputs of a batch; only shapes matter.
        """
        return None

    def check_draws(self, batches: Any, pipeline: pipelines.Pipeline) -> None:
        """Checks the model before steps on sampled batches.

        Args:
            batches: The data.
            pipeline: Its description.
        """

    def kind(self, pipeline: pipelines.Pipeline) -> Any:
        """Returns the kind of release on a pipeline; `None`: the optimizer's.

        Args:
            pipeline: Description of the data.
        """
        if pipeline.multiplicity > 1:
            return accounting.ViewSums(pipeline.multiplicity)
        if pipeline.max_examples_per_user is None:
            return None
        return accounting.PersonSums(pipeline.max_examples_per_user)

    def check_joined(self, kind: accounting.Release) -> None:  # noqa: ARG002
        """Refuses batches of persons or views where they can't be released.

        Args:
            kind: Sums of persons or of views.

        Raises:
            ValueError: If so.
        """

    # The same for both.

    # Batches of one size have pieces of one size, by padding.
    pads = True

    def build_dealt(
        self, strategy: tf.distribute.Strategy, batch: Any
    ) -> Sequence[Any]:
        """Gets ready for replicas; returns the groups that are clipped."""
        return dealt.build(self, strategy, batch).groups

    def check_ready(self) -> None:
        """Checks everything that can be checked before the first step.

        Raises:
            ValueError: If the model can't be trained privately as it is.
        """
        building.check_same_model(self.model, self.optimizer)
        self.optimizer.check_marks()
        self.check_layers()

    def plan(self, x: Any, y: Any, sample_weight: Any) -> step_lib.Plan:
        """Builds and tries the model, once, and plans a step.

        Args:
            x: Inputs of a batch; only shapes matter.
            y: Labels.
            sample_weight: Sample weights, or `None`.

        Returns:
            The plan.

        Raises:
            ValueError: If the model can't be trained privately.
        """
        model, state = self.model, self.state
        late = state.tried_for is None and keras_layers.has_unbuilt(model)
        if late or not model.built:
            inputs.build(model, x)
            if clip_layers.layers_of(model) != self.layers:
                raise ValueError(
                    f"Model '{model.name}' made a DPRepresentationClip while "
                    "it was built, after its mechanism was chosen. Build the "
                    "model first: call it on a batch, then `model.compile`."
                )
            self.check_layers()
        # Without one, the first trace tells if the model adds losses.
        compiled = keras_trainer.has_compiled_loss(model)
        if state.loss is None and compiled:
            loss, loss_weights = keras_trainer.compiled_loss_arguments(model)
            state.loss = keras_trainer.structured_loss(
                losses_lib.per_example(loss),
                loss_weights,
                getattr(model, "output_names", None),
            )
            state.tried_for = None
            state.traces = {}
            state.eager_passes = {}
        below = self.below(x)
        plan = step_lib.make_plan(model, self.optimizer, state.loss, below)
        plan = proved.with_proof(model, plan)
        if state.tried_for != proved.settings(model):
            self.check_layers()
            self._try(plan, (x, y, sample_weight))
            building.check_all_planned(model, plan)
            # Calls may set attributes of layers.
            state.tried_for = proved.settings(model)
        # A loop that runs eagerly would have it compiled anew in every step.
        in_graph = not tf.executing_eagerly()
        is_sparse = self.optimizer.sparse_tables is not None
        is_piece = state.dealt_to > 1 or (is_sparse and in_graph)
        compiles = state.compiles_pieces and is_piece
        if in_graph and not compiles:
            return plan
        of_model = eager_passes.compiled if compiles else eager_passes.of_model
        return dataclasses.replace(
            plan, eager_pass=of_model(model), compiles=compiles
        )

    def _try(self, plan: step_lib.Plan, batch: Any) -> None:
        """Tries the model; the proof names what the trial only notices."""
        try:
            gradient_trial.check(self.model, plan, batch)
        except gradient_trial.ExamplesMeetError as error:
            specs = proved.specs_of(batch)
            with compilation.tracing_for(compilation.Target.KERNELS):
                found = proved.trace(self.model, plan, specs)
            raise ValueError(step_proof.named(str(error), found)) from None

    def findings(
        self, x: Any, y: Any, sample_weight: Any = None
    ) -> tuple[Finding, ...]:
        """Lists what is not proved of a step; takes none.

        Args:
            x: Inputs of a batch, or their specifications.
            y: Labels.
            sample_weight: Sample weights, or `None`.

        Returns:
            The findings.

        Raises:
            ValueError: If the model does not pass its trial.
        """
        self.check_ready()
        plan = self.plan(x, y, sample_weight)
        specs = proved.specs_of((x, y, sample_weight))
        target = compilation.Target.KERNELS
        if self.model.jit_compile or self.state.compiles_pieces:
            target = compilation.Target.XLA
        with compilation.tracing_for(target):
            return proved.trace(self.model, plan, specs)

    def claims(
        self, pipeline: pipelines.Pipeline
    ) -> dict[counting.Ledger, counting.Claim]:
        """Returns the claim of steps on a pipeline, by ledger.

        Args:
            pipeline: Description of the data.
        """
        drawn = pipeline.drawn
        sampling, kind = pipeline.sampling, self.kind(pipeline)
        if correlated.applies(self.optimizer, pipeline):
            sampling, kind = correlated.by_parts(self.optimizer, pipeline)
        return self.optimizer.claims(
            sampling,
            pipeline.seeded,
            kind,
            None if drawn is None else drawn.capacity,
        )

    def fit(
        self, args: tuple, kwargs: dict, calibrate: Calibrate
    ) -> keras.callbacks.History:
        """Runs Keras's `fit` with the ledger open for the data."""
        self.check_ready()
        ordinary = state_lib.ordinary(self.model, "fit")
        arguments = state_lib.bound(ordinary, args, kwargs)
        pipeline = self.describe(
            arguments, self.optimizer.expected_batch_size is None
        )
        strategy = self.strategy()
        correlated.check(self, pipeline, strategy, arguments)
        if replicas.deals(strategy):
            pipeline = replicas.pipeline_of(strategy, arguments["x"], pipeline)
        self._take_sizes(pipeline)
        self.draw_on(arguments["x"])
        self._trace_anew_for(pipeline)
        self.check_draws(arguments["x"], pipeline)
        self.warn_of_labels(pipeline)
        if replicas.deals(strategy):
            calibrate(self, pipeline, arguments)
            return dealt.fit(self, strategy, pipeline, arguments)
        if pipeline.is_dataset:
            # Keras would warn that it can't shuffle a data set.
            kwargs.setdefault("shuffle", False)
        args, kwargs = fit_batches.weighed(ordinary, args, kwargs)
        compiles = self.model.jit_compile or self.state.compiles_pieces
        padded = fit_batches.needs_buckets(self.model, pipeline, compiles)
        if padded:
            args, kwargs = fit_batches.in_buckets(
                ordinary, self.optimizer, arguments["x"], args, kwargs
            )
        calibrate(self, pipeline, arguments)
        with strategy.scope() if strategy else contextlib.nullcontext():
            building.build_optimizer(self.model, self.optimizer)
        batches = arguments["x"]
        # Once the number of bands is known.
        if correlated.applies(self.optimizer, pipeline):
            batches = correlated.batches(
                self.optimizer, pipeline, arguments, padded
            )
            args, kwargs = state_lib.replaced(ordinary, args, kwargs, x=batches)
        drawn = fit_batches.handed_on(ordinary, args, kwargs, pipeline)
        with (
            fit_batches.built_before(self.model, batches),
            fit_steps.announced(self.state, self.claims(pipeline), drawn),
            correlated.opened(self.optimizer, pipeline, arguments),
        ):
            return ordinary(*args, **kwargs)

    def _trace_anew_for(self, pipeline: pipelines.Pipeline) -> None:
        """Drops a training function for other numbers of rows to join.

        TensorFlow would relax shapes that changed, and the number is one.
        """
        kind = self.kind(pipeline)
        if kind != self.state.joined_for:
            self.model.train_function = None
        self.state.joined_for = kind

    def _take_sizes(self, pipeline: pipelines.Pipeline) -> None:
        if pipeline.expected_batch_size is not None:
            self.optimizer.set_expected_batch_size(
                pipeline.expected_batch_size, pipeline.name
            )
        elif self.optimizer.expected_batch_size is None:
            raise ValueError(
                f"The batch size of {pipeline.name} can't be told before "
                "training. Give the optimizer `expected_batch_size=`."
            )
        if pipeline.population is not None:
            self.state.populations.add(pipeline.population)

    def train_on_batch(self, args: tuple, kwargs: dict) -> Any:
        """Runs Keras's `train_on_batch`, of unknown sampling."""
        self.check_ready()
        self.optimizer.check_calibrated()
        ordinary = state_lib.ordinary(self.model, "train_on_batch")
        arguments = state_lib.bound(ordinary, args, kwargs)
        strategy = self.strategy()
        if self.optimizer.expected_batch_size is None:
            self.optimizer.set_expected_batch_size(
                len(tree.flatten(arguments["x"])[0]), "the first batch"
            )
        with counting.announced(None, self.claims(pipelines.UNKNOWN)):
            if replicas.deals(strategy):
                return dealt.train_on_batch(self, strategy, arguments)
            return ordinary(*args, **kwargs)

    def train_step(self, data: Any) -> dict[str, Any]:
        """Takes one private step: update, metrics, logs."""
        return train_step.train_step(self, data)

    @contextlib.contextmanager
    def sampled_steps(self, batches: tf.data.Dataset) -> Iterator[None]:
        """Counts the steps inside as sampled like `batches`."""
        pipeline = self.describe({"x": batches}, need_batch_size=False)
        if isinstance(pipeline.sampling, accounting.UnknownSampling):
            raise ValueError(
                f"`sampled_steps` takes what {self.sampler} returned, itself: "
                f"another proves nothing. Received: batches={batches!r}"
            )
        self.optimizer.check_calibrated()
        correlated.refuse_loop(self.optimizer)
        self.check_draws(batches, pipeline)
        self._take_sizes(pipeline)
        self.draw_on(batches)
        with counting.announced(None, self.claims(pipeline), drawn=True):
            yield
