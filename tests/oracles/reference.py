"""A private step by the book: a float64 loop over examples, plain Keras.

Nothing of the package takes part: the loss of an example is what Keras
computes for a batch that holds nothing but that example, the gradient is
automatic differentiation's, clipping, counting and summing are numpy's, and
the update is the plain Keras optimizer's.

Gradients are lists over examples of lists over variables of arrays. Norms and
factors are arrays of shape `(groups, examples)`, and a group is a list of
positions of variables.
"""

import contextlib
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

# One example.


@contextlib.contextmanager
def double_precision():
    """Everything Keras makes inside computes in float64."""
    before = keras.config.floatx(), keras.config.dtype_policy()
    keras.config.set_floatx("float64")
    keras.config.set_dtype_policy("float64")
    try:
        yield
    finally:
        keras.config.set_floatx(before[0])
        keras.config.set_dtype_policy(before[1])


def rows(data: Any, index) -> Any:
    """Rows of a nested batch, floats as float64."""

    def take(leaf):
        if leaf is None:
            return None
        leaf = np.asarray(leaf)[index]
        if leaf.dtype.kind == "f":
            leaf = leaf.astype(np.float64)
        return tf.constant(leaf)

    return keras.tree.map_structure(take, data)


def of_each(function: Callable, batch: tuple) -> list:
    """What a function returns for every example, in a batch of its own."""
    count = len(keras.tree.flatten(batch)[0])
    return [
        [t.numpy() for t in function(*rows(batch, slice(i, i + 1)))]
        for i in range(count)
    ]


def differentiate(tape, target, variables) -> list[tf.Tensor]:
    """Gradients of a target; those of an embedding are slices before."""
    found = tape.gradient(
        target,
        [v.value for v in variables],
        unconnected_gradients=tf.UnconnectedGradients.ZERO,
    )
    return [tf.convert_to_tensor(g) for g in found]


def gradients(loss: Callable, variables, *batch) -> list[list[np.ndarray]]:
    """The gradient of every example.

    Args:
        loss: Computes the loss of a batch.
        variables: With respect to what.
        *batch: The arguments of the loss, nested structures of rows.

    Returns:
        Gradients.
    """

    def of_one(*one):
        with tf.GradientTape() as tape:
            value = tf.reduce_sum(loss(*one))
        return differentiate(tape, value, variables)

    return of_each(of_one, batch)


# Clipping.


def norms(gradients, groups) -> np.ndarray:
    """The norm of every example's gradient, group by group."""
    return np.array(
        [
            [
                np.sqrt(sum(np.sum(np.float64(one[k]) ** 2) for k in group))
                for one in gradients
            ]
            for group in groups
        ]
    )


def clip_factors(norms, thresholds) -> np.ndarray:
    """Factors that make no gradient longer than its threshold."""
    thresholds = np.reshape(thresholds, (-1, 1))
    return np.minimum(1.0, thresholds / np.maximum(norms, 1e-300))


def automatic_factors(norms, thresholds, stability) -> np.ndarray:
    """Factors that make every gradient nearly as long as its threshold."""
    return np.reshape(thresholds, (-1, 1)) / (norms + stability)


def sums(gradients, groups, factors) -> list[np.ndarray]:
    """Sums over examples; of variables of no group without factors."""
    total = [np.sum(parts, axis=0) for parts in zip(*gradients, strict=True)]
    for group, of_examples in zip(groups, factors, strict=True):
        for k in group:
            total[k] = sum(
                factor * np.float64(one[k])
                for factor, one in zip(of_examples, gradients, strict=True)
            )
    return total


def clipped_sums(gradients, groups, thresholds) -> list[np.ndarray]:
    """Sums over examples of clipped gradients."""
    factors = clip_factors(norms(gradients, groups), thresholds)
    return sums(gradients, groups, factors)


def counts(norms, estimates) -> np.ndarray:
    """Half of those that are within an estimate less those that are not."""
    below = norms <= np.reshape(estimates, (-1, 1))
    return np.sum(np.where(below, 0.5, -0.5), axis=1)


def layer_groups(model: keras.Model) -> list[list[int]]:
    """Trainable variables by the layer whose path is in front of theirs."""
    by_layer: dict[str, list[int]] = {}
    for index, variable in enumerate(model.trainable_variables):
        by_layer.setdefault(variable.path.rsplit("/", 1)[0], []).append(index)
    return list(by_layer.values())


def flat_group(model: keras.Model) -> list[list[int]]:
    """All trainable variables together."""
    return [list(range(len(model.trainable_variables)))]


# Training.


class Reference:
    """A float64 twin of a model, trained by the loop.

    Args:
        build: Makes the model; called in float64.
        like: The float32 model whose weights the twin starts with.
        optimizer: Makes the plain Keras optimizer.
        groups: The trainable variables that are clipped together.
        l2_norm_clip: The bound, split equally over the groups.
        expected_batch_size: The divisor.
        compile_arguments: Makes what `compile` takes beside the optimizer.
    """

    def __init__(
        self,
        build: Callable[[], keras.Model],
        like: keras.Model,
        optimizer: Callable[[], keras.optimizers.Optimizer],
        groups: Callable[[keras.Model], list[list[int]]],
        l2_norm_clip: float,
        expected_batch_size: float,
        compile_arguments: Callable[[], dict],
    ):
        with double_precision():
            self.model = build()
            self.model.compile(
                optimizer=optimizer(),
                auto_scale_loss=False,
                **compile_arguments(),
            )
        self.take_weights(like)
        self.groups = groups(self.model)
        self._bound = l2_norm_clip
        self._expected_batch_size = expected_batch_size
        self._of_one = tf.function(
            self._gradients_and_penalties,
            autograph=False,
            reduce_retracing=True,
        )

    def take_weights(self, model: keras.Model) -> None:
        for mine, theirs in zip(
            self.model.variables, model.variables, strict=True
        ):
            mine.assign(theirs.numpy())

    def _gradients_and_penalties(self, x, y, sample_weight):
        with tf.GradientTape(persistent=True) as tape:
            y_pred = self.model(x, training=True)
            loss = self.model.compute_loss(
                x=x, y=y, y_pred=y_pred, sample_weight=sample_weight
            )
            penalties = [tf.zeros([], tf.float64), *self.model.losses]
            penalty = tf.add_n([tf.cast(p, tf.float64) for p in penalties])
            data_loss = tf.cast(loss, tf.float64) - penalty
        variables = self.model.trainable_variables
        return [
            *differentiate(tape, data_loss, variables),
            *differentiate(tape, penalty, variables),
        ]

    def gradients(self, x, y, sample_weight=None):
        """The gradients of a batch, and the regularisers' gradient."""
        with double_precision():
            found = of_each(self._of_one, (x, y, sample_weight))
        count = len(self.model.trainable_variables)
        return [one[:count] for one in found], found[-1][count:]

    def thresholds(self) -> np.ndarray:
        count = len(self.groups)
        return np.full(count, self._bound / np.sqrt(count))

    def clipped_sum(self, x, y, sample_weight=None):
        """The clipped sum of a batch, and the regularisers' gradient."""
        found, penalties = self.gradients(x, y, sample_weight)
        return clipped_sums(found, self.groups, self.thresholds()), penalties

    def step(self, x, y, sample_weight=None) -> None:
        """One update."""
        total, extra = self.clipped_sum(x, y, sample_weight)
        gradients = [
            tf.constant(t / self._expected_batch_size + e)
            for t, e in zip(total, extra, strict=True)
        ]
        with double_precision():
            self.model.optimizer.apply(
                gradients, self.model.trainable_variables
            )

    def assert_weights_equal(self, model: keras.Model, atol=2e-5) -> None:
        """Compares the twin's weights with a model's."""
        for mine, theirs in zip(
            self.model.trainable_variables,
            model.trainable_variables,
            strict=True,
        ):
            np.testing.assert_allclose(
                theirs.numpy(),
                mine.numpy(),
                atol=atol,
                rtol=2e-4,
                err_msg=theirs.path,
            )


class AdaptiveReference(Reference):
    """A float64 twin that adapts its thresholds, without noise.

    Args:
        adaptive: The settings, a `tf_dpfp.clipping.Adaptive`.
        estimates: The initial estimate of each group.
        *args: As for `Reference`.
    """

    def __init__(self, adaptive, estimates, *args):
        super().__init__(*args)
        self._adaptive = adaptive
        self.estimates = np.array(estimates, np.float64)

    def thresholds(self) -> np.ndarray:
        if not self._adaptive.rescale:
            return self.estimates
        return self.estimates * (self._bound / np.linalg.norm(self.estimates))

    def clipped_sum(self, x, y, sample_weight=None):
        """As the loop's; what is not finite or weighs nothing is not there."""
        present = [
            all(
                np.all(np.isfinite(leaf[i]))
                for leaf in keras.tree.flatten((x, y))
            )
            and (sample_weight is None or sample_weight[i] != 0.0)
            for i in range(len(keras.tree.flatten(x)[0]))
        ]
        batch = keras.tree.map_structure(
            lambda leaf: None if leaf is None else leaf[present],
            (x, y, sample_weight),
        )
        found, penalties = self.gradients(*batch)
        self.norms = norms(found, self.groups)
        return clipped_sums(found, self.groups, self.thresholds()), penalties

    def step(self, x, y, sample_weight=None) -> None:
        super().step(x, y, sample_weight)
        # Nearer than this, float32 may see it on the other side.
        nearest = np.abs(self.norms / self.estimates[:, None] - 1)
        assert np.min(nearest) > 1e-4
        found = counts(self.norms, self.estimates)
        if self._adaptive.shared:
            found = np.mean(found)
        fractions = np.clip(found / self._expected_batch_size + 0.5, 0.0, 1.0)
        self.estimates = self.estimates * np.exp(
            -self._adaptive.learning_rate
            * (fractions - self._adaptive.target_quantile)
        )

    def of_each_variable(self) -> np.ndarray:
        """The estimates as an optimizer keeps them."""
        result = np.zeros(sum(len(group) for group in self.groups))
        for group, estimate in zip(self.groups, self.estimates, strict=True):
            result[list(group)] = estimate
        return result


def estimates_of(optimizer) -> np.ndarray:
    """The estimate that an optimizer keeps for each variable; 0 if initial."""
    (found,) = [v for v in optimizer.variables if v.name == "clip_estimates"]
    return found.numpy().astype(np.float64)
