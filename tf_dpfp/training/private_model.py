"""Making a Keras model train privately.

`PrivateTraining` holds the methods that private training changes: `compile`
(takes private optimizers only), `fit` and `train_on_batch` (tell the ledger
how the examples were sampled) and `train_step`. `make_private` binds them to
one model, whose class stays what it was; `DPModel` and `DPSequential` inherit
them.
"""

import contextlib
import types

import keras
import tensorflow as tf
from keras import tree

from tf_dpfp import compilation
from tf_dpfp import optimizers
from tf_dpfp import replicas
from tf_dpfp import validation
from tf_dpfp.sampling import pipelines
from tf_dpfp.training import compiling
from tf_dpfp.training import dealt_training
from tf_dpfp.training import preparation
from tf_dpfp.training import representations
from tf_dpfp.training import state as state_lib
from tf_dpfp.training import steps

_METHODS = ("compile", "fit", "train_on_batch", "train_step")


class PrivateTraining(state_lib.Private):
    """The methods of `keras.Model` that private training changes."""

    def compile(self, *args, **kwargs):
        """As `keras.Model.compile`, for private optimizers only.

        With a `DPRepresentationClip` in the model, for ordinary ones as well:
        they train what is above it, private ones what is below, too.
        """
        before = getattr(self, "optimizer", None)
        ordinary = state_lib.ordinary(self, "compile")
        given = state_lib.bound(ordinary, args, kwargs).get("optimizer")
        private = isinstance(given, optimizers.PrivateOptimizer)
        if representations.layers_of(self) and not private:
            compiling.compile_on_representations(self, args, kwargs, before)
            return
        kwargs["auto_scale_loss"] = False
        given = compiling.given_optimizer(self, args, kwargs, ordinary)
        if "jit_compile" not in kwargs and not compiling.suits_xla(given):
            kwargs["jit_compile"] = False
        ordinary(*args, **kwargs)
        # Which may have put another in its place.
        optimizer = state_lib.require_private_optimizer(self)
        preparation.check_same_model(self, optimizer)
        if (
            isinstance(before, optimizers.PrivateOptimizer)
            and before is not optimizer
        ):
            # What was released under the old optimizer stays released.
            optimizer.absorb_ledger(before.ledger_entries)
        state_lib.of(self).loss = None
        if representations.layers_of(self):
            representations.announce(self)
            if self.built and getattr(self, "inputs", None):
                preparation.try_representations(
                    self, representations.inputs_of(self)
                )

    def compile_from_config(self, config):
        """As Keras, which compiles no loaded model of another `compile`."""
        if config and compiling.compile_loaded(self, config):
            return
        plain = (
            state_lib.ordinary(self, "compile").__func__ is keras.Model.compile
        )
        if type(self).compile is not PrivateTraining.compile or not plain:
            state_lib.ordinary(self, "compile_from_config")(config)
            return
        self.compile(**keras.saving.deserialize_keras_object(config))
        preparation.build_optimizer(self, self.optimizer)

    def fit(self, *args, **kwargs):
        """As `keras.Model.fit`; the ledger learns how batches are drawn."""
        if representations.alone(self):
            return _fit_on_representations(self, args, kwargs)
        optimizer = preparation.ready(self)
        arguments = state_lib.bound(
            state_lib.ordinary(self, "fit"), args, kwargs
        )
        pipeline = pipelines.describe(
            arguments,
            need_batch_size=optimizer.expected_batch_size is None,
            joint=representations.beside_sums(self),
        )
        strategy = preparation.strategy_of(self, optimizer)
        if replicas.deals(strategy):
            pipeline = replicas.pipeline_of(strategy, arguments["x"], pipeline)
        if pipeline.expected_batch_size is not None:
            optimizer.set_expected_batch_size(
                pipeline.expected_batch_size, pipeline.name
            )
        elif optimizer.expected_batch_size is None:
            raise ValueError(
                f"The batch size of {pipeline.name} can't be told before "
                "training. Give the optimizer `expected_batch_size=`."
            )
        state = state_lib.of(self)
        if pipeline.population is not None:
            state.populations.add(pipeline.population)
        if pipeline.is_dataset:
            # Keras would warn that it can't shuffle a data set.
            kwargs.setdefault("shuffle", False)
        if replicas.deals(strategy):
            return dealt_training.fit(self, strategy, pipeline, arguments)
        if pipeline.drawn is not None:
            # What is declared of labels goes into the layer's ledger.
            preparation.try_representations(
                self, arguments["x"].element_spec[0]
            )
        with strategy.scope() if strategy else contextlib.nullcontext():
            preparation.build_optimizer(self, optimizer)
        with preparation.sampled(self, pipeline):
            return state_lib.ordinary(self, "fit")(*args, **kwargs)

    def train_on_batch(self, *args, **kwargs):
        """As `keras.Model.train_on_batch`; counted without amplification."""
        if representations.alone(self):
            return state_lib.ordinary(self, "train_on_batch")(*args, **kwargs)
        optimizer = preparation.ready(self)
        strategy = preparation.strategy_of(self, optimizer)
        ordinary = state_lib.ordinary(self, "train_on_batch")
        arguments = state_lib.bound(ordinary, args, kwargs)
        if optimizer.expected_batch_size is None:
            optimizer.set_expected_batch_size(
                len(tree.flatten(arguments["x"])[0]), "the first batch"
            )
        with preparation.sampled(self, pipelines.UNKNOWN):
            if replicas.deals(strategy):
                return dealt_training.train_on_batch(self, strategy, arguments)
            return ordinary(*args, **kwargs)

    def train_step(self, data):
        """One private step: see `training.private_step`."""
        under_xla = bool(self.jit_compile) and not self.run_eagerly
        under_xla |= replicas.compiles(tf.distribute.get_strategy())
        target = (
            compilation.Target.XLA
            if under_xla
            else (compilation.Target.KERNELS)
        )
        with compilation.tracing_for(target):
            return steps.train_step(self, data)


def _fit_on_representations(model, args, kwargs):
    x = state_lib.bound(state_lib.ordinary(model, "fit"), args, kwargs)["x"]
    validation.raise_if_invalid(model, made_private=True)
    info = representations.drawn_rows(x)
    if info is not None:
        found = preparation.try_representations(model, x.element_spec[0])
        representations.check_sampled(found)
        state_lib.of(model).populations.add(info.population)
        kwargs.setdefault("shuffle", False)
    with representations.sampled(model, info):
        return state_lib.ordinary(model, "fit")(*args, **kwargs)


def make_private(model: keras.Model) -> keras.Model:
    """Makes a Keras model train with differential privacy, in place.

    The model keeps its class, its weights, its `evaluate`, `predict` and
    `save`; a saved file loads as the ordinary model it was. Compile it with a
    private optimizer afterwards; or with an ordinary one, if it has a
    `DPRepresentationClip`: then the model is only checked and its batches
    accounted for.

    Example:

    ```python
    tf_dpfp.make_private(model)
    model.compile(
        optimizer=tf_dpfp.DPAdam(1e-3, l2_norm_clip=1.0, noise_multiplier=1.1),
        loss="sparse_categorical_crossentropy",
    )
    model.fit(tf_dpfp.poisson_batches(x, y, expected_batch_size=256))
    ```

    Args:
        model: A Keras model: functional, sequential, subclassed or a KerasHub
            task, built or not.

    Returns:
        The same model.

    Raises:
        TypeError: If `model` is not a Keras model.
        ValueError: If the model is private already, has a training step of
            its own, or holds layers that can't be trained privately; the
            message lists every problem and the way out.
    """
    if not isinstance(model, keras.Model):
        raise TypeError(
            f"`make_private` takes a keras.Model. Received: {model!r}"
        )
    validation.raise_if_invalid(model, made_private=False)
    findings = None
    if representations.layers_of(model) and getattr(model, "inputs", None):
        findings = representations.raise_if_unprotected(
            model, representations.inputs_of(model)
        )
    state = state_lib.of(model)
    state.findings = findings
    state.tried_with = representations.trainability(model)
    for name in _METHODS:
        method = types.MethodType(vars(PrivateTraining)[name], model)
        object.__setattr__(model, name, method)
    # A step that was compiled before is an ordinary one.
    model.train_function = None
    optimizer = getattr(model, "optimizer", None)
    if isinstance(optimizer, optimizers.PrivateOptimizer):
        preparation.check_same_model(model, optimizer)
    return model


@keras.saving.register_keras_serializable(package="tf_dpfp")
class DPModel(PrivateTraining, keras.Model):
    """A `keras.Model` that trains privately.

    `DPModel(inputs, outputs)` or a subclass with a `call` of its own. The
    same as `make_private(keras.Model(...))`, except that a saved file needs
    this package to load.
    """


@keras.saving.register_keras_serializable(package="tf_dpfp")
class DPSequential(PrivateTraining, keras.Sequential):
    """A `keras.Sequential` that trains privately.

    The same as `make_private(keras.Sequential(...))`, except that a saved
    file needs this package to load.
    """
