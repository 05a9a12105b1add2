"""The release: noise on clipped sums, and the gradients made of them.

`add_noise` is the mechanism; whatever follows it is post-processing.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import keras
import tensorflow as tf

from tf_dpfp import clipping as clipping_lib
from tf_dpfp import compilation
from tf_dpfp import low_rank
from tf_dpfp import noise as noise_lib
from tf_dpfp.distribute import replicas
from tf_dpfp.optimizers import clipped_gradients as clipped_lib
from tf_dpfp.optimizers import row_release

# Tensors of fewer numbers get their noise in one draw, on a CPU: each of the
# larger ones is drawn in pieces that stay in the cache of a core.
_DRAWN_TOGETHER = 2**16
# Under XLA and on accelerators a launch, and the compilation of a generator,
# cost more than the numbers. One draw is of so many at most, 64 MiB.
_FUSED_DRAW = 2**24
# So many numbers of a step's noise may be drawn ahead of the sums.
_DRAWN_EARLY = 2**22


# What is released of a variable: of a sparse table, some rows.
Released: TypeAlias = tf.Tensor | tf.IndexedSlices | None
# Makes the noise of a draw of its independent normals, and of how many of them
# each variable has, in their order, by the variables' positions.
Correlated: TypeAlias = Callable[[tf.Tensor, Mapping[int, int]], tf.Tensor]
# Index of a variable, its clipped sum, and the standard deviation of its noise.
_Member = tuple[int, tf.Tensor, Any]


@dataclasses.dataclass(frozen=True)
class _Draw:
    """Sums whose noise is drawn at once.

    Attributes:
        members: The sums.
        together: True if they share it, and would share it with more.
    """

    members: Sequence[_Member]
    together: bool

    @property
    def size(self) -> int:
        return sum(map(_size, self.members))


@dataclasses.dataclass(frozen=True)
class Draws:
    """One replica's noise in a step.

    Attributes:
        step_key: The key of the step, the same on every replica.
        replica: Number of this replica.
        share: Share of this replica in the standard deviation of all noise.
        secure: Draw from a cryptographic stream; the key is not used.
    """

    step_key: tf.Tensor
    replica: tf.Tensor | int
    share: float | tf.Tensor
    secure: bool = False

    def key(self, tensor: int) -> tf.Tensor | noise_lib.SecureKey:
        """Returns the key of one tensor's noise on this replica."""
        if self.secure:
            return noise_lib.SecureKey()
        return noise_lib.NoiseSource.key_of(self.step_key, tensor, self.replica)


def draws_of(
    step_key: tf.Tensor,
    clipped: clipped_lib.ClippedGradients,
    secure: bool = False,
) -> Draws:
    """Returns this replica's noise in a step.

    The noises of R replicas are independent, so R shares of `1 / sqrt(R)` add
    up to the whole standard deviation.

    Args:
        step_key: The key of the step, the same on every replica.
        clipped: The clipped sums of this replica.
        secure: Draw from a cryptographic stream.
    """
    return Draws(
        step_key,
        replicas.index() if clipped.replicas > 1 else 0,
        1.0 / math.sqrt(clipped.replicas),
        secure,
    )


def add_noise(
    clipped: clipped_lib.ClippedGradients,
    noise_multiplier: float,
    allocation: str,
    draws: Draws,
    correlated: Correlated | None = None,
    tables: row_release.RowRelease | None = None,
) -> list[Released]:
    """Adds this replica's share of the noise to its clipped sums.

    Args:
        clipped: The clipped sums, with the groups they were clipped in.
        noise_multiplier: Standard deviation of the noise over the sensitivity.
        allocation: Split of the noise among groups; see `Clipping`.
        draws: The noise of this replica.
        correlated: Makes the noise of a draw; `None`: it is independent.
        tables: How sparse tables are released; `None`: there are none.

    Returns:
        The released sums; `None` where there is no sum.
    """
    released: list[Any] = list(clipped.sums)
    if not noise_multiplier and tables is None:
        return released
    whole = noise_lib.standard_deviations(
        [group.clip_norm for group in clipped.groups],
        [group.dimension for group in clipped.groups],
        noise_multiplier,
        allocation,
    )
    deviations = [deviation * draws.share for deviation in whole]
    members: dict[str | None, list[_Member]] = {}
    of_tables: dict[int, row_release.Table] = {}
    for group, deviation in zip(clipped.groups, deviations, strict=True):
        for index in group.members:
            total = clipped.sums[index]
            if isinstance(total, clipping_lib.RowSums):
                of_tables[index] = row_release.Table(
                    total,
                    clipped.variables[index].shape[0],
                    deviation,
                    _keys_of_rows(draws, index, len(clipped.variables)),
                )
            elif total is not None and noise_multiplier:
                members.setdefault(group.device, []).append(
                    (index, total, deviation)
                )
    if tables is not None:
        found = tables.released(list(of_tables.values()), draws.share)
        for index, rows in zip(of_tables, found, strict=True):
            released[index] = rows
    fused = compilation.target() is compilation.Target.XLA
    fused |= compilation.has_accelerator()
    drawn = 0
    for device, of_device in members.items():
        for draw in _cut(of_device, fused):
            if fused or not draw.together:
                drawn += draw.size
            early = drawn <= _DRAWN_EARLY or (draw.together and not fused)
            with clipping_lib.on_device(device):
                for index, noised in _noised(draw, draws, early, correlated):
                    released[index] = noised
    return released


def _keys_of_rows(draws: Draws, index: int, variables: int) -> tuple:
    """Returns the keys of a sparse table; see `row_release.Table`."""
    # After those of the variables, and of the counts of adaptive clip norms.
    first = variables + 1 + 2 * index
    return draws.key(index), draws.key(first), draws.key(first + 1)


def _cut(members: Sequence[_Member], fused: bool) -> Iterator[_Draw]:
    """Cuts the sums of one device into those that share a draw.

    The key of a draw is that of its first member, and the keys of the others
    are not used, so no two draws share a stream.

    Args:
        members: The sums.
        fused: Make as few draws as `_FUSED_DRAW` allows.

    Yields:
        The draws: large sums first, on a CPU.
    """
    limit = _FUSED_DRAW if fused else _DRAWN_TOGETHER
    small: list[_Member] = []
    for member in members:
        if _size(member) >= limit:
            yield _Draw([member], together=False)
            continue
        if fused and sum(map(_size, small)) + _size(member) > limit:
            yield _Draw(small, together=True)
            small = []
        small.append(member)
    if small:
        yield _Draw(small, together=True)


def _size(member: _Member) -> int:
    return member[1].shape.num_elements()


def _noised(
    draw: _Draw, draws: Draws, early: bool, correlated: Correlated | None
) -> Iterator[tuple[int, tf.Tensor]]:
    """Adds noise to the sums of one draw.

    Args:
        draw: The sums.
        draws: The noise of this replica.
        early: Draw ahead of the sums. A core that is idle during the backward
            pass does it. If all noise were early, a large model would be in
            memory once more.
        correlated: See `add_noise`.

    Yields:
        The index and the noised sum of each.
    """
    indices, totals, deviations = zip(*draw.members, strict=True)
    key = draws.key(indices[0])
    with tf.control_dependencies([] if early else totals[:1]):
        if correlated is None:
            sums = noise_lib.add_gaussians(totals, deviations, key)
        else:
            sums = _with_correlated_noise(draw, key, correlated)
    yield from zip(indices, sums, strict=True)


def _with_correlated_noise(
    draw: _Draw,
    key: tf.Tensor | noise_lib.SecureKey,
    correlated: Correlated,
) -> list[tf.Tensor]:
    """Adds noise to one draw; correlated before it gets deviations."""
    normals = noise_lib.gaussian_noise([draw.size], 1.0, key)
    sizes = [_size(member) for member in draw.members]
    indices = [index for index, *_ in draw.members]
    noise = correlated(normals, dict(zip(indices, sizes, strict=True)))
    return [
        noise_lib.noised(
            total,
            tf.reshape(part * tf.cast(deviation, tf.float32), total.shape),
        )
        for part, (_, total, deviation) in zip(
            tf.split(noise, sizes), draw.members, strict=True
        )
    ]


def finished(
    clipped: clipped_lib.ClippedGradients,
    released: Sequence[Released],
    carriers: Sequence[low_rank.Carriers | None],
    divisor: tf.Tensor,
) -> list[Released]:
    """Makes of released sums what the Keras optimizer takes.

    Args:
        clipped: The clipped gradients; their sums are not read.
        released: The released sums, of all replicas.
        carriers: Carriers that sums were projected with, or `None`.
        divisor: The expected batch size.

    Returns:
        The gradient of each of `clipped.all_variables`, computed where the
        variable is.
    """
    gradients: list[Released] = [None] * len(clipped.variables)
    for group in clipped.groups:
        with clipping_lib.on_device(group.device):
            for index in group.members:
                variable = clipped.variables[index]
                gradients[index] = finish(
                    _reconstruct(released[index], carriers[index], variable),
                    clipped.regularization[index],
                    divisor,
                    variable,
                )
    joint = clipped.joint
    if joint is None:
        return gradients
    return gradients + [
        finish(total, extra, divisor, variable)
        for total, extra, variable in zip(
            joint.sums, joint.regularization, joint.variables, strict=True
        )
    ]


def _reconstruct(
    total: Released,
    carriers: low_rank.Carriers | None,
    variable: keras.Variable,
) -> Released:
    """Turns released carriers into a released kernel: post-processing."""
    if total is None or carriers is None:
        return total
    return low_rank.reconstruct(total, carriers, low_rank.marked_view(variable))


def finish(total, extra, divisor, variable):
    """Adds the regularisation's gradient to the mean of a released sum."""
    if total is None and extra is None:
        return None
    dtype = variable.dtype
    if isinstance(total, tf.IndexedSlices):
        assert extra is None  # Refused, for it would be that of every row.
        mean = total.values / tf.cast(divisor, total.values.dtype)
        return tf.IndexedSlices(
            tf.cast(mean, dtype), total.indices, total.dense_shape
        )
    mean = None if total is None else total / tf.cast(divisor, total.dtype)
    if mean is None:
        return tf.cast(extra, dtype)
    if extra is not None:
        mean += tf.cast(extra, mean.dtype)
    return tf.cast(mean, dtype)
