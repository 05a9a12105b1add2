"""What carriers keep of a kernel's gradient, and of its noise."""

import numpy as np

from tf_dpfp import low_rank


def kept(matrix: np.ndarray, carriers: low_rank.Carriers) -> np.ndarray:
    """The part of a kernel's gradient that the carriers carry.

    Args:
        matrix: The gradient, `(d, p)`.
        carriers: The carriers.

    Returns:
        `(d, p)`.
    """
    left = carriers.left.numpy()
    rest = matrix - left @ (left.T @ matrix)
    if carriers.right is None:
        return matrix - rest
    right = carriers.right.numpy()
    return matrix - (rest - (rest @ right) @ right.T)


def noise_dimensions(
    shape: tuple[int, int], carriers: low_rank.Carriers
) -> int:
    """In how many directions of a kernel there is noise.

    Args:
        shape: Of the kernel's matrix, `(d, p)`.
        carriers: The carriers.

    Returns:
        The energy of the reconstructed noise, if that of one released number
        is 1.
    """
    rows, columns = shape
    rank = carriers.left.shape[1]
    if carriers.right is None:
        return rank * columns
    return rank * (rows + columns) - rank**2
