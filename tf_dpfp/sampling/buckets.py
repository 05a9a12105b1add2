"""Few batch sizes for compiled steps: each draw is padded to one of four.

XLA compiles a step anew for every size of a batch, and Poisson batches have
another one in nearly every step. Here a batch is padded to the smallest of at
most four sizes that holds it, so a step is compiled at most four times. For
large batches, one or two sizes are enough.

The size of a padded batch tells about the size of the draw, which is secret,
as the size of a batch without padding does: neither leaves the step.
"""

import itertools
import math
import operator
from collections.abc import Sequence
from typing import Any

import tensorflow as tf
from keras import tree

from tf_dpfp import compilation
from tf_dpfp.accounting import PoissonSampling
from tf_dpfp.late_imports import stats
from tf_dpfp.sampling import batching
from tf_dpfp.sampling import padding
from tf_dpfp.sampling import parts
from tf_dpfp.sampling import persons
from tf_dpfp.sampling import registry
from tf_dpfp.sampling import views

# Sizes are multiples of this, as matrix units have them.
_MULTIPLE = 8
_MOST = 4
# Probability per step of a draw beyond the largest size. It is padded, too,
# to a multiple of that size, for one more compilation: nothing is cut off.
_BEYOND = 1e-6
# Mean size, as a multiple of the mean draw, below which no further compilation
# pays.
_ENOUGH = 1.15
# Candidates begin where this part of the draws is smaller.
_BELOW = 0.05
_CANDIDATES = 32
# Steps that take the time of one compilation. On CPUs: measured, 25 to 100 for
# transformers, a CNN and an MLP; that of the heavy ones, for whose steps there
# is most to lose. On accelerators: of compilations of about ten seconds, and
# steps of 3 to 70 ms, on one GPU.
_COMPILATION_ON_CPUS = 30
_COMPILATION_ON_ACCELERATORS = 500


def bucket_sizes(
    population: int,
    rate: float,
    multiple: int = 1,
    steps: int | None = None,
) -> tuple[int, ...]:
    """Chooses few batch sizes with little padding.

    A size costs its compilation, if a draw ever needs it, and a step costs its
    rows. Those of the least cost are chosen; of an unknown number of steps, as
    few as keep the mean size, over draws, below 1.15 times that of a draw.

    Args:
        population: Number of examples.
        rate: Probability of each example to be drawn.
        multiple: Divisor of every size, beside 8: a micro-batch.
        steps: Number of steps that are planned, if it is known.

    Returns:
        At most four sizes in ascending order. The last one holds all draws
        but one in a million.
    """
    step = math.lcm(_MULTIPLE, multiple)
    drawn = stats.binom(population, rate)
    least = max(1, int(drawn.ppf(_BELOW)) // step)
    most = max(least, -(-int(drawn.isf(_BEYOND)) // step))
    apart = -(-(most - least) // _CANDIDATES) or 1
    candidates = range(most * step, least * step - 1, -apart * step)
    at_most = {size: float(drawn.cdf(size)) for size in candidates}
    largest, *smaller = candidates

    def shares(sizes: Sequence[int]) -> list[float]:
        """Probability of each size."""
        below = [0.0, *(at_most[size] for size in sizes[:-1])]
        return [b - a for a, b in itertools.pairwise([*below, 1.0])]

    def mean_size(sizes: Sequence[int]) -> float:
        return sum(map(operator.mul, sizes, shares(sizes)))

    def cost(sizes: Sequence[int]) -> float:
        """Of all steps and compilations, in steps of the expected size."""
        assert steps is not None
        compiled = sum(1.0 - (1.0 - share) ** steps for share in shares(sizes))
        rows = steps * mean_size(sizes) / (population * rate)
        return rows + compiled * _compilation()

    found = []
    for count in range(min(_MOST, len(candidates))):
        chosen = itertools.combinations(sorted(smaller), count)
        sets = ((*least, largest) for least in chosen)
        found.append(min(sets, key=mean_size if steps is None else cost))
        if mean_size(found[-1]) <= _ENOUGH * population * rate:
            break
    return found[-1] if steps is None else min(found, key=cost)


def _compilation() -> int:
    """Returns how many steps take the time of one compilation."""
    if compilation.has_accelerator():
        return _COMPILATION_ON_ACCELERATORS
    return _COMPILATION_ON_CPUS


def in_buckets(
    batches: tf.data.Dataset,
    info: registry.SamplingInfo,
    multiple: int = 1,
    steps: int | None = None,
) -> tf.data.Dataset:
    """Pads Poisson batches to few sizes, after everything else.

    Padding is zeros (empty strings) of sample weight zero. It changes neither
    which examples are drawn nor in what order.

    Args:
        batches: Batches of `poisson_batches`, `(x, y)` or
            `(x, y, sample_weight)`; or those of parts.
        info: Distribution of the batches; of those of parts, in the mean over
            the parts.
        multiple: Divisor of every size.
        steps: Number of steps that are planned, if it is known.

    Returns:
        A `tf.data.Dataset` of `(x, y, sample_weight)`, in a `PartBatch` if
        batches are; `batches` itself, if
        sizes are static already or there is no `y` to give a weight.
    """
    element = batches.element_spec
    spec, _ = parts.split(element)
    has_labels = isinstance(spec, tuple) and len(spec) > 1
    if info.capacity is not None or not has_labels:
        return batches
    assert isinstance(info.sampling, PoissonSampling)
    rate = info.sampling.sampling_rate
    sizes = bucket_sizes(info.population, rate, multiple, steps)
    is_joined = isinstance(spec, (persons.PersonBatch, views.ViewBatch))

    @tf.autograph.experimental.do_not_convert
    def padded(*batch: Any) -> Any:
        # A named tuple is one argument of a function, not several.
        whole = batch if type(element) is tuple else batch[0]
        rows, part = parts.split(whole)
        found = _padded(tuple(rows), sizes)
        if is_joined:
            found = type(spec)(*found)
        return found if part is None else parts.PartBatch(found, part)

    return batches.map(padded).prefetch(2)


def _padded(batch: tuple, sizes: Sequence[int]) -> tuple:
    drawn = tf.shape(tree.flatten(batch)[0])[0]
    size = _size_for(drawn, sizes)
    padded, is_example = padding.pad(batch, size, drawn)
    return batching.weigh_padding(padded, is_example)


def _size_for(drawn: tf.Tensor, sizes: Sequence[int]) -> tf.Tensor:
    """Returns the smallest size that holds a draw, or a multiple of the last.

    Args:
        drawn: Number of examples of the draw.
        sizes: Sizes in ascending order.
    """
    holds = tf.constant(sizes) >= drawn
    smallest = tf.reduce_min(tf.where(holds, sizes, tf.int32.max))
    beyond = -(-drawn // sizes[-1]) * sizes[-1]
    return tf.where(tf.reduce_any(holds), smallest, beyond)
