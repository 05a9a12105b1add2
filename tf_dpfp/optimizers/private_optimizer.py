"""Private versions of Keras optimizers.

A private optimizer is the Keras optimizer, unchanged, behind one gate: it
takes clipped sums and nothing else, adds noise, divides by the expected batch
size, writes the step into the ledger, and only then lets the Keras optimizer
see a gradient. Everything after the gate is post-processing.

**Mechanism.** The release of a step is the vector of all clipped sums plus
Gaussian noise. Adjacency: one example added or removed. Sensitivity: the
clip bound `l2_norm_clip` (see `clipping`). Standard deviation on every
coordinate: `noise_multiplier * l2_norm_clip`. With adaptive thresholds the
counts that move them are released beside the sums, and the two share the
multiplier (see `accounting.joint`).

**Replicas.** Of R replicas, each adds its share of the noise to the clipped
sums of its own examples, of standard deviation 1 / sqrt(R) of the above and
from a stream of its own; then one all-reduce adds up. So the mechanism is that
of one replica.

Reference:
    Abadi et al., 2016, arXiv 1607.00133.
"""

import math
import operator
import warnings
from collections.abc import Sequence

import keras
import numpy as np
import tensorflow as tf

from tf_dpfp import accounting
from tf_dpfp import clipping as clipping_lib
from tf_dpfp import counting
from tf_dpfp import low_rank
from tf_dpfp import noise as noise_lib
from tf_dpfp.accounting import LedgerEntry
from tf_dpfp.accounting import Sampling
from tf_dpfp.distribute import replicas
from tf_dpfp.optimizers import adaptation as adaptation_lib
from tf_dpfp.optimizers import carrier_state as carrier_state_lib
from tf_dpfp.optimizers import clipped as clipped_lib
from tf_dpfp.optimizers import release
from tf_dpfp.optimizers import representations as representations_lib

_MARKER = "tf_dpfp_ledger"
# Squares of shorter gradients may vanish in float32, and with them the norm.
_LEAST_CLIP = 1e-10
# Standard deviation of the noise on a fraction, beyond which one warns.
_GREATEST_COUNT_NOISE = 0.25


def _positive_int(name: str, value, optional: bool = True) -> int | None:
    if value is None and optional:
        return None
    try:
        number = operator.index(value)
    except TypeError:
        number = 0
    if isinstance(value, bool) or number < 1:
        raise ValueError(
            f"`{name}` is a positive integer"
            f"{' or None' if optional else ''}. Received: {name}={value!r}"
        )
    return number


def _finite(name: str, value, at_least: float, strictly: bool) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if (
        isinstance(value, bool)
        or not math.isfinite(number)
        or number < at_least
        or (strictly and number == at_least)
    ):
        sign = ">" if strictly else ">="
        raise ValueError(
            f"`{name}` is a finite number {sign} {at_least:g}. "
            f"Received: {name}={value!r}"
        )
    return number


class PrivateOptimizer:
    """What a private optimizer adds to a Keras optimizer.

    Use it through `private_optimizer_class` or the ready-made classes
    (`DPSGD`, `DPAdam`, ...). The arguments below come beside the base
    optimizer's own.

    Args:
        l2_norm_clip: The bound C: each example moves the released sums by at
            most this, in L2 norm over all parameters together.
        noise_multiplier: Standard deviation of the noise over `l2_norm_clip`.
            0 adds no noise; epsilon is then infinite.
        clipping: `"flat"`, `"per_layer"`, `"per_device"`, or a
            `tf_dpfp.Clipping` object.
        expected_batch_size: What the noised sum is divided by: a public
            number, never the size of a batch that was drawn. `None` takes it
            from the `poisson_batches` data set, or from the first batch of
            an ordinary pipeline.
        microbatch_size: Physical batch inside a step. A batch of any size is
            cut into pieces of this many examples, so memory is bounded by
            the piece. It changes no result. `None`: the whole batch at once.
        seed: Integer that makes the noise reproducible, only for reproducing
            a run: who knows it can subtract the noise. `None` draws the
            noise's key from the operating system.

    Raises:
        ValueError: If an argument is out of its range, or
            `gradient_accumulation_steps` is given (use `microbatch_size`).
    """

    def __init__(
        self,
        *args,
        l2_norm_clip: float = 1.0,
        noise_multiplier: float | None = None,
        clipping: str | clipping_lib.Clipping = "flat",
        expected_batch_size: float | None = None,
        microbatch_size: int | None = None,
        seed: int | None = None,
        **kwargs,
    ):
        if noise_multiplier is None:
            raise ValueError(
                "`noise_multiplier` must be given: it sets the privacy of the "
                "training. Find one with tf_dpfp.calibrate(epsilon, delta, "
                "sampling_rate, steps)."
            )
        if kwargs.get("gradient_accumulation_steps"):
            raise ValueError(
                "`gradient_accumulation_steps` would add noise once per piece "
                "of a batch. Use `microbatch_size`, which adds it once per "
                "batch. Received: gradient_accumulation_steps="
                f"{kwargs['gradient_accumulation_steps']}"
            )
        if seed is not None:
            try:
                seed = operator.index(seed)
            except TypeError as error:
                raise ValueError(
                    f"`seed` is an integer or None. Received: seed={seed!r}"
                ) from error
        # The loss is scaled inside the private step, where one example's
        # overflow stays that example's; Keras must not divide once more.
        loss_scale = kwargs.pop("loss_scale_factor", None)
        if args and isinstance(args[0], int):
            args = (float(args[0]), *args[1:])
        if isinstance(kwargs.get("learning_rate"), int):
            kwargs["learning_rate"] = float(kwargs["learning_rate"])
        settings = dict(
            l2_norm_clip=_finite(
                "l2_norm_clip", l2_norm_clip, _LEAST_CLIP, False
            ),
            noise_multiplier=_finite(
                "noise_multiplier", noise_multiplier, 0.0, False
            ),
            clipping=clipping_lib.get(clipping),
            microbatch_size=_positive_int("microbatch_size", microbatch_size),
            seed=seed,
            loss_scale_factor=None
            if loss_scale is None
            else _finite("loss_scale_factor", loss_scale, 0.0, True),
        )
        if expected_batch_size is not None:
            expected_batch_size = _finite(
                "expected_batch_size", expected_batch_size, 0.0, True
            )
        super().__init__(*args, **kwargs)
        self._privacy_settings = settings
        self._given_batch_size = expected_batch_size
        self._batch_size_known = expected_batch_size is not None
        self._batch_size = self.add_variable(
            shape=(),
            initializer=keras.initializers.Constant(expected_batch_size or 0),
            dtype="float32",
            aggregation="only_first_replica",
            name="expected_batch_size",
        )
        table = self.add_variable(
            shape=counting.TABLE_SHAPE,
            initializer="zeros",
            dtype="float64",
            aggregation="only_first_replica",
            name="privacy_ledger",
        )
        self._ledger = counting.Ledger(
            table, settings["noise_multiplier"], seeded=seed is not None
        )
        self._beside: representations_lib.RowsBeside | None = None
        self._noise_source = noise_lib.NoiseSource(seed)
        self._adaptation: adaptation_lib.Adaptation | None = None
        self._carrier_state = carrier_state_lib.CarrierState(self)

    # Read-only: a compiled step would not notice a change.
    @property
    def l2_norm_clip(self) -> float:
        """The bound C on one example's influence on the released sums."""
        return self._privacy_settings["l2_norm_clip"]

    @property
    def noise_multiplier(self) -> float:
        """Standard deviation of the noise over the bound."""
        return self._privacy_settings["noise_multiplier"]

    @property
    def clipping(self) -> clipping_lib.Clipping:
        """What is clipped together, and at which thresholds."""
        return self._privacy_settings["clipping"]

    @property
    def microbatch_size(self) -> int | None:
        """Physical batch inside a step, or `None`."""
        return self._privacy_settings["microbatch_size"]

    @property
    def seed(self) -> int | None:
        """Seed of the noise, or `None` for the operating system's."""
        return self._privacy_settings["seed"]

    @property
    def fixed_loss_scale(self) -> float | None:
        """The `loss_scale_factor` that was given."""
        return self._privacy_settings["loss_scale_factor"]

    @property
    def expected_batch_size(self) -> float | None:
        """What the noised sum is divided by, `None` while unknown."""
        with tf.init_scope():  # Also while a step is traced.
            value = float(self._batch_size.numpy())
        return value if value > 0 else None

    @property
    def ledger_entries(self) -> list[LedgerEntry]:
        """What ran so far, for the accountant."""
        return self._ledger.entries()

    @property
    def next_entry(self) -> LedgerEntry:
        """What the next step releases, as a `LedgerEntry`."""
        return self._ledger.current()

    @property
    def updated_variables(self) -> list[keras.Variable]:
        """The variables the optimizer was built for; empty before that."""
        return list(self._trainable_variables)

    def absorb_ledger(self, entries: Sequence[LedgerEntry]) -> None:
        """Takes over what an earlier optimizer of the same model released."""
        self._ledger.absorb(entries)

    def open_ledger(
        self,
        sampling: Sampling,
        seeded: bool = False,
        release: accounting.Release | None = None,
        batch_size: int | None = None,
    ) -> None:
        """Says how the examples of the steps that follow are chosen.

        Args:
            sampling: The sampling.
            seeded: Whether it follows a seed.
            release: What the rows beside the sums release, if anything else is
                declared of the labels than `release_beside` was told.
            batch_size: The batch size for which the sampling holds; steps of
                another are counted as of unknown sampling. `None`: any.
        """
        self._ledger.open(
            sampling,
            seeded,
            None if release is None else release.with_sums,
            rows=batch_size,
        )

    def release_beside(self, rows: representations_lib.RowsBeside) -> None:
        """Counts rows beside the sums of every step from now on.

        Args:
            rows: The rows.

        Raises:
            ValueError: If the optimizer counts others already.
        """
        if self._beside == rows:
            return
        if self._beside is not None:
            raise ValueError(
                f"The optimizer '{self.name}' counts representations of "
                f"another kind: {self._beside}. Make a new optimizer for each "
                "model: its ledger belongs to one."
            )
        self._beside = rows
        self._ledger.describe(
            accounting.joint_noise_multiplier(
                rows.noise_multiplier, self.noise_multiplier
            ),
            rows.release.with_sums,
        )

    def ensure_ledger_open(self) -> None:
        """Gets ready to count steps inside a replica."""
        self._ledger.ensure_open()

    def set_expected_batch_size(self, size: float, source: str) -> None:
        """Takes the expected batch size from a pipeline.

        Args:
            size: The size.
            source: Where it comes from, for the message.

        Raises:
            ValueError: If the optimizer was given another size.
        """
        size = _finite("expected_batch_size", size, 0.0, True)
        given = self._given_batch_size
        if given is not None and not math.isclose(given, size, rel_tol=1e-6):
            raise ValueError(
                f"The optimizer was given expected_batch_size={given:g}, "
                f"but {source} has {size:g}. Leave the argument out, or make "
                "the two agree."
            )
        self._batch_size.assign(size)
        self._batch_size_known = True

    def groups(
        self, variables: Sequence[clipping_lib.OwnedVariable]
    ) -> tuple[clipping_lib.Group, ...]:
        """The groups of the trainable variables, with their thresholds.

        Adaptive thresholds are those of the next step; in a graph, tensors
        that are read anew in every step.

        Args:
            variables: The trainable variables and the layers that own them.

        Returns:
            The groups.
        """
        groups = self.clipping.groups(variables, self.l2_norm_clip)
        if self._adaptive is None:
            return groups
        mine = [owned.variable for owned in variables]
        if not self.built:
            self.build(mine)
        estimates = self._adaptation.current(groups, mine)
        return clipping_lib.with_estimates(
            groups, estimates, self.l2_norm_clip, self._adaptive.rescale
        )

    def carriers(
        self, variables: Sequence[keras.Variable]
    ) -> list[low_rank.Carriers | None]:
        """The carriers of reparametrised kernels in the next step.

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
        """Raises if kernels were marked or restored since it was built.

        Raises:
            ValueError: If so.
        """
        self._carrier_state.check_marks(self.updated_variables)

    @property
    def _adaptive(self) -> clipping_lib.Adaptive | None:
        thresholds = self.clipping.thresholds
        adapts = isinstance(thresholds, clipping_lib.Adaptive)
        return thresholds if adapts else None

    @tf.autograph.experimental.do_not_convert
    def build(self, variables):
        """Makes the optimizer's variables; see `keras.optimizers.Optimizer`."""
        if self.built:
            return
        # Out of the graph that is being traced, for the variables of a graph
        # would not be on the devices of those they belong to.
        with tf.init_scope():
            super().build(variables)
        self._noise_source.build()
        if self._adaptive is not None:
            self._adaptation = adaptation_lib.Adaptation(self, variables)
        self._carrier_state.build(variables)

    @tf.autograph.experimental.do_not_convert
    def apply(self, grads, trainable_variables=None):
        """Adds noise to clipped sums and updates the variables.

        Args:
            grads: `ClippedGradients`, from the private training step or from
                `tf_dpfp.clipped_gradients`.
            trainable_variables: Not needed; must be the variables of `grads`.

        Raises:
            clipped_lib.NotPrivateError: If `grads` is anything else.
        """
        if not isinstance(grads, clipped_lib.ClippedGradients):
            raise clipped_lib.NotPrivateError(
                f"{type(self).__name__} takes clipped gradients only, and "
                "this step computed ordinary ones. Call "
                "tf_dpfp.make_private(model) before training, or in a custom "
                "loop pass the result of tf_dpfp.clipped_gradients(...)."
            )
        if trainable_variables is not None and [
            id(v) for v in trainable_variables
        ] != [id(v) for v in grads.variables]:
            raise ValueError(
                "`trainable_variables` are not the variables the clipped "
                "gradients belong to. Leave the argument out."
            )
        if not self._batch_size_known and self.expected_batch_size is None:
            raise ValueError(
                "The expected batch size is not known. Give the optimizer "
                "`expected_batch_size=`."
            )
        clipped_lib.check_dealt(grads)
        representations_lib.check_beside(self._beside, grads.above)
        above = grads.above
        if not self.built:
            self.build([*grads.variables, *(above.variables if above else ())])
        carriers = self._carriers_of(grads)
        divisor = tf.convert_to_tensor(self._batch_size.value)
        draws = release.Draws(
            self._noise_source.next_step(self._ledger.total_steps()),
            replicas.index() if grads.replicas > 1 else 0,
            1.0 / math.sqrt(grads.replicas),
        )
        # Before anything is released: a step that fails half-way is counted.
        self._ledger.count_step(above.batch_size if above else 0)
        noise_multiplier, counts = self.noise_multiplier, None
        if self._adaptive is not None:
            noise_multiplier, counts = self._noised_counts(grads, draws)
        released = release.add_noise(
            grads, noise_multiplier, self.clipping.noise_allocation, draws
        )
        # Noised: from here on nothing is private, once it is added up.
        *released, counts = replicas.sum_over_all([*released, counts])
        if counts is not None:
            self._adapt(grads, counts, divisor)
        self._carrier_state.before_update(grads.variables, carriers)
        gradients = release.finished(grads, released, carriers, divisor)
        variables = list(grads.variables)
        if above is not None:
            gradients += [
                release.finish(total, extra, divisor, variable)
                for total, extra, variable in zip(
                    above.sums,
                    above.regularization,
                    above.variables,
                    strict=True,
                )
            ]
            variables += above.variables
        super().apply(gradients, variables)

    def _carriers_of(
        self, grads: clipped_lib.ClippedGradients
    ) -> Sequence[low_rank.Carriers | None]:
        """The carriers that came with clipped gradients, one per variable."""
        carriers = grads.carriers or (None,) * len(grads.variables)
        self._carrier_state.check_marks(grads.variables)
        for variable, mine in zip(grads.variables, carriers, strict=True):
            if (mine is None) != (low_rank.mark_of(variable) is None):
                raise ValueError(
                    f"These clipped gradients of '{variable.path}' were made "
                    "when it was reparametrised otherwise. Make them anew."
                )
        return carriers

    def _noised_counts(
        self, grads: clipped_lib.ClippedGradients, draws: release.Draws
    ) -> tuple[float, tf.Tensor]:
        """What noise is left for the sums; this replica's noised counts."""
        if grads.counts is None:
            raise ValueError(
                "These clipped gradients carry no counts, from which adaptive "
                "thresholds are found: they were made for another optimizer. "
                "Compile the model with this one."
            )
        counts = grads.counts
        if self._adaptive.shared:
            # Each example adds at most 1/2 to the mean, as to one count.
            counts = tf.reduce_mean(counts, keepdims=True)
        budget = accounting.split_budget(
            self.noise_multiplier,
            self._adaptive.budget_share,
            counts.shape[0],
        )
        _warn_if_drowned(budget, self.expected_batch_size)
        if self.noise_multiplier:
            counts += noise_lib.gaussian_noise(
                counts.shape,
                budget.counts * draws.share,
                # The keys before it are those of the variables.
                draws.key(len(grads.variables)),
            )
        return budget.sums, counts

    def _adapt(
        self,
        grads: clipped_lib.ClippedGradients,
        counts: tf.Tensor,
        expected_batch_size: tf.Tensor,
    ) -> None:
        """Moves the thresholds, by noised counts of all replicas."""
        estimates = clipping_lib.updated_estimates(
            tf.stack([group.estimate for group in grads.groups]),
            counts,
            expected_batch_size,
            self._adaptive,
        )
        self._adaptation.write(grads.groups, grads.variables, estimates)

    def update_step(self, gradient, variable, learning_rate):
        """As the Keras optimizer's, where the variable's group is."""
        # Left to TensorFlow, every update runs on the first device.
        with clipping_lib.on_device(self.clipping.device_of(variable)):
            super().update_step(gradient, variable, learning_rate)

    def _all_reduce_sum_gradients(self, grads_and_vars):
        # What arrives here is added up over replicas: `apply` did it, before
        # anything was divided. Of one replica, gradients would go to the first
        # device and come back.
        return grads_and_vars

    def apply_gradients(self, grads_and_vars):
        """As `apply`, for `ClippedGradients` only."""
        if isinstance(grads_and_vars, clipped_lib.ClippedGradients):
            self.apply(grads_and_vars)
            return self._iterations
        return super().apply_gradients(grads_and_vars)

    def save_own_variables(self, store):
        super().save_own_variables(store)
        store[_MARKER] = np.ones((), np.int64)

    def load_own_variables(self, store):
        """Restores the state; never forgets steps, and never in silence.

        Raises:
            ValueError: If the state was written by a private optimizer and
                does not fit this one, so that its ledger would be lost.
        """
        known = self._ledger.entries()
        variables = {k: store[k] for k in store.keys() if k != _MARKER}
        if _MARKER in store.keys():
            self._check_marks_of(variables)
        if _MARKER in store.keys() and len(variables) != len(self.variables):
            raise ValueError(
                "The saved state belongs to a private optimizer with "
                f"{len(variables)} variables and this one has "
                f"{len(self.variables)}: its privacy ledger would be lost. "
                "Compile the model as it was when it was saved, and build it "
                "and its optimizer (`optimizer.build(model."
                "trainable_variables)`) before loading."
            )
        super().load_own_variables(variables)
        self._ledger.keep_greater(known)
        if self._given_batch_size is not None:
            self._batch_size.assign(self._given_batch_size)

    def _check_marks_of(self, saved: dict) -> None:
        """Refuses the state of kernels that were reparametrised otherwise."""
        position = [id(v) for v in self.variables].index(
            id(self._carrier_state.variable)
        )
        if self.built and str(position) in saved:
            self._carrier_state.check_saved(int(saved[str(position)][()]))

    def get_config(self):
        config = super().get_config()
        settings = dict(self._privacy_settings)
        settings["clipping"] = keras.saving.serialize_keras_object(
            settings["clipping"]
        )
        config.update(settings)
        config["expected_batch_size"] = self._given_batch_size
        return config


def _warn_if_drowned(
    budget: accounting.BudgetSplit, expected_batch_size: float
) -> None:
    """Says so where noise, not the gradients, would move the thresholds."""
    deviation = budget.counts / expected_batch_size
    if deviation > _GREATEST_COUNT_NOISE:
        warnings.warn(
            "The fractions that adaptive thresholds follow get noise of "
            f"standard deviation {deviation:.2g}, so the thresholds will "
            "wander. Raise the expected batch size (now "
            f"{expected_batch_size:g}) or `budget_share`, clip fewer groups, "
            "or lower Adaptive's `learning_rate`.",
            stacklevel=2,
        )
