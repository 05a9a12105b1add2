"""Memory-mapped arrays: reads the examples of a draw all at once."""

import contextlib
import mmap
from typing import Any

import numpy as np


def mapping_of(array: np.ndarray) -> mmap.mmap | None:
    """Returns the mapped file behind an array; `None` for memory.

    Args:
        array: An array with the examples in its first axis.

    Returns:
        The mapping, if each example is one piece of it.
    """
    base: Any = array
    while isinstance(base, np.ndarray):
        base = base.base
    one_piece = array[:1].flags.c_contiguous and array[:1].nbytes > 0
    return base if isinstance(base, mmap.mmap) and one_piece else None


def read_ahead(
    array: np.ndarray, mapping: mmap.mmap, indices: np.ndarray
) -> None:
    """Lets the system start to read examples from a mapped file.

    Otherwise it reads a page as late as the page is used, one after another,
    with many around it that a random draw does not need.

    Args:
        array: An array with the examples in its first axis.
        mapping: The result of `mapping_of`.
        indices: Indices of the examples.
    """
    if not hasattr(mmap, "MADV_WILLNEED"):  # Not on Windows.
        return
    origin = np.frombuffer(mapping, np.uint8).ctypes.data
    size, start = array[:1].nbytes, array.ctypes.data - origin
    offsets = (start + indices * array.strides[0]).tolist()
    # Advice only: where a file system takes none, pages are read when used.
    with contextlib.suppress(OSError):
        for offset in offsets:
            first_page = offset - offset % mmap.PAGESIZE
            length = offset + size - first_page
            mapping.madvise(mmap.MADV_WILLNEED, first_page, length)
