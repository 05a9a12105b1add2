"""Bugs that private training must not have, to be planted for a while.

Each is a context manager: what is compiled inside of it has the bug. They
change the library from the outside, so that it carries none of this.
"""

import contextlib
import dataclasses
from collections.abc import Iterator
from unittest import mock

import keras
import tensorflow as tf

from tf_dpfp import clipping
from tf_dpfp import noise
from tf_dpfp import sampling
from tf_dpfp import step as step_lib
from tf_dpfp.optimizers import release


@contextlib.contextmanager
def noise_forgotten() -> Iterator[None]:
    """The clipped sums are released as they are."""

    def add_noise(clipped, *_):
        return list(clipped.sums)

    with mock.patch.object(release, "add_noise", add_noise):
        yield


@contextlib.contextmanager
def noise_halved() -> Iterator[None]:
    """Half of the standard deviation that is accounted for."""
    original = release.add_noise

    def add_noise(clipped, noise_multiplier, *others):
        return original(clipped, noise_multiplier / 2, *others)

    with mock.patch.object(release, "add_noise", add_noise):
        yield


@contextlib.contextmanager
def noise_reused() -> Iterator[None]:
    """The same noise in every step."""
    original = noise.NoiseSource.key_of

    def key_of(step_key, *of_tensor):
        return original(tf.zeros_like(step_key), *of_tensor)

    with mock.patch.object(noise.NoiseSource, "key_of", staticmethod(key_of)):
        yield


@contextlib.contextmanager
def clip_skipped() -> Iterator[None]:
    """The first group is not clipped; the noise is as if it were."""
    original = clipping.clip_and_sum

    def clip_and_sum(gradients, groups, *others):
        first = dataclasses.replace(groups[0], clip_norm=1e10)
        return original(gradients, (first, *groups[1:]), *others)

    with mock.patch.object(clipping, "clip_and_sum", clip_and_sum):
        yield


@contextlib.contextmanager
def actual_batch_size() -> Iterator[None]:
    """The mean over the batch that was drawn, noised for the expected one."""
    original = step_lib.clipped_batch

    def clipped_batch(model, plan, x, y, sample_weight, *rest):
        batch = original(model, plan, x, y, sample_weight, *rest)
        clipped = batch.clipped
        if sample_weight is None:
            drawn = tf.cast(tf.shape(keras.tree.flatten(x)[0])[0], tf.float32)
        else:
            drawn = tf.math.count_nonzero(sample_weight, dtype=tf.float32)
        scale = model.optimizer.expected_batch_size / tf.maximum(drawn, 1.0)
        sums = [None if s is None else s * scale for s in clipped.sums]
        return batch._replace(clipped=clipped._replace(sums=sums))

    with mock.patch.object(step_lib, "clipped_batch", clipped_batch):
        yield


@contextlib.contextmanager
def padding_leaking() -> Iterator[None]:
    """Rows of padding are examples like any other."""
    original = sampling.pad_to_multiple

    def pad(tree, multiple, batch_size=None):
        padded, mask = original(tree, multiple, batch_size)
        return padded, tf.ones_like(mask)

    with mock.patch.object(sampling, "pad_to_multiple", pad):
        yield


BUGS = {
    "noise forgotten": noise_forgotten,
    "noise halved": noise_halved,
    "noise reused": noise_reused,
    "clip skipped for one layer": clip_skipped,
    "actual batch size": actual_batch_size,
    "padding leaking": padding_leaking,
}
