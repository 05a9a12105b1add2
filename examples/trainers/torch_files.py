"""Tensors of old PyTorch checkpoints, read without PyTorch.

Such a file is a row of pickles, then the numbers. A pickle names functions that
are called when it is read; here only those are known that describe tensors, and
none of them is PyTorch's own. Still, compare a file's sha256 first.
"""

from __future__ import annotations

import collections
import io
import pickle
from typing import Any, NamedTuple

import numpy as np

from examples.trainers import packages

_MAGIC = 0x1950A86A20F9469CFC6C
_PROTOCOL = 1001
_DTYPES = {"FloatStorage": np.dtype("<f4"), "LongStorage": np.dtype("<i8")}
_COUNT_BYTES = 8


class _Storage(NamedTuple):
    key: str
    dtype: np.dtype


class _Tensor(NamedTuple):
    """Where the numbers of a tensor are: as PyTorch says it."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def _tensor(storage, offset, shape, strides, *unused) -> _Tensor:
    del unused  # Whether it has a gradient, and hooks.
    return _Tensor(storage, offset, tuple(shape), tuple(strides))


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return collections.OrderedDict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _tensor
        if module == "torch" and name in _DTYPES:
            return _DTYPES[name]
        raise packages.SourceError(
            f"the checkpoint names {module}.{name}, which is not called"
        )

    def persistent_load(self, pid: Any) -> _Storage:
        kind, dtype, key, *_ = pid
        if kind != "storage":
            raise packages.SourceError(f"the checkpoint has a {kind!r}")
        return _Storage(key, dtype)


def read(payload: bytes) -> dict[str, np.ndarray]:
    """Reads the tensors of a checkpoint.

    Args:
        payload: Content of the file, as PyTorch before 1.6 wrote it.

    Returns:
        Arrays by name.

    Raises:
        SourceError: If it is another kind of file, or damaged.
    """
    stream = io.BytesIO(payload)
    try:
        if [_next(stream), _next(stream)] != [_MAGIC, _PROTOCOL]:
            raise packages.SourceError("this is no checkpoint of PyTorch 1.5")
        _next(stream)  # Sizes of types, of the machine that wrote it.
        tensors = _next(stream)
        dtypes = {
            tensor.storage.key: tensor.storage.dtype
            for tensor in tensors.values()
        }
        numbers = {key: _numbers(stream, dtypes[key]) for key in _next(stream)}
        return {
            name: _array(numbers[tensor.storage.key], tensor)
            for name, tensor in tensors.items()
        }
    except packages.SourceError:
        raise
    except Exception as error:  # Damaged pickles raise errors of many kinds.
        raise packages.SourceError(f"a damaged checkpoint: {error}") from error


def _next(stream: io.BytesIO) -> Any:
    return _Unpickler(stream).load()


def _numbers(stream: io.BytesIO, dtype: np.dtype) -> np.ndarray:
    count = int.from_bytes(stream.read(_COUNT_BYTES), "little")
    return np.frombuffer(stream.read(count * dtype.itemsize), dtype, count)


def _array(numbers: np.ndarray, tensor: _Tensor) -> np.ndarray:
    """The tensor's own numbers, which may lie in any order of its axes."""
    last = tensor.offset + sum(
        (size - 1) * stride
        for size, stride in zip(tensor.shape, tensor.strides, strict=True)
    )
    if min(tensor.offset, *tensor.strides, 0) < 0 or last >= len(numbers):
        raise packages.SourceError("a tensor goes beyond its numbers")
    strides = [stride * numbers.itemsize for stride in tensor.strides]
    view = np.lib.stride_tricks.as_strided(
        numbers[tensor.offset :], tensor.shape, strides
    )
    return view.copy()
