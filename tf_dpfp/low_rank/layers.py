"""Keras layers whose kernels are reparametrised from the start.

Their weights are those of the Keras layer they inherit from, and so is what
they compute: the settings matter to private training alone.
"""

import keras

from tf_dpfp import per_example
from tf_dpfp.low_rank import marks
from tf_dpfp.low_rank.configuration import Reparametrization
from tf_dpfp.per_example import convolution
from tf_dpfp.per_example import dense
from tf_dpfp.per_example import einsum_dense

_OPTIONS = (
    "rank",
    "carrier_source",
    "power_iterations",
    "recompute_every",
    "warmup_steps",
    "left_only",
    "seed",
)


class _Reparametrized:
    """What an RGP layer adds to its base: the settings, and the mark."""

    def __init__(self, *args, rank: int, **kwargs):
        options = {
            name: kwargs.pop(name) for name in _OPTIONS if name in kwargs
        }
        super().__init__(*args, **kwargs)
        self._reparametrization = Reparametrization(rank=rank, **options)

    @property
    def reparametrization(self) -> Reparametrization:
        """The settings."""
        return self._reparametrization

    def build(self, input_shape):
        super().build(input_shape)
        marks.mark_layer(self, self._reparametrization)

    def get_config(self):
        config = super().get_config()
        for name in _OPTIONS:
            config[name] = getattr(self._reparametrization, name)
        return config

    def __repr__(self):
        cls = type(self)
        return (
            f"<{cls.__qualname__} name={self.name}, built={self.built}, "
            f"rank={self._reparametrization.rank} in private training, "
            f"otherwise an ordinary {cls.__name__}>"
        )


def _finish(rule: type[per_example.GradientRule], base: type):
    """Registers an RGP layer class and its gradient rule."""

    def decorate(cls):
        per_example.register_gradient_rule(cls)(rule)
        keras.saving.register_keras_serializable(
            package="tf_dpfp", name=cls.__name__
        )(cls)
        # Keras addresses the weights in a file by the names of the layers'
        # classes: with this one, files fit the ordinary layer and back.
        cls.__name__ = base.__name__
        return cls

    return decorate


@_finish(dense.DenseRule, keras.layers.Dense)
class RGPDense(_Reparametrized, keras.layers.Dense):
    """A `keras.layers.Dense` whose kernel trains through two thin carriers.

    In private training, a step clips and noises the gradients of two carriers
    of the kernel in place of its own; see `reparametrize`. Otherwise it is
    `keras.layers.Dense`: the same outputs, the same weights, and under an
    ordinary optimizer the same training. Weights load into the ordinary layer
    and back.

    Example:

    ```python
    model = keras.Sequential(
        [tf_dpfp.RGPDense(256, rank=4, activation="tanh"), layers.Dense(10)]
    )
    ```

    Args:
        *args: As `keras.layers.Dense`.
        rank: Columns of each carrier.
        **kwargs: As `keras.layers.Dense`, and the settings that
            `reparametrize` takes.

    Reference:
        Yu et al., 2021, arXiv 2106.09352.
    """


@_finish(einsum_dense.EinsumDenseRule, keras.layers.EinsumDense)
class RGPEinsumDense(_Reparametrized, keras.layers.EinsumDense):
    """A `keras.layers.EinsumDense` trained through two thin carriers.

    As `RGPDense`. The kernel must be one matrix for all positions.

    Args:
        *args: As `keras.layers.EinsumDense`.
        rank: Columns of each carrier.
        **kwargs: As `keras.layers.EinsumDense`, and the settings that
            `reparametrize` takes.
    """


@_finish(convolution.ConvolutionRule, keras.layers.Conv1D)
class RGPConv1D(_Reparametrized, keras.layers.Conv1D):
    """A `keras.layers.Conv1D` trained through two thin carriers.

    As `RGPDense`. The kernel is a matrix from patches to filters.

    Args:
        *args: As `keras.layers.Conv1D`.
        rank: Columns of each carrier.
        **kwargs: As `keras.layers.Conv1D`, and the settings that
            `reparametrize` takes.
    """


@_finish(convolution.ConvolutionRule, keras.layers.Conv2D)
class RGPConv2D(_Reparametrized, keras.layers.Conv2D):
    """A `keras.layers.Conv2D` trained through two thin carriers.

    As `RGPDense`. The kernel is a matrix from patches to filters.

    Args:
        *args: As `keras.layers.Conv2D`.
        rank: Columns of each carrier.
        **kwargs: As `keras.layers.Conv2D`, and the settings that
            `reparametrize` takes.
    """
