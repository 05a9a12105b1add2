"""Digests of data and of code, and the versions of what ran."""

import hashlib
import hmac
import importlib.metadata
import os
import pathlib
import platform
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from tf_dpfp import version

# What the computation rests on; the others only where they are installed.
_PACKAGES = (
    *("tensorflow", "keras", "dp-accounting", "numpy", "scipy"),
    *("keras-hub", "cryptography"),
)


def of_data(
    data: Mapping[str, Any], key: bytes | None = None
) -> list[dict[str, Any]]:
    """Computes the digest of arrays.

    Args:
        data: From names to arrays.
        key: Secret key of the digests (HMAC), or `None`: who has the array
            that is asked about can tell it from any other.

    Returns:
        For each array its name, type, shape and SHA-256.

    Raises:
        ValueError: If something is not an array of numbers or texts, or the
            key is short.
    """
    if not isinstance(data, Mapping):
        raise ValueError(
            "`data` must be a dict from names to arrays, as "
            f"data={{'x': x, 'y': y}}. Received: data={type(data).__name__}"
        )
    if key is not None and (not isinstance(key, bytes) or len(key) < 16):
        raise ValueError(
            "`data_key` must be at least 16 secret random bytes, as "
            "secrets.token_bytes(32). Received: data_key of type "
            f"{type(key).__name__}"
        )
    return [_of_array(str(name), array, key) for name, array in data.items()]


def _of_array(name: str, given: Any, key: bytes | None) -> dict[str, Any]:
    array = np.asarray(given)
    if array.dtype.hasobject or not array.ndim:
        raise ValueError(
            f"The digest of data['{name}'] can't be computed: it is no array "
            "of numbers or of texts of one length. Give arrays, or leave it "
            f"out. Received: {type(given).__name__}"
        )
    array = np.ascontiguousarray(array.astype(array.dtype.newbyteorder("<")))
    head = f"{array.dtype.str} {list(array.shape)}\n".encode()
    digest = (
        hashlib.sha256(head)
        if key is None
        else hmac.new(key, head, hashlib.sha256)
    )
    digest.update(array.reshape(-1).view(np.uint8).data)
    return {
        "name": name,
        "dtype": array.dtype.name,
        "shape": list(array.shape),
        "sha256": digest.hexdigest(),
        "keyed": key is not None,
    }


def of_code(sources: Iterable[str | os.PathLike] = ()) -> dict[str, Any]:
    """Computes the digest of this package and of other files.

    Args:
        sources: Paths of files, such as the script of the training.

    Returns:
        Versions of packages, and SHA-256 of the package and of each file.
    """
    package = pathlib.Path(__file__).resolve().parent.parent
    whole = hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        name = path.relative_to(package).as_posix()
        whole.update(f"{name} {_of_file(path)}\n".encode())
    return {
        "versions": _versions(),
        "package_sha256": whole.hexdigest(),
        "sources": [
            {"name": pathlib.Path(path).name, "sha256": _of_file(path)}
            for path in sources
        ],
    }


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    found["tf_dpfp"] = version.__version__
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _of_file(path: str | os.PathLike) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
