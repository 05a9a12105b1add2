"""Loss that undoes randomised response of the labels, on average."""

import keras

from tf_dpfp import arguments
from tf_dpfp import sampling as sampling_lib


@keras.saving.register_keras_serializable(package="tf_dpfp")
class DebiasedCrossentropy(keras.losses.Loss):
    """Crossentropy of randomised labels whose mean is that of the true ones.

    With the probabilities p of a label to stay and q to become any given other
    one, and l(k) the crossentropy for class k,

        loss(label) = (l(label) - q * sum_k l(k)) / (p - q).

    Its expectation over the randomisation is l(true label). It can be negative,
    and varies the more the smaller epsilon is. It is post-processing: it
    changes nothing about privacy.

    Args:
        epsilon: Epsilon given to `randomize_labels`.
        num_classes: Number of classes.
        from_logits: `True` if predictions are logits, `False` if they are
            probabilities.
        **kwargs: Arguments of `keras.losses.Loss`.

    Raises:
        ValueError: If an argument is out of its range.

    Reference:
        Natarajan et al., 2013, "Learning with Noisy Labels".
    """

    def __init__(
        self,
        epsilon: float,
        num_classes: int,
        from_logits: bool = True,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.epsilon = arguments.number("epsilon", epsilon, above=0.0)
        self.num_classes = arguments.integer(
            "num_classes", num_classes, least=2
        )
        self.from_logits = arguments.boolean("from_logits", from_logits)

    def call(self, y_true, y_pred):
        """Computes the loss of each example.

        Args:
            y_true: Randomised labels, integers of shape `(batch,)` or
                `(batch, 1)`.
            y_pred: Predictions of shape `(batch, num_classes)`.

        Returns:
            Shape `(batch,)`.
        """
        if y_pred.shape[-1] != self.num_classes:
            raise ValueError(
                f"DebiasedCrossentropy is for {self.num_classes} classes. "
                f"Received predictions of shape {tuple(y_pred.shape)}."
            )
        if self.from_logits:
            logs = keras.ops.log_softmax(y_pred)
        else:
            logs = keras.ops.log(
                keras.ops.maximum(y_pred, keras.config.epsilon())
            )
        labels = keras.ops.reshape(y_true, (-1,))
        of_label = keras.ops.one_hot(labels, self.num_classes, dtype=logs.dtype)
        stay = sampling_lib.keep_probability(self.epsilon, self.num_classes)
        other = (1.0 - stay) / (self.num_classes - 1)
        weights = (of_label - other) / (stay - other)
        return -keras.ops.sum(weights * logs, axis=-1)

    def get_config(self):
        """Returns the arguments."""
        return {
            **super().get_config(),
            "epsilon": self.epsilon,
            "num_classes": self.num_classes,
            "from_logits": self.from_logits,
        }
