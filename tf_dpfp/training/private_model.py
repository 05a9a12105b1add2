"""Making a Keras model train privately.

`PrivateTraining` holds the methods that private training changes: `compile`
(takes private optimizers only), `fit` and `train_on_batch` (tell the ledger
how the examples were sampled) and `train_step`. `make_private` binds them to
one model, whose class stays what it was; `DPModel` and `DPSequential` inherit
them.
"""

import contextlib
import inspect
import types
from typing import Any

import keras
import tensorflow as tf
from keras import tree

from tf_dpfp import accounting
from tf_dpfp import clipping
from tf_dpfp import compilation
from tf_dpfp import optimizers
from tf_dpfp import sampling as sampling_lib
from tf_dpfp import validation
from tf_dpfp.distribute import replicas as replicas_lib
from tf_dpfp.training import keras_distribution
from tf_dpfp.training import keras_trainer
from tf_dpfp.training import losses as losses_lib
from tf_dpfp.training import pipelines
from tf_dpfp.training import private_step
from tf_dpfp.training import probe
from tf_dpfp.training import replicated
from tf_dpfp.training import representations

_STATE = "_tf_dpfp_state"
_METHODS = ("compile", "fit", "train_on_batch", "train_step")


class _State:
    """What a private model remembers; not tracked or saved by Keras."""

    def __init__(self):
        self.loss = None
        self.probed = False
        self.findings: representations.Findings | None = None
        self.tried_with: tuple[bool, ...] = ()
        self.populations: set[int] = set()
        # Over how many replicas the batches of `fit` are dealt; not outside.
        self.dealt_to = 1


def is_private(model: keras.Model) -> bool:
    """Whether a model trains privately."""
    return isinstance(model, PrivateTraining) or hasattr(model, _STATE)


def _state(model) -> _State:
    if not hasattr(model, _STATE):
        object.__setattr__(model, _STATE, _State())
    return getattr(model, _STATE)


def state_of(model: keras.Model) -> _State:
    """The private state of a model, for reports.

    Raises:
        NotPrivateError: If the model was not made private.
    """
    if not is_private(model):
        raise optimizers.NotPrivateError(
            f"Model '{model.name}' is not private. Call "
            "tf_dpfp.make_private(model) first."
        )
    return _state(model)


def _ordinary(model: keras.Model, name: str):
    """The model's own method, as if it were not private."""
    classes = list(type(model).__mro__)
    if PrivateTraining in classes:
        classes = classes[classes.index(PrivateTraining) + 1 :]
    for cls in classes:
        if name in vars(cls):
            return types.MethodType(vars(cls)[name], model)
    raise AttributeError(name)


def require_private_optimizer(model: keras.Model):
    """The model's optimizer, which must be private.

    Raises:
        NotPrivateError: If it is not.
    """
    optimizer = getattr(model, "optimizer", None)
    if isinstance(optimizer, optimizers.PrivateOptimizer):
        return optimizer
    raise optimizers.NotPrivateError(
        f"Model '{model.name}' is private and is compiled with "
        f"{type(optimizer).__name__}, which adds no noise. Compile it with a "
        "private optimizer, for example optimizer=tf_dpfp.DPAdam(...)."
    )


class PrivateTraining:
    """The methods of `keras.Model` that private training changes."""

    def compile(self, *args, **kwargs):
        """As `keras.Model.compile`, for private optimizers only.

        With a `DPRepresentationClip` in the model, for ordinary ones as well:
        they train what is above it, private ones what is below, too.
        """
        before = getattr(self, "optimizer", None)
        ordinary = _ordinary(self, "compile")
        given = _bound(ordinary, args, kwargs).get("optimizer")
        private = isinstance(given, optimizers.PrivateOptimizer)
        if representations.layers_of(self) and not private:
            _compile_on_representations(self, args, kwargs, before)
            return
        kwargs["auto_scale_loss"] = False
        given = _given_optimizer(self, args, kwargs, ordinary)
        if "jit_compile" not in kwargs and not _suits_xla(given):
            kwargs["jit_compile"] = False
        ordinary(*args, **kwargs)
        # Which may have put another in its place.
        optimizer = require_private_optimizer(self)
        _check_same_model(self, optimizer)
        if (
            isinstance(before, optimizers.PrivateOptimizer)
            and before is not optimizer
        ):
            # What was released under the old optimizer stays released.
            optimizer.absorb_ledger(before.ledger_entries)
        _state(self).loss = None
        if representations.layers_of(self):
            representations.announce(self)
            if self.built and getattr(self, "inputs", None):
                _try_representations(self, representations.inputs_of(self))

    def compile_from_config(self, config):
        """As Keras, which compiles no loaded model of another `compile`."""
        if config and _compile_loaded(self, config):
            return
        plain = _ordinary(self, "compile").__func__ is keras.Model.compile
        if type(self).compile is not PrivateTraining.compile or not plain:
            _ordinary(self, "compile_from_config")(config)
            return
        self.compile(**keras.saving.deserialize_keras_object(config))
        _build_optimizer(self, self.optimizer)

    def fit(self, *args, **kwargs):
        """As `keras.Model.fit`; the ledger learns how batches are drawn."""
        if representations.alone(self):
            return _fit_on_representations(self, args, kwargs)
        optimizer = _ready(self)
        arguments = _bound(_ordinary(self, "fit"), args, kwargs)
        pipeline = pipelines.describe(
            arguments,
            need_batch_size=optimizer.expected_batch_size is None,
            rows=representations.beside_sums(self),
        )
        strategy = _strategy_of(self, optimizer)
        if replicated.deals(strategy):
            pipeline = replicated.pipeline_of(
                strategy, arguments["x"], pipeline
            )
        if pipeline.expected_batch_size is not None:
            optimizer.set_expected_batch_size(
                pipeline.expected_batch_size, pipeline.name
            )
        elif optimizer.expected_batch_size is None:
            raise ValueError(
                f"The batch size of {pipeline.name} can't be told before "
                "training. Give the optimizer `expected_batch_size=`."
            )
        state = _state(self)
        if pipeline.population is not None:
            state.populations.add(pipeline.population)
        if pipeline.is_dataset:
            # Keras would warn that it can't shuffle a data set.
            kwargs.setdefault("shuffle", False)
        if replicated.deals(strategy):
            return _fit_dealt(self, strategy, pipeline, arguments)
        if pipeline.drawn is not None:
            # What is declared of labels goes into the layer's ledger.
            _try_representations(self, arguments["x"].element_spec[0])
        with strategy.scope() if strategy else contextlib.nullcontext():
            _build_optimizer(self, optimizer)
        with _sampled(self, pipeline):
            return _ordinary(self, "fit")(*args, **kwargs)

    def train_on_batch(self, *args, **kwargs):
        """As `keras.Model.train_on_batch`; counted without amplification."""
        if representations.alone(self):
            return _ordinary(self, "train_on_batch")(*args, **kwargs)
        optimizer = _ready(self)
        strategy = _strategy_of(self, optimizer)
        ordinary = _ordinary(self, "train_on_batch")
        arguments = _bound(ordinary, args, kwargs)
        if optimizer.expected_batch_size is None:
            optimizer.set_expected_batch_size(
                len(tree.flatten(arguments["x"])[0]), "the first batch"
            )
        with _sampled(self, pipelines.UNKNOWN):
            if replicated.deals(strategy):
                return _train_on_dealt(self, strategy, arguments)
            return ordinary(*args, **kwargs)

    def train_step(self, data):
        """One private step: see `training.private_step`."""
        under_xla = bool(self.jit_compile) and not self.run_eagerly
        under_xla |= replicated.compiles(tf.distribute.get_strategy())
        target = (
            compilation.Target.XLA
            if under_xla
            else (compilation.Target.KERNELS)
        )
        with compilation.tracing_for(target):
            return _train_step(self, data)


def _compile_loaded(model: keras.Model, config: dict) -> bool:
    """Gives a loaded model its private optimizer back, for it has the ledger.

    Args:
        model: A model with a `compile` of its own.
        config: As `get_compile_config` returned it.

    Returns:
        Whether the file holds a private optimizer.

    Raises:
        ValueError: If it does, and the model's `compile` does not take it.
    """
    if not _names_private_optimizer(config.get("optimizer")):
        return False
    arguments = keras.saving.deserialize_keras_object(config)
    try:
        model.compile(**arguments)
    except TypeError as error:
        raise ValueError(
            f"{type(model).__name__} was saved with a private optimizer, "
            "which holds the ledger of what its training released, and can't "
            f"be compiled with it again ({error}). Load it with compile=False: "
            "its ledger is then lost, and adding up is your task."
        ) from error
    # The state that follows in the file holds the ledger.
    _build_optimizer(model, model.optimizer)
    return True


def _names_private_optimizer(config: Any) -> bool:
    if not isinstance(config, dict):
        return False
    return str(config.get("registered_name")).startswith("tf_dpfp>")


keras_trainer.on_loading_a_custom_compile(_compile_loaded)


def _train_step(model: keras.Model, data) -> dict:
    if representations.alone(model):
        x, _, _ = keras.utils.unpack_x_y_sample_weight(data)
        _try_representations(model, x)
        return _ordinary(model, "train_step")(data)
    optimizer = require_private_optimizer(model)
    x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
    plan = build_plan(model, x, y, sample_weight)

    def update_logs(x, y, sample_weight, rows, result):
        present = rows & losses_lib.nonzero_rows(
            sample_weight, tf.shape(rows)[0]
        )
        keras_trainer.loss_tracker(model).update_state(
            tf.where(present, result.losses, tf.zeros_like(result.losses)),
            sample_weight=tf.cast(present, result.losses.dtype),
        )
        keras_trainer.track_output_losses(
            model, y, result.y_pred, sample_weight
        )
        keras_trainer.update_metrics(
            model, x, y, result.y_pred, sample_weight, present
        )

    sums = private_step.clipped_batch(
        model,
        plan,
        x,
        y,
        sample_weight,
        optimizer.microbatch_size,
        update_logs,
    )
    _, regularization = private_step.regularization_gradients(plan)
    optimizer.apply(
        private_step.as_clipped_gradients(
            plan, sums, regularization, _rows_of(x), _state(model).dealt_to
        )
    )
    return model.get_metrics_result()


def _rows_of(x) -> tf.Tensor | int:
    """Number of examples of a batch."""
    leaf = tree.flatten(x)[0]
    size = leaf.shape[0]
    return tf.shape(leaf)[0] if size is None else size


def _strategy_of(
    model: keras.Model, optimizer
) -> tf.distribute.Strategy | None:
    """The strategy that a model trains under, by whichever way."""
    strategy = replicated.strategy_for(model, optimizer)
    if replicated.deals(strategy) and representations.layers_of(model):
        raise ValueError(
            f"Model '{model.name}' has a DPRepresentationClip, which trains on "
            "one replica, and its strategy has several. Train without one."
        )
    return strategy


def _fit_dealt(
    model: keras.Model,
    strategy: tf.distribute.Strategy,
    pipeline: pipelines.Pipeline,
    arguments: dict[str, Any],
):
    """`fit` on several replicas: each example of a batch goes to one."""
    arguments = dict(arguments)
    _check_no_class_weight(arguments)
    batches = replicated.batches_of(arguments, pipeline)
    del arguments["x"]
    if pipeline.batch_size is not None:  # Arrays, all of which are in it.
        arguments |= {"y": None, "sample_weight": None, "batch_size": None}
    arguments["shuffle"] = False  # The data set has its own order.
    arguments["steps_per_epoch"] = replicated.steps_per_epoch(
        batches, arguments["steps_per_epoch"]
    )
    groups = _build_dealt(model, strategy, batches.element_spec).groups
    replicated.check_workers(strategy, model, groups, pipeline, arguments)
    replicated.check_examples(strategy, batches)
    arguments["callbacks"] = replicated.with_check(
        arguments["callbacks"], strategy
    )
    with (
        _dealt_to(model, strategy),
        _sampled(model, pipeline),
        replicated.fitting(strategy, model),
    ):
        return _ordinary(model, "fit")(
            replicated.dealt(strategy, batches), **arguments
        )


def _build_dealt(
    model: keras.Model, strategy: tf.distribute.Strategy, batch: Any
) -> private_step.Plan:
    """Does what no replica can do: makes variables, and tries the model."""
    optimizer = require_private_optimizer(model)
    specs = tree.map_structure(
        lambda t: tf.TensorSpec(t.shape, t.dtype) if tf.is_tensor(t) else t,
        batch,
    )
    with tf.init_scope():
        data = replicated.build(strategy, model, specs)
        validation.raise_if_invalid(model, made_private=True)
        plan = build_plan(model, *data)
        optimizer.ensure_ledger_open()
    return plan


@contextlib.contextmanager
def _dealt_to(model: keras.Model, strategy: tf.distribute.Strategy):
    """Says that what a step is given is the piece of one replica."""
    state = _state(model)
    state.dealt_to = strategy.num_replicas_in_sync
    try:
        yield
    finally:
        state.dealt_to = 1


def _check_no_class_weight(arguments: dict[str, Any]) -> None:
    if arguments["class_weight"] is not None:
        raise ValueError(
            "`class_weight` can't be used on several replicas. Give weights "
            "with the examples instead (`sample_weight`)."
        )


def _train_on_dealt(
    model: keras.Model,
    strategy: tf.distribute.Strategy,
    arguments: dict[str, Any],
):
    """`train_on_batch` on several replicas."""
    _check_no_class_weight(arguments)
    names = ("x", "y", "sample_weight")
    batch = replicated.whole_batch(
        strategy, tuple(arguments[name] for name in names)
    )
    _build_dealt(model, strategy, batch)
    with (
        _dealt_to(model, strategy),
        keras_distribution.without_symbolic_build(model),
    ):
        _ordinary(model, "train_on_batch")(
            *replicated.pieces_of(strategy, batch)
        )
    return keras_distribution.logs_of_all(model, arguments["return_dict"])


def _compile_on_representations(model, args, kwargs, before) -> None:
    _ordinary(model, "compile")(*args, **kwargs)
    if isinstance(before, optimizers.PrivateOptimizer):
        # What was released under the private optimizer stays released.
        if model.built and before.ledger_entries:
            representations.layers_of(model)[0].absorb_ledger(
                before.ledger_entries
            )
    if model.built and getattr(model, "inputs", None):
        _try_representations(model, representations.inputs_of(model))


def _try_representations(model, x) -> representations.Findings:
    """Checks a model with noised representations, once."""
    state = _state(model)
    frozen = representations.trainability(model)
    if state.findings is None or state.tried_with != frozen:
        state.findings = representations.raise_if_unprotected(model, x)
        validation.raise_if_invalid(
            model, made_private=True, rows=representations.alone(model)
        )
        # A model that is built on the way has more layers than before.
        state.tried_with = representations.trainability(model)
        # Other weights have other per-example gradients.
        state.probed = False
    representations.check_trained(model, state.findings)
    return state.findings


def _fit_on_representations(model, args, kwargs):
    x = _bound(_ordinary(model, "fit"), args, kwargs)["x"]
    validation.raise_if_invalid(model, made_private=True)
    info = representations.drawn_rows(x)
    if info is not None:
        found = _try_representations(model, x.element_spec[0])
        representations.check_sampled(found)
        _state(model).populations.add(info.population)
        kwargs.setdefault("shuffle", False)
    with representations.sampled(model, info):
        return _ordinary(model, "fit")(*args, **kwargs)


def _has_accelerator() -> bool:
    return any(
        device.device_type != "CPU"
        for device in tf.config.list_physical_devices()
    )


def _suits_xla(optimizer) -> bool:
    """Whether XLA is left on where Keras itself turns it on."""
    # Private steps are slower with it on CPU, and it compiles for one device.
    per_device = isinstance(optimizer.clipping, clipping.PerDevice)
    return _has_accelerator() and not per_device


def _given_optimizer(model, args, kwargs, ordinary):
    """The argument of `compile`; refused before anything is changed."""
    optimizer = _bound(ordinary, args, kwargs).get("optimizer")
    if not isinstance(optimizer, optimizers.PrivateOptimizer):
        shown = (
            optimizer
            if isinstance(optimizer, str)
            else type(optimizer).__name__
        )
        raise optimizers.NotPrivateError(
            f"Model '{model.name}' is private and can't be compiled with "
            f"optimizer={shown!r}, which adds no noise. Use a private "
            "optimizer, for example optimizer=tf_dpfp.DPAdam(...)."
        )
    return optimizer


def _check_same_model(model, optimizer) -> None:
    if not optimizer.built or not model.built:
        return
    mine = {id(v) for v in model.variables}
    theirs = optimizer.updated_variables
    if any(id(v) not in mine for v in theirs):
        raise ValueError(
            f"The optimizer '{optimizer.name}' was built for another model. "
            "Make a new optimizer for each model: its ledger belongs to one."
        )


def _bound(method, args: tuple, kwargs: dict) -> dict[str, Any]:
    signature = inspect.signature(method)
    bound = signature.bind(*args, **kwargs)
    bound.apply_defaults()
    return bound.arguments


def _ready(model: keras.Model):
    """Checks everything that can be checked before the first step."""
    if not getattr(model, "compiled", False):
        raise ValueError(
            f"Model '{model.name}' is not compiled. Call model.compile("
            "optimizer=tf_dpfp.DPAdam(...), loss=...) first."
        )
    optimizer = require_private_optimizer(model)
    _check_same_model(model, optimizer)
    optimizer.check_marks()
    if not keras_trainer.has_compiled_loss(model):
        raise ValueError(
            f"Model '{model.name}' is compiled without a loss. Private "
            "training needs one loss per example: give `loss=` to `compile`."
        )
    by_gradients = representations.beside_sums(model)
    validation.raise_if_invalid(model, made_private=True, rows=not by_gradients)
    if by_gradients:
        representations.announce(model)
    return optimizer


def _build_optimizer(model, optimizer) -> None:
    """Early, so that callbacks can restore the optimizer's state."""
    if model.built and not optimizer.built and model.trainable_variables:
        optimizer.build(model.trainable_variables)


@contextlib.contextmanager
def _sampled(model: keras.Model, pipeline: pipelines.Pipeline):
    optimizer, drawn = require_private_optimizer(model), pipeline.drawn
    if drawn is None:
        optimizer.open_ledger(pipeline.sampling, pipeline.seeded)
    else:
        optimizer.open_ledger(
            pipeline.sampling,
            pipeline.seeded,
            representations.layers_of(model)[0].declared(drawn),
            drawn.capacity,
        )
    try:
        yield
    finally:
        # Steps taken outside `fit` must not inherit its claim.
        optimizer.open_ledger(accounting.UnknownSampling())


def build_plan(model: keras.Model, x, y, sample_weight) -> private_step.Plan:
    """Builds what is not built, checks the model once, and makes a plan.

    Args:
        model: A private, compiled model.
        x: Inputs of a batch; only shapes matter.
        y: Labels.
        sample_weight: Sample weights, or `None`.

    Returns:
        The `Plan` of the step.

    Raises:
        ValueError: If the model can't be trained privately.
    """
    optimizer = require_private_optimizer(model)
    state = _state(model)
    if not model.built:
        probe.build(model, x)
        validation.raise_if_invalid(
            model, made_private=True, rows=representations.alone(model)
        )
    if not keras_trainer.has_compiled_loss(model):
        raise ValueError(
            f"Model '{model.name}' is compiled without a loss. Private "
            "training needs one loss per example: give `loss=` to `compile`."
        )
    if state.loss is None:
        loss, loss_weights = keras_trainer.compiled_loss_arguments(model)
        state.loss = keras_trainer.structured_loss(
            losses_lib.per_example(loss),
            loss_weights,
            getattr(model, "output_names", None),
        )
        state.probed = False
    released = None
    if representations.beside_sums(model):
        rows = representations.announce(model)
        found = _try_representations(model, x)
        _build_optimizer(model, optimizer)
        released = private_step.RowsBelow(rows, found.positions)
    plan = private_step.make_plan(model, optimizer, state.loss, released)
    if not state.probed:
        probe.check(model, plan, (x, y, sample_weight))
        state.probed = True
    return plan


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
    state = _state(model)
    state.findings = findings
    state.tried_with = representations.trainability(model)
    for name in _METHODS:
        method = types.MethodType(vars(PrivateTraining)[name], model)
        object.__setattr__(model, name, method)
    # A step that was compiled before is an ordinary one.
    model.train_function = None
    optimizer = getattr(model, "optimizer", None)
    if isinstance(optimizer, optimizers.PrivateOptimizer):
        _check_same_model(model, optimizer)
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


@tf.autograph.experimental.do_not_convert
def clipped_gradients(
    model: keras.Model, x, y, sample_weight=None
) -> optimizers.ClippedGradients:
    """Clipped gradients of one batch, for a custom training loop.

    Example:

    ```python
    @tf.function
    def step(x, y):
        optimizer.apply(tf_dpfp.clipped_gradients(model, x, y))
    ```

    Steps of a custom loop are counted without amplification by sampling,
    unless the loop runs inside `tf_dpfp.sampled_steps(model, batches)`.

    Args:
        model: A private model, compiled with a private optimizer and a loss.
        x: Inputs of the batch.
        y: Labels.
        sample_weight: Sample weights, or `None`.

    Returns:
        `ClippedGradients` to pass to `model.optimizer.apply`. The numbers in
        it are private until then.

    Raises:
        NotPrivateError: If the model or its optimizer is not private.
    """
    state_of(model)
    require_private_optimizer(model)
    return _clipped_piece(model, (x, y, sample_weight), replicas=1)


def _clipped_piece(
    model: keras.Model, piece: tuple, replicas: int
) -> optimizers.ClippedGradients:
    """Clipped gradients of what one of several replicas has of a batch."""
    optimizer = require_private_optimizer(model)
    plan = build_plan(model, *piece)
    sums = private_step.clipped_batch(
        model, plan, *piece, optimizer.microbatch_size, lambda *_: None
    )
    _, regularization = private_step.regularization_gradients(plan)
    return private_step.as_clipped_gradients(
        plan, sums, regularization, _rows_of(piece[0]), replicas
    )


@tf.autograph.experimental.do_not_convert
def dealt_step(model: keras.Model, x, y, sample_weight=None) -> None:
    """One private step of a custom training loop, on all replicas.

    Takes a whole batch, deals it to the replicas of the strategy that the model
    was made under, each example to exactly one, and updates the weights; on one
    replica it is `optimizer.apply(clipped_gradients(...))`. Steps are counted
    as those of that.

    Example:

    ```python
    @tf.function
    def step(x, y):
        tf_dpfp.dealt_step(model, x, y)
    ```

    Args:
        model: A private model, compiled with a private optimizer and a loss,
            and built under its strategy.
        x: Inputs of the whole batch.
        y: Labels.
        sample_weight: Sample weights, or `None`.

    Raises:
        NotPrivateError: If the model or its optimizer is not private.
        ValueError: If it is called on one replica, for a batch that was
            distributed already, or under a strategy of several workers or TPUs.
    """
    state_of(model)
    optimizer = require_private_optimizer(model)
    strategy = _strategy_of(model, optimizer)
    if not replicated.deals(strategy):
        optimizer.apply(clipped_gradients(model, x, y, sample_weight))
        return
    batch = replicated.whole_batch(strategy, (x, y, sample_weight))
    count = strategy.num_replicas_in_sync
    _build_dealt(model, strategy, batch)

    def of_replica():
        piece = sampling_lib.piece_of(batch, replicas_lib.index(), count)
        optimizer.apply(_clipped_piece(model, piece, count))

    strategy.run(of_replica)


@contextlib.contextmanager
def sampled_steps(model: keras.Model, batches: tf.data.Dataset):
    """Says that the steps inside draw their batches from `batches`.

    For custom loops. The claim is the caller's: inside, every step must use
    the next batch of `batches`, whole and unchanged, once.

    With a `DPRepresentationClip` in the model, private or not, `fit` may be
    inside: every batch must be one forward pass in training.

    Args:
        model: A private model, compiled with a private optimizer; or a model
            with a `DPRepresentationClip`.
        batches: A data set made by `poisson_batches`; for such a model, by
            `microbatch_sampler`.

    Raises:
        ValueError: If nothing is known of how `batches` was drawn.
    """
    if representations.alone(model):
        with _sampled_rows(model, batches):
            yield
        return
    state = state_of(model)
    optimizer = require_private_optimizer(model)
    beside = representations.beside_sums(model)
    pipeline = pipelines.describe(
        {"x": batches}, need_batch_size=False, rows=beside
    )
    if isinstance(pipeline.sampling, accounting.UnknownSampling):
        maker = "microbatch_sampler" if beside else "poisson_batches"
        raise ValueError(
            f"`sampled_steps` takes the data set that tf_dpfp.{maker} "
            "returned, itself: another proves nothing."
        )
    if beside:
        representations.announce(model)
        _try_representations(model, batches.element_spec[0])
    optimizer.set_expected_batch_size(
        pipeline.expected_batch_size, pipeline.name
    )
    state.populations.add(pipeline.population)
    with _sampled(model, pipeline):
        yield


@contextlib.contextmanager
def _sampled_rows(model: keras.Model, batches: tf.data.Dataset):
    info = representations.drawn_rows(batches)
    if info is None:
        raise ValueError(
            "`sampled_steps` takes the data set that tf_dpfp."
            "microbatch_sampler returned, itself, for a model with a "
            "DPRepresentationClip: another proves nothing."
        )
    found = representations.raise_if_unprotected(model, batches.element_spec[0])
    representations.check_trained(model, found)
    representations.check_sampled(found)
    if is_private(model):
        state_of(model).populations.add(info.population)
    with representations.sampled(model, info):
        yield


def released(model: keras.Model) -> list[accounting.LedgerEntry]:
    """What a model has released so far.

    Args:
        model: A private, compiled model, or one with a `DPRepresentationClip`.

    Raises:
        NotPrivateError: If it is neither.
    """
    if representations.layers_of(model):
        return representations.entries(model)
    state_of(model)
    return require_private_optimizer(model).ledger_entries


def next_step(model: keras.Model) -> list[accounting.LedgerEntry]:
    """What the next step of a model releases; as `released` otherwise."""
    if representations.layers_of(model):
        return representations.next_step(model)
    return [require_private_optimizer(model).next_entry]
