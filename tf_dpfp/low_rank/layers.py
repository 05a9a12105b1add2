"""Keras layers whose kernels are reparametrised from the start.

Their weights are those of the Keras layer they inherit from, and so is what
they compute: the settings matter to private training alone.
"""

from typing import Any

import keras

from tf_dpfp import per_example
from tf_dpfp.low_rank import marks
from tf_dpfp.low_rank.configuration import Reparametrization
from tf_dpfp.per_example import dense

# Settings of earlier versions, now fixed at 1.
_FIXED = ("power_iterations", "recompute_every")
_OPTIONS = (
    "rank",
    "carrier_source",
    "warmup_steps",
    "left_only",
    "seed",
)


# A mixin stands before a Keras layer, whose methods it calls by `super()`.
_KerasLayer: Any = object


class _Reparametrized(_KerasLayer):
    """Adds settings and a mark to a Keras layer."""

    def __init__(self, *args, rank: int, **kwargs):
        options = {
            name: kwargs.pop(name) for name in _OPTIONS if name in kwargs
        }
        super().__init__(*args, **kwargs)
        self._reparametrization = Reparametrization(rank=rank, **options)

    @property
    def reparametrization(self) -> Reparametrization:
        """Settings of the kernel's carriers."""
        return self._reparametrization

    def build(self, input_shape):
        super().build(input_shape)
        marks.mark_layer(self, self._reparametrization)

    def get_config(self):
        config = super().get_config()
        for name in _OPTIONS:
            config[name] = getattr(self._reparametrization, name)
        return config

    @classmethod
    def from_config(cls, config):
        """Makes a layer from its config, those of earlier versions too."""
        config = dict(config)
        for name in _FIXED:
            value = config.pop(name, 1)
            if value != 1:
                raise ValueError(
                    f"`{name}` is fixed at 1, and a layer saved with another "
                    "value would train otherwise. Leave it out of the config "
                    f"to train on with 1. Received: {name}={value!r}"
                )
        return super().from_config(config)

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


def _register_removed(name: str, base: type[keras.layers.Layer]) -> None:
    """Makes files that name a class of an earlier version fail with a reason.

    Args:
        name: Name of the class that files hold.
        base: The Keras layer that does its work.
    """

    class Removed:
        @classmethod
        def from_config(cls, config):
            raise ValueError(
                f"The saved model has a layer '{name}', which tf_dpfp no "
                f"longer has. Build the model with keras.layers."
                f"{base.__name__}, mark it by tf_dpfp.reparametrize(model, "
                f"rank={config.get('rank')}), compile it as before and call "
                "model.load_weights(path) on the same file. Received: "
                f"name={config.get('name')!r}"
            )

        def get_config(self):
            raise NotImplementedError

    keras.saving.register_keras_serializable(package="tf_dpfp", name=name)(
        Removed
    )


_register_removed("RGPEinsumDense", keras.layers.EinsumDense)
_register_removed("RGPConv1D", keras.layers.Conv1D)
_register_removed("RGPConv2D", keras.layers.Conv2D)
