"""Adaptive thresholds by the book: the float64 loop, with counts."""

import keras
import numpy as np

import tf_dpfp
from tests.training import reference


def estimates_of(optimizer) -> np.ndarray:
    """The estimate kept for each variable of an optimizer; 0 if initial."""
    (found,) = [v for v in optimizer.variables if v.name == "clip_estimates"]
    return found.numpy().astype(np.float64)


class AdaptiveLoop(reference.Reference):
    """A float64 twin that adapts its thresholds, without noise.

    Args:
        build: Makes the model; called in float64.
        like: The float32 model whose weights the twin starts with.
        groups: The trainable variables that are clipped together.
        adaptive: The settings.
        estimates: The initial estimate of each group.
        l2_norm_clip: The bound.
        expected_batch_size: The divisor, of sums and counts.
        learning_rate: Of plain SGD.
        compile_arguments: Makes what `compile` takes beside the optimizer.
    """

    def __init__(
        self,
        build,
        like,
        groups,
        adaptive: tf_dpfp.Adaptive,
        estimates,
        l2_norm_clip: float,
        expected_batch_size: float,
        learning_rate: float,
        compile_arguments,
    ):
        super().__init__(
            build,
            like,
            lambda: keras.optimizers.SGD(learning_rate),
            groups,
            l2_norm_clip,
            expected_batch_size,
            compile_arguments,
        )
        self._adaptive = adaptive
        self._bound = l2_norm_clip
        self.estimates = np.array(estimates, np.float64)

    def thresholds(self) -> np.ndarray:
        if not self._adaptive.rescale:
            return self.estimates
        return self.estimates * (self._bound / np.linalg.norm(self.estimates))

    def clipped_sum(self, x, y, sample_weight=None):
        """As the loop's; what is not finite or weighs nothing is not there."""
        thresholds = self.thresholds()
        with reference.double_precision():
            total = [np.zeros(v.shape) for v in self.model.trainable_variables]
            self.counts = np.zeros(len(self._groups))
            self.nearest = np.inf
            for i in range(len(keras.tree.flatten(x)[0])):
                one = reference.rows((x, y, sample_weight), slice(i, i + 1))
                if sample_weight is not None and sample_weight[i] == 0.0:
                    continue
                if not all(
                    np.all(np.isfinite(leaf))
                    for leaf in keras.tree.flatten((one[0], one[1]))
                ):
                    continue
                found = [g.numpy() for g in self._loss_and_gradients(*one)[0]]
                for number, group in enumerate(self._groups):
                    norm = np.sqrt(sum(np.sum(found[k] ** 2) for k in group))
                    estimate = self.estimates[number]
                    self.nearest = min(self.nearest, abs(norm / estimate - 1))
                    self.counts[number] += 0.5 if norm <= estimate else -0.5
                    factor = min(1.0, thresholds[number] / max(norm, 1e-300))
                    for k in group:
                        total[k] += factor * found[k]
        return total, [np.zeros_like(t) for t in total]

    def step(self, x, y, sample_weight=None) -> None:
        super().step(x, y, sample_weight)
        # Nearer than this, float32 may see it on the other side.
        assert self.nearest > 1e-4
        counts = self.counts
        if self._adaptive.shared:
            counts = np.mean(counts)
        fractions = np.clip(counts / self._expected_batch_size + 0.5, 0.0, 1.0)
        self.estimates = self.estimates * np.exp(
            -self._adaptive.learning_rate
            * (fractions - self._adaptive.target_quantile)
        )

    def of_each_variable(self) -> np.ndarray:
        """The estimates as an optimizer keeps them."""
        result = np.zeros(sum(len(group) for group in self._groups))
        for group, estimate in zip(self._groups, self.estimates, strict=True):
            result[list(group)] = estimate
        return result
