"""Marks: which kernels are reparametrised, and how.

A mark is an attribute of the kernel variable that neither Keras nor
`tf.train.Checkpoint` tracks. Layer, weights and config stay what they are; a
clone or a loaded model has no marks.
"""

import dataclasses
import hashlib
import re
from collections.abc import Callable, Iterator, Sequence

import keras

from tf_dpfp.keras_private import kernels
from tf_dpfp.keras_private import layers as keras_layers
from tf_dpfp.low_rank import matrices
from tf_dpfp.low_rank.configuration import Reparametrization

_MARK = "_tf_dpfp_low_rank"

# Which layers: a regular expression found in the path, several, or a function.
Selection = str | Sequence[str] | Callable[[keras.layers.Layer], bool]


@dataclasses.dataclass(frozen=True)
class Mark:
    """A reparametrised kernel.

    Attributes:
        config: The settings.
        view: Layout of the kernel as a matrix.
    """

    config: Reparametrization
    view: matrices.MatrixView

    @property
    def released(self) -> int:
        """Number of values that a step releases of the kernel."""
        rows = 0 if self.config.left_only else self.view.num_rows
        return self.config.rank * (rows + self.view.num_columns)


def mark_of(variable: keras.Variable) -> Mark | None:
    """Finds the mark of a variable.

    Args:
        variable: Any variable.

    Returns:
        The mark; `None` if the variable is trained as it is, which includes
        kernels whose rank is full: of those the whole gradient is released.
    """
    mark = getattr(variable, _MARK, None)
    if mark is None:
        return None
    smaller = min(mark.view.num_rows, mark.view.num_columns)
    return mark if mark.config.rank < smaller else None


def marked_view(variable: keras.Variable) -> matrices.MatrixView:
    """Returns how a kernel with carriers is a matrix.

    Args:
        variable: A kernel with a mark.

    Returns:
        The view.

    Raises:
        ValueError: If the variable is trained as it is.
    """
    mark = mark_of(variable)
    if mark is None:
        raise ValueError(
            f"The variable '{variable.path}' is not reparametrised, and there "
            "are carriers for it. Compile with a new optimizer."
        )
    return mark.view


def shapes_of_carriers(variable: keras.Variable) -> list[tuple[int, int]]:
    """Returns the shapes of the carriers of a kernel; see `Carriers`.

    Args:
        variable: A kernel with a mark.

    Raises:
        ValueError: If the variable is trained as it is.
    """
    view, mark = marked_view(variable), mark_of(variable)
    assert mark is not None
    shapes = [(view.num_rows, mark.config.rank)]
    if not mark.config.left_only:
        shapes.append((view.num_columns, mark.config.rank))
    return shapes


def is_marked(variable: keras.Variable) -> bool:
    """Tells if a variable has a mark, of full rank or not."""
    return getattr(variable, _MARK, None) is not None


def released_size(variable: keras.Variable) -> int | None:
    """Counts the values released of a marked kernel; else `None`."""
    mark = mark_of(variable)
    return None if mark is None else mark.released


def fingerprint(variables: Sequence[keras.Variable]) -> int:
    """Hashes the marks of a list of variables; 0 if there are none.

    Saved optimizer state holds the number, so it must not change: settings of
    earlier versions are spelled out as they stood, at their fixed values.
    """
    marks = [(i, mark_of(variable)) for i, variable in enumerate(variables)]
    marked = [(i, mark) for i, mark in marks if mark is not None]
    if not marked:
        return 0
    text = repr(marked).replace(
        "warmup_steps=", "power_iterations=1, recompute_every=1, warmup_steps="
    )
    digest = hashlib.sha256(text.encode()).digest()
    return int.from_bytes(digest[:7], "little") + 1


def _path(layer: keras.layers.Layer) -> str:
    return layer.path or layer.name  # A layer has no path before it is built.


def _bypassed(layer: keras.layers.Layer) -> str | None:
    """Gives the reason if training would bypass the kernel, or `None`."""
    if keras_layers.is_quantized(layer):
        return "it is quantized"
    if getattr(layer, "lora_enabled", False):
        return "LoRA trains other weights in place of its kernel"
    return None


def broken_mark(layer: keras.layers.Layer) -> str | None:
    """Gives the reason if a layer no longer trains its marked kernel."""
    if not isinstance(layer, matrices.MATRIX_LAYERS):
        return None
    kernel = kernels.kernel_of(layer)
    if kernel is None or not is_marked(kernel):
        return None
    return _bypassed(layer)


def mark_layer(layer: keras.layers.Layer, config: Reparametrization) -> None:
    """Marks the kernel of a layer of `MATRIX_LAYERS`.

    Args:
        layer: The layer.
        config: The settings.

    Raises:
        ValueError: If the layer is not built or the kernel can't be
            reparametrised.
    """
    kernel = kernels.kernel_of(layer)
    if kernel is None:
        raise ValueError(
            f"Layer '{_path(layer)}' is not built, so it has no kernel to "
            "reparametrise. Build the model first, for example by calling it "
            "on a batch."
        )
    view = matrices.view_of(layer)
    reason = _bypassed(layer)
    if view is None:
        reason = "its kernel is not one matrix for all positions"
    if view is None or reason is not None:
        raise ValueError(
            f"Layer '{layer.path}' can't be reparametrised: {reason}. Leave "
            "it out (`exclude=`), or undo that."
        )
    setattr(kernel, _MARK, Mark(config, view))


def reparametrize(
    model: keras.layers.Layer,
    rank: int,
    include: Selection | None = None,
    exclude: Selection | None = None,
    *,
    carrier_source: str = "history",
    warmup_steps: int = 100,
    left_only: bool = False,
    seed: int = 0,
) -> keras.layers.Layer:
    """Trains kernels privately through two thin gradient carriers, in place.

    Of a marked kernel of shape (d, p), a private step clips and noises the
    gradients of two carriers, `rank * (d + p)` numbers in place of `d * p`,
    and goes back from there to an update of the kernel. The forward pass, the
    weights and the class of every layer stay what they are. Call it before
    the first step of an optimizer.

    Without private training the marks do nothing. Clones of the model and
    models loaded from a file have none: mark them again (`RGPDense` keeps
    its mark in its config).

    Example:

    ```python
    tf_dpfp.reparametrize(model, rank=4, exclude="classifier")
    tf_dpfp.make_private(model)
    ```

    Args:
        model: A built model or layer, private or not.
        rank: Columns of each carrier. A kernel whose smaller dimension is not
            above it is trained as without reparametrisation.
        include: Layers, among Dense, EinsumDense, Conv1D to Conv3D: a
            regular expression that is found in the layer's path, several of
            them, or a function from a layer to a truth value. `None`: all
            whose kernels are trainable.
        exclude: Layers to leave out, likewise.
        carrier_source: Matrix whose leading directions the carriers follow:
            `"history"` (the update since the first step; until `warmup_steps`
            have passed, and while there is none, the weight), `"weight"`, or
            `"random"` (of nothing: random directions).
        warmup_steps: Steps before `"history"` follows the history; about a
            tenth of the training.
        left_only: Release one carrier only, the one on the side of the
            outputs, of shape `(rank, p)`. (The authors write weights as
            (outputs, inputs); it is on the left there.)
        seed: Of the power method's start and of random carriers. Public.

    Returns:
        The same model.

    Raises:
        ValueError: If an argument is out of its range, nothing is found, or a
            layer that was asked for is not built, frozen, quantized, under
            LoRA, or an einsum whose kernel differs between positions.

    Reference:
        Yu et al., 2021, arXiv 2106.09352.
    """
    config = Reparametrization(
        rank=rank,
        carrier_source=carrier_source,
        warmup_steps=warmup_steps,
        left_only=left_only,
        seed=seed,
    )
    chosen = list(_chosen(model, include, exclude))
    if not chosen:
        raise ValueError(
            f"Nothing of '{model.name}' is left to reparametrise. `include` "
            "and `exclude` choose among its Dense, EinsumDense, Conv1D, "
            "Conv2D and Conv3D layers with trainable kernels."
        )
    before = [getattr(kernels.kernel_of(c), _MARK, None) for c in chosen]
    try:
        for layer in chosen:
            mark_layer(layer, config)
            _refuse_frozen(layer)
    except ValueError:
        # All or nothing.
        for layer, mark in zip(chosen, before, strict=True):
            _set_mark(layer, mark)
        raise
    _forget_compiled_step(model)
    return model


def remove_carriers(model: keras.layers.Layer) -> keras.layers.Layer:
    """Undoes `reparametrize`, and the marks of `RGPDense` layers too.

    Args:
        model: The model or layer.

    Returns:
        The same model.
    """
    for layer in _matrix_layers(model):
        _set_mark(layer, None)
    _forget_compiled_step(model)
    return model


def _refuse_frozen(layer: keras.layers.Layer) -> None:
    kernel = kernels.kernel_of(layer)
    if kernel is not None and not kernel.trainable:
        raise ValueError(
            f"Layer '{layer.path}' is frozen, so there is nothing to "
            "reparametrise. Leave it out (`exclude=`), or make it trainable."
        )


def _set_mark(layer: keras.layers.Layer, mark: Mark | None) -> None:
    kernel = kernels.kernel_of(layer)
    if mark is not None:
        setattr(kernel, _MARK, mark)
    elif is_marked(kernel):
        delattr(kernel, _MARK)


def _forget_compiled_step(model) -> None:
    """A step that was compiled before has the old marks in it."""
    if getattr(model, "train_function", None) is not None:
        model.train_function = None


def _matrix_layers(model) -> Iterator[keras.layers.Layer]:
    for layer in keras_layers.all_layers(model):
        if isinstance(layer, matrices.MATRIX_LAYERS):
            yield layer


def _chosen(model, include, exclude) -> Iterator[keras.layers.Layer]:
    layers = list(_matrix_layers(model))
    excluded = {id(layer) for layer in _found("exclude", exclude, layers)}
    if include is None:
        candidates = [layer for layer in layers if _has_open_kernel(layer)]
    else:
        candidates = _found("include", include, layers)
    for layer in candidates:
        if id(layer) not in excluded:
            yield layer


def _has_open_kernel(layer: keras.layers.Layer) -> bool:
    kernel = kernels.kernel_of(layer)
    # One that is not there yet, and one under LoRA, are refused by name.
    under_lora = getattr(layer, "lora_enabled", False)
    return kernel is None or kernel.trainable or under_lora


def _found(name: str, selection: Selection | None, layers) -> list:
    """Finds the layers of a selection; every pattern must match some."""
    if selection is None:
        return []
    if callable(selection):
        return [layer for layer in layers if selection(layer)]
    patterns = [selection] if isinstance(selection, str) else list(selection)
    found: list[keras.layers.Layer] = []
    for pattern in patterns:
        try:
            mine = [c for c in layers if re.search(pattern, _path(c))]
        except (re.error, TypeError) as error:
            raise ValueError(
                f"`{name}` takes regular expressions or a function. Received: "
                f"{name}={selection!r} ({error})"
            ) from error
        if not mine:
            raise ValueError(
                f"`{name}` has {pattern!r}, which is found in the path of no "
                "Dense, EinsumDense, Conv1D, Conv2D or Conv3D layer. Theirs "
                f"are: {sorted(map(_path, layers))}"
            )
        found += [c for c in mine if all(c is not f for f in found)]
    return found
