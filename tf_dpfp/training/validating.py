"""Checks of a model before training, with the proof of its step."""

from typing import Any

import keras
import tensorflow as tf

from tf_dpfp import mechanisms
from tf_dpfp import sampling as sampling_lib
from tf_dpfp import validation


def validate(model: keras.Model, data: Any = None) -> list[validation.Problem]:
    """Lists everything that keeps a model from being trained privately.

    Without `data`, looks at the layers alone. With it, traces a step in a
    graph that never runs, and lists what is not proved, too: custom layers
    that mix examples or keep statistics. No numbers of `data` are used.

    Example:

    ```python
    for problem in tf_dpfp.validate(model, (x[:8], y[:8])):
        print(problem)
    ```

    Args:
        model: A Keras model, private or not. With `data`, a private one that
            is compiled with a private optimizer and a loss.
        data: A batch `(x, y)` or `(x, y, sample_weight)`, specifications of
            one, or a `tf.data.Dataset` of batches; `None` for no proof.

    Returns:
        The problems, an empty list if there are none.

    Raises:
        NotPrivateError: With `data`, if the model is not private.
    """
    problems = validation.validate(model)
    if data is None or problems:
        return problems
    if isinstance(data, tf.data.Dataset):
        data = data.element_spec
    if sampling_lib.kind_of(data) is not None:
        data = tuple(sampling_lib.flat(data))
    batch = keras.utils.unpack_x_y_sample_weight(data)
    mechanism = mechanisms.gradients_of(model)
    try:
        found = mechanism.findings(*batch)
    except ValueError as error:
        return [validation.Problem(model.name, str(error), "")]
    return [
        validation.Problem(f.layer or model.name, f.described, f.way_out)
        # One operation makes everything after it unproved.
        for f in {f.name: f for f in reversed(found)}.values()
    ]
