"""Private versions of Keras optimizers.

A private optimizer is the Keras optimizer, unchanged, behind one gate: it
takes clipped sums and nothing else, adds noise, divides by the expected batch
size, writes the step into the ledger, and only then lets the Keras optimizer
see a gradient. Everything after the gate is post-processing.

**Mechanism.** The release of a step is the vector of all clipped sums plus
Gaussian noise. Adjacency: one example added or removed. Sensitivity: the clip
bound `l2_norm_clip` (see `clipping`), twice that on fixed batches, where a row
that is left out moves all later rows (see `accounting`). Standard deviation on
every coordinate: `noise_multiplier * l2_norm_clip`. With adaptive clip norms
the counts that move them are released beside the sums, and the two share the
multiplier (see `accounting.joint`).

**Replicas.** Of R replicas, each adds its share of the noise to the clipped
sums of its own examples, of standard deviation 1 / sqrt(R) of the above and
from a stream of its own; then one all-reduce adds up. So the mechanism is that
of one replica.

Reference:
    Abadi et al., 2016, arXiv 1607.00133.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from tf_dpfp import clipping as clipping_lib
from tf_dpfp import counting
from tf_dpfp import low_rank
from tf_dpfp import noise as noise_lib
from tf_dpfp.distribute import replicas
from tf_dpfp.keras_private import optimizers as keras_optimizers
from tf_dpfp.keras_private import variables as keras_variables
from tf_dpfp.optimizers import adaptation as adaptation_lib
from tf_dpfp.optimizers import carrier_state as carrier_state_lib
from tf_dpfp.optimizers import clipped_gradients as clipped_lib
from tf_dpfp.optimizers import counted as counted_lib
from tf_dpfp.optimizers import joint_release
from tf_dpfp.optimizers import release
from tf_dpfp.optimizers import restoring
from tf_dpfp.optimizers import row_release
from tf_dpfp.optimizers import settings as settings_lib
from tf_dpfp.optimizers import sparse as sparse_lib
from tf_dpfp.optimizers.banded import Banded
from tf_dpfp.optimizers.correlation import Correlation
from tf_dpfp.optimizers.expected_batch_size import ExpectedBatchSize

# A mixin stands before a Keras optimizer, whose methods it calls by `super()`.
_KerasOptimizer: Any = object


class PrivateOptimizer(
    counted_lib.Counted,
    keras_optimizers.WithoutAllReduce,
    _KerasOptimizer,
):
    """Adds clipping, noise and a ledger to a Keras optimizer.

    Use it through `private_optimizer_class` or the ready-made classes
    (`DPSGD`, `DPAdam`, ...). The arguments below come beside the base
    optimizer's own.

    Args:
        l2_norm_clip: The bound C: each example moves the released sums by at
            most this, in L2 norm over all parameters together.
        noise_multiplier: Standard deviation of the noise over `l2_norm_clip`.
            0 adds no noise; epsilon is then infinite. `"calibrate"`: `fit`
            finds the least one with which its data and epochs stay within its
            `PrivacyBudget`, prints it, and keeps it from the first step on.
        clipping: `"flat"`, `"per_layer"`, `"per_device"`, or a
            `tf_dpfp.clipping.Clipping` object.
        expected_batch_size: Divisor of the noised sum: a public
            number, never the size of a batch that was drawn. `None` takes it
            from the `poisson_batches` data set, or from the first batch of
            an ordinary pipeline.
        microbatch_size: Physical batch inside a step. A batch of any size is
            cut into pieces of this many examples, so memory is bounded by
            the piece. It changes no result. `None`: the whole batch at once.
        seed: Integer that makes the noise reproducible, only for reproducing
            a run: who knows it can subtract the noise. `None` draws the
            noise's key from the operating system.
        secure: Boolean. True draws the noise from a cryptographic stream, each
            number as a sum of four, against attacks on generators and on
            floating point; see `noise.secure`. It needs the `cryptography`
            package and takes longer. Not under XLA, nor on a TPU, nor with a
            `DPRepresentationClip`.
        correlated_noise: `None` for independent noise, or a `tf_dpfp.Banded`:
            every step takes back part of the noise of earlier ones, for few
            passes over many examples. It needs batches of
            `cyclic_poisson_batches`. On one machine; not with a
            `DPRepresentationClip`.
        sparse_tables: `None` for noise on every row of every table, or a
            `tf_dpfp.Sparse`: of the tables that it names a step releases and
            updates the rows that enough examples touch. With `DPSGD` without
            momentum, `DPAdagrad` and `DPLazyAdam`, on one machine; not with
            correlated noise or a `DPRepresentationClip`.

    Raises:
        ValueError: If an argument is out of its range, or
            `gradient_accumulation_steps` is given (use `microbatch_size`).
        ImportError: If `secure` is true and `cryptography` is not installed.
    """

    def __init__(
        self,
        *args,
        l2_norm_clip: float = 1.0,
        noise_multiplier: float | str | None = None,
        clipping: str | clipping_lib.Clipping = "flat",
        expected_batch_size: float | None = None,
        microbatch_size: int | None = None,
        seed: int | None = None,
        secure: bool = False,
        correlated_noise: Banded | None = None,
        sparse_tables: sparse_lib.Sparse | None = None,
        **kwargs,
    ):
        args, kwargs, loss_scale = settings_lib.keras_arguments(args, kwargs)
        settings = settings_lib.checked_settings(
            l2_norm_clip=l2_norm_clip,
            noise_multiplier=noise_multiplier,
            clipping=clipping,
            expected_batch_size=expected_batch_size,
            microbatch_size=microbatch_size,
            seed=seed,
            loss_scale_factor=loss_scale,
            secure=secure,
            correlated_noise=correlated_noise,
            sparse_tables=sparse_tables,
        )
        super().__init__(*args, **kwargs)
        if settings.sparse_tables is not None:
            sparse_lib.check_skips(self, PrivateOptimizer)
        # Noise and ledger read the same frozen object; see `counting.release`.
        self._settings = settings
        self._batch_size = ExpectedBatchSize(self, settings.expected_batch_size)
        self._ledger = counting.Ledger(
            self.add_variable(
                shape=counting.TABLE_SHAPE,
                initializer="zeros",
                dtype="float64",
                aggregation="only_first_replica",
                name="privacy_ledger",
            )
        )
        self._noise_source = noise_lib.NoiseSource(settings.sums.seed)
        self._layer_seeds = noise_lib.LayerSeeds(settings.sums.seed)
        self._ledger.call_before(self._renew_keys)
        self._correlation = Correlation(self._ledger)
        self._correlation.take(settings.bands)
        self._adaptation: adaptation_lib.Adaptation | None = None
        self._carrier_state = carrier_state_lib.CarrierState(self)

    @property
    def expected_batch_size(self) -> float | None:
        """Divisor of the noised sum, `None` while unknown."""
        return self._batch_size.number()

    @property
    def correlation(self) -> Correlation:
        """Noise that is correlated over steps, if it is."""
        return self._correlation

    @property
    def updated_variables(self) -> list[keras.Variable]:
        """Variables the optimizer was built for; empty before that."""
        return keras_optimizers.updated_variables(self)

    def pass_seeds(self, piece: tf.Tensor | int = 0) -> noise_lib.PassSeeds:
        """Returns secret seeds for the random layers of a forward pass.

        Args:
            piece: Number of the micro-batch in its step.
        """
        steps = None if self.seed is None else self._ledger.total_steps()
        return self._layer_seeds.of_pass(piece, steps)

    def secret_handles(self) -> list[tf.Tensor]:
        """Returns handles of the variables that secret seeds come from."""
        self._layer_seeds.build()
        return self._layer_seeds.handles()

    def set_expected_batch_size(self, size: float, source: str) -> None:
        """Takes the expected batch size from a pipeline.

        Args:
            size: The size.
            source: Name of the pipeline, for the message.

        Raises:
            ValueError: If the optimizer was given another size.
        """
        self._batch_size.take(size, source)

    def groups(
        self, variables: Sequence[clipping_lib.OwnedVariable]
    ) -> tuple[clipping_lib.Group, ...]:
        """Groups the trainable variables, with the clip norms of the next step.

        Adaptive clip norms are, in a graph, tensors that are read anew in
        every step.

        Args:
            variables: The trainable variables and the layers that own them.

        Returns:
            The groups.
        """
        groups = self.clipping.groups(variables, self.l2_norm_clip)
        if self._settings.adaptive is None:
            return groups
        mine = [owned.variable for owned in variables]
        if not self.built:
            self.build(mine)
        assert self._adaptation is not None  # Since it is built.
        return self._adaptation.current_groups(groups, mine, self.l2_norm_clip)

    def carriers(
        self, variables: Sequence[keras.Variable]
    ) -> list[low_rank.Carriers | None]:
        """Returns the carriers of reparametrised kernels in the next step.

        With correlated noise carriers stay for some steps. Outside of replicas
        that keep them, these are those of the weights as they are.

        Args:
            variables: The trainable variables.

        Returns:
            One entry for each variable; `None` where it is not reparametrised.

        Raises:
            ValueError: If a kernel was reparametrised or restored since the
                optimizer was built.
        """
        if not self.built:
            if not any(map(low_rank.mark_of, variables)):
                return [None] * len(variables)
            self.build(list(variables))
        self._carrier_state.check_marks(variables)
        return self._carrier_state.current(variables)

    def check_marks(self) -> None:
        """Refuses kernels that were marked or unmarked since it was built.

        Raises:
            ValueError: If so.
        """
        self._carrier_state.check_marks(self.updated_variables)

    @tf.autograph.experimental.do_not_convert
    def build(self, variables):
        """Creates the variables; see `keras.optimizers.Optimizer`."""
        if self.built:
            return
        # Create slots outside the traced graph, or they would not follow their
        # variables' devices.
        with keras_variables.made_eagerly():
            super().build(variables)
            self._noise_source.build()
            self._layer_seeds.build()
            adaptive = self._settings.adaptive
            if adaptive is not None:
                self._adaptation = adaptation_lib.Adaptation(
                    self, variables, adaptive
                )
            self._carrier_state.build(variables)

    @tf.autograph.experimental.do_not_convert
    def apply(self, grads, trainable_variables=None):
        """Adds noise to clipped sums and updates the variables.

        Args:
            grads: `ClippedGradients`, from the private training step or from
                `tf_dpfp.loops.clipped_gradients`.
            trainable_variables: Not needed; must be the variables of `grads`.

        Raises:
            clipped_lib.NotPrivateError: If `grads` is anything else.
        """
        clipped = clipped_lib.checked(
            grads, trainable_variables, type(self).__name__
        )
        self.check_calibrated()
        self._batch_size.check_known()
        settings = self._settings
        clipped_lib.check_dealt(clipped.replicas)
        joint_release.check_joint(settings.representations, clipped.joint)
        adaptation_lib.check_counts(clipped, settings.adaptive)
        clipped_lib.check_owner(clipped, self)
        if not self.built:
            self.build(clipped.all_variables)
        carriers = self._carrier_state.carriers_of(clipped)
        divisor = self._batch_size.tensor()
        draws = release.draws_of(
            self._noise_source.next_step(self._ledger.total_steps()),
            clipped,
            settings.secure,
        )
        # Before anything is released: a step that fails half-way is counted.
        turn = self._correlation.count_step(
            settings.release_of(clipped.kind), clipped, carriers
        )
        if turn is not None:
            draws = turn.guarded(draws)
        noise_multiplier, counts = settings.sums.noise_multiplier, None
        tables = row_release.row_release_of(
            settings.sparse_tables, noise_multiplier
        )
        if tables is not None:
            noise_multiplier = tables.noise_multiplier
        adaptation = self._adaptation
        if adaptation is not None:
            noise_multiplier, counts = adaptation.noised_counts(
                clipped, noise_multiplier, self._batch_size.require(), draws
            )
        released = release.add_noise(
            clipped,
            noise_multiplier,
            self.clipping.noise_allocation,
            draws,
            turn,
            tables,
        )
        # Noised: from here on nothing is private, once it is added up.
        *released, counts = replicas.sum_over_all([*released, counts])
        joint = joint_release.of_all_replicas(clipped.joint)
        clipped = dataclasses.replace(clipped, joint=joint)
        with clipped.updating([*released, counts]):
            if adaptation is not None:
                adaptation.move(clipped, counts, divisor)
            self._carrier_state.before_update(clipped.variables, carriers)
            super().apply(
                release.finished(clipped, released, carriers, divisor),
                clipped.all_variables,
            )

    def update_step(self, gradient, variable, learning_rate):
        """Updates a variable as Keras does, on the device of its group."""
        # Left to TensorFlow, every update runs on the first device.
        with clipping_lib.on_device(self.clipping.device_of(variable)):
            super().update_step(gradient, variable, learning_rate)

    def apply_gradients(self, grads_and_vars):
        """Calls `apply`, for `ClippedGradients` only."""
        if isinstance(grads_and_vars, clipped_lib.ClippedGradients):
            self.apply(grads_and_vars)
            return self.iterations
        return super().apply_gradients(grads_and_vars)

    def save_own_variables(self, store):
        super().save_own_variables(store)
        restoring.mark(store, self.ledger_entries)

    def load_own_variables(self, store):
        """Restores the state; never forgets steps, and never in silence.

        Raises:
            ValueError: If the state was written by a private optimizer and
                does not fit this one, so that its ledger would be lost.
        """
        known = self._ledger.entries()
        super().load_own_variables(
            restoring.checked_variables(store, self, self._carrier_state)
        )
        # Again, for Keras might write past `assign`, which the ledger watches.
        self._ledger.keep_greater(known)
        self._batch_size.keep_given()

    def get_config(self):
        return {**super().get_config(), **self._settings.get_config()}
