"""Files that a kill at any time leaves whole: the old ones, or the new ones.

A file is written beside its place, forced to the disk, and renamed, which is
atomic; then the folder is forced to the disk, so that the new name stays.
"""

import os
import pathlib
from collections.abc import Callable

_BESIDE = ".writing"


def replace(
    path: pathlib.Path, write: Callable[[pathlib.Path], object]
) -> None:
    """Writes a file and puts it in the place of an older one.

    Args:
        path: Path of the file. Its folder must exist.
        write: Called with the path to write to: one of the same folder and
            ending.
    """
    beside = path.with_name(f"{_BESIDE}.{path.name}")
    # Of a kill inside of an earlier call.
    beside.unlink(missing_ok=True)
    write(beside)
    _force(beside)
    os.replace(beside, path)
    _force(path.parent)


def append(path: pathlib.Path, line: str) -> None:
    """Adds a line to a file; returns when it is on the disk.

    Args:
        path: Path of the file, which need not exist. Its folder must.
        line: The line.
    """
    is_new = not path.exists()
    # One write: a kill leaves all of it, or what has no end of line.
    with path.open("ab", buffering=0) as file:
        file.write(f"\n{line}\n".encode())
        os.fsync(file.fileno())
    if is_new:
        _force(path.parent)


def remove(path: pathlib.Path) -> None:
    """Removes a file, for good.

    Args:
        path: Path of the file; it need not exist.
    """
    path.unlink(missing_ok=True)
    _force(path.parent)


def make_folder(path: pathlib.Path) -> None:
    """Makes a folder, and those above it, for good.

    Args:
        path: Path of the folder.
    """
    if not path.is_dir():
        path.mkdir(parents=True, exist_ok=True)
        _force(path.parent)


def _force(path: pathlib.Path) -> None:
    """Waits until a file or folder is on the disk."""
    if path.is_dir() and os.name == "nt":
        return  # Windows opens no folders, and needs no such call.
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
