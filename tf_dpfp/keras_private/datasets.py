"""Origin of a data set, beyond the public API of TensorFlow."""

from collections.abc import Sequence

import tensorflow as tf

# Of names of data sets whose elements are made of several others, or of parts.
_CUT_ANEW = ("batch", "flatmap", "interleave", "window", "scan")
_CHOOSES = "_DirectedInterleaveDataset"


def is_derived_from(dataset: object, origin: object) -> bool:
    """Tells if a data set was made of another, in any number of steps.

    Args:
        dataset: What may have been.
        origin: The other one, or what is no data set.
    """
    if dataset is origin:
        return True
    if not isinstance(dataset, tf.data.Dataset):
        return False
    return any(is_derived_from(each, origin) for each in made_of(dataset))


def cuts_anew(dataset: tf.data.Dataset) -> bool:
    """Tells if elements of a data set may be made of several of another.

    Args:
        dataset: The data set.
    """
    name = type(dataset).__name__
    return name != _CHOOSES and any(k in name.lower() for k in _CUT_ANEW)


def made_of(dataset: tf.data.Dataset) -> Sequence[tf.data.Dataset]:
    """Returns the data sets that one was directly made of."""
    return dataset._inputs()
