"""Carriers of reparametrised kernels, as optimizer state."""

from collections.abc import Sequence

import keras
import tensorflow as tf

from tf_dpfp import low_rank
from tf_dpfp.keras_private import variables as keras_variables
from tf_dpfp.optimizers import held_carriers
from tf_dpfp.optimizers.clipped_gradients import ClippedGradients

# Before the optimizer is built, no marks were looked at.
_UNKNOWN = -1
# With correlated noise: so that most of a step's noise is taken back in the
# directions that it was in.
_STEPS_PER_BAND = 2


class CarrierState:
    """Computes the carriers of every step and keeps their snapshots.

    They depend on the weights before the step, on a snapshot of the weights
    before the first one, on the count of steps and on a public seed: all of it
    private, or public, already. The snapshots are optimizer variables, so a
    resumed run goes on with the same ones.

    One more variable holds a fingerprint of all marks. State
    that was saved under other marks is refused.

    Args:
        optimizer: The optimizer that owns the variables.
    """

    def __init__(self, optimizer):
        self._optimizer = optimizer
        self._fingerprint = optimizer.add_variable(
            shape=(),
            initializer=keras.initializers.Constant(_UNKNOWN),
            dtype="int64",
            aggregation="only_first_replica",
            name="reparametrization",
        )
        self._marks: list[low_rank.Mark | None] = []
        self._snapshots: dict[int, keras.Variable] = {}
        self._positions: dict[int, int] = {}
        self._held = held_carriers.HeldCarriers()
        self._watch_restores()

    def _watch_restores(self) -> None:
        """Checks marks where `load_own_variables` is not called."""

        def checking(restore):
            def restore_and_check(*args, **kwargs):
                known = self._known()
                result = restore(*args, **kwargs)
                restored = self._known()
                if known != _UNKNOWN:
                    self._fingerprint.assign(known)
                    self.check_saved(restored)
                return result

            return restore_and_check

        keras_variables.wrap_restores(self._fingerprint, checking)

    def _known(self) -> int:
        with tf.init_scope():
            return int(self._fingerprint.numpy())

    @property
    def variable(self) -> keras.Variable:
        """Variable with the fingerprint of all marks."""
        return self._fingerprint

    def build(self, variables: Sequence[keras.Variable]) -> None:
        """Creates the variables.

        Args:
            variables: The variables that the optimizer updates.

        Raises:
            ValueError: If state of other marks was restored before.
        """
        self._marks = [low_rank.mark_of(v) for v in variables]
        self._positions = {id(v): i for i, v in enumerate(variables)}
        found = low_rank.fingerprint(variables)
        restored = self._known()
        self._fingerprint.assign(found)
        if restored != _UNKNOWN:
            self.check_saved(restored)
        for index, mark in enumerate(self._marks):
            if mark is not None and mark.config.carrier_source == "history":
                # Zeros: the history is then the weight.
                self._snapshots[index] = (
                    self._optimizer.add_variable_from_reference(
                        variables[index], name="first_weight"
                    )
                )

    def check_saved(self, fingerprint: int) -> None:
        """Refuses state that was saved under other marks.

        Args:
            fingerprint: Fingerprint in the state.

        Raises:
            ValueError: If it does not fit.
        """
        if fingerprint not in (_UNKNOWN, self._known()):
            raise ValueError(
                "The saved optimizer state belongs to a model whose kernels "
                "were reparametrised otherwise. Call "
                "tf_dpfp.reparametrize(...) as before saving, or "
                "tf_dpfp.low_rank.remove_carriers(model) if it was not called, "
                "then compile and load. `load_model` makes a model without "
                "marks: use load_model(path, compile=False) and compile it "
                "anew, which keeps the ledger, or load_weights(path)."
            )

    def check_marks(self, variables: Sequence[keras.Variable]) -> None:
        """Refuses marks that changed since the optimizer was built.

        Args:
            variables: The variables that the optimizer updates.

        Raises:
            ValueError: If a kernel was marked or restored since.
        """
        for variable in variables:
            position = self._positions.get(id(variable))
            if position is None:
                continue  # The Keras optimizer refuses it, by name.
            if low_rank.mark_of(variable) != self._marks[position]:
                raise ValueError(
                    f"'{variable.path}' was reparametrised or restored after "
                    "the optimizer was built. Compile the model with a new "
                    "optimizer; what the old one released stays counted."
                )

    def carriers_of(
        self, clipped: ClippedGradients
    ) -> Sequence[low_rank.Carriers | None]:
        """Returns the carriers that came with clipped gradients.

        Args:
            clipped: The clipped gradients.

        Returns:
            One entry for each variable.

        Raises:
            ValueError: If the gradients, or the optimizer, were made under
                other marks.
        """
        carriers = clipped.carriers or (None,) * len(clipped.variables)
        self.check_marks(clipped.variables)
        for variable, mine in zip(clipped.variables, carriers, strict=True):
            if (mine is None) != (low_rank.mark_of(variable) is None):
                raise ValueError(
                    f"These clipped gradients of '{variable.path}' were made "
                    "when it was reparametrised otherwise. Make them anew."
                )
        return carriers

    def current(
        self, variables: Sequence[keras.Variable]
    ) -> list[low_rank.Carriers | None]:
        """Computes the carriers of the next step.

        Args:
            variables: The trainable variables.

        Returns:
            One entry for each variable; `None` where there is no mark.
        """
        marked = [(i, v) for i, v in enumerate(variables) if self._mark_of(v)]
        kernels = [variable for _, variable in marked]
        steps = self._steps_of_one
        found = (
            self._anew(kernels)
            if steps == 1 or not kernels
            else self._held.current(kernels, steps, lambda: self._anew(kernels))
        )
        carriers: list[low_rank.Carriers | None] = [None] * len(variables)
        for (index, _), own in zip(marked, found, strict=True):
            carriers[index] = own
        return carriers

    @property
    def _steps_of_one(self) -> int:
        """Number of steps that carriers stay for."""
        bands = self._optimizer.bands or 1
        return 1 if bands == 1 else _STEPS_PER_BAND * bands

    def _mark_of(self, variable: keras.Variable) -> low_rank.Mark | None:
        index = self._positions.get(id(variable))
        return None if index is None else self._marks[index]

    def _anew(
        self, kernels: Sequence[keras.Variable]
    ) -> list[low_rank.Carriers]:
        """Computes carriers of the weights as they are."""
        step = tf.cast(self._optimizer.iterations.value, tf.int32)
        starts = self._starts(step)
        return [self._carriers_of(kernel, step, starts) for kernel in kernels]

    def _starts(self, step: tf.Tensor) -> dict[int, low_rank.Carriers]:
        """Random numbers for every marked kernel, by its position.

        Drawn at once for all kernels of a seed: the operations of many small
        draws cost more than the numbers.
        """
        places: dict[int, list[tuple[int, low_rank.Mark]]] = {}
        for index, mark in enumerate(self._marks):
            if mark is not None:
                places.setdefault(mark.config.seed, []).append((index, mark))
        starts = {}
        for seed, marked in places.items():
            shapes = []
            for _, mark in marked:
                shapes.append([mark.view.num_rows, mark.config.rank])
                shapes.append([mark.view.num_columns, mark.config.rank])
            sizes = [rows * columns for rows, columns in shapes]
            pieces = tf.split(
                low_rank.normals(sum(sizes), tf.stack([seed, step])), sizes
            )
            pieces = map(tf.reshape, pieces, shapes)
            for index, _ in marked:
                starts[index] = low_rank.Carriers(next(pieces), next(pieces))
        return starts

    def _carriers_of(self, variable, step, starts) -> low_rank.Carriers:
        index, mark = self._positions[id(variable)], self._mark_of(variable)
        assert mark is not None
        if mark.config.carrier_source == "random":
            carriers = low_rank.random_carriers(starts[index])
        else:
            carriers = low_rank.leading_carriers(
                self._target(variable, index, mark, step), starts[index]
            )
        if mark.config.left_only:
            return carriers._replace(right=None)
        return carriers

    def _target(self, variable, index, mark, step) -> tf.Tensor:
        """Returns the matrix whose directions the carriers follow."""
        weight = _value(variable)
        snapshot = self._snapshots.get(index)
        if snapshot is None:
            return _as_matrix(weight, mark)
        first = _value(snapshot)
        # Before the first step the snapshot is not taken yet.
        has_history = (
            step >= max(mark.config.warmup_steps, 1)
        ) & tf.reduce_any(tf.not_equal(weight, first))
        return tf.cond(
            has_history,
            lambda: _as_matrix(weight - first, mark),
            lambda: _as_matrix(weight, mark),
        )

    def before_update(
        self,
        variables: Sequence[keras.Variable],
        carriers: Sequence[low_rank.Carriers | None],
    ) -> None:
        """Takes snapshots of the weights, before they change.

        Args:
            variables: The trainable variables.
            carriers: The carriers of this step.
        """
        if self._steps_of_one > 1 and any(
            used is not None for used in carriers
        ):
            self._held.after_step()
        is_first = tf.equal(self._optimizer.iterations.value, 0)
        for variable, used in zip(variables, carriers, strict=True):
            if used is None:
                continue
            snapshot = self._snapshots.get(self._positions[id(variable)])
            if snapshot is not None:
                _assign_if(is_first, snapshot, variable)


def _value(variable: keras.Variable) -> tf.Tensor:
    return tf.convert_to_tensor(variable.value)


def _as_matrix(kernel: tf.Tensor, mark: low_rank.Mark) -> tf.Tensor:
    return mark.view.to_matrix(tf.cast(kernel, tf.float32))


def _assign_if(
    condition: tf.Tensor, target: keras.Variable, source: keras.Variable
) -> None:
    def assign():
        target.assign(_value(source))
        return tf.constant(0)

    tf.cond(condition, assign, lambda: tf.constant(0))
