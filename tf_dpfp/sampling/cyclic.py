"""Cyclic Poisson sampling: from one part of the examples after the other."""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import tensorflow as tf

from tf_dpfp import arguments
from tf_dpfp.accounting import CyclicPoissonSampling
from tf_dpfp.accounting import PoissonSampling
from tf_dpfp.sampling import batching
from tf_dpfp.sampling import poisson
from tf_dpfp.sampling import registry
from tf_dpfp.sampling.binomial import BinomialCounts

# Tell seeds of parts and of draws from them from those of other iterations.
_OF_PARTS, _OF_DRAWS = 2**32 - 1, 2**32 - 2


def cyclic_poisson_batches(
    x: Any,
    y: Any = None,
    sample_weight: Any = None,
    *,
    expected_batch_size: float | None = None,
    sampling_rate: float | None = None,
    bands: int | None = None,
    steps_per_epoch: int | None = None,
    map_fn: Callable[..., Any] | None = None,
    cache: bool = False,
    seed: int | None = None,
    users: Any = None,
    max_examples_per_user: int | None = None,
) -> tf.data.Dataset:
    """Draws batches for an optimizer with correlated noise.

    `fit` puts each example into one part, by a coin of its own, as many as the
    noise of the optimizer has bands (`tf_dpfp.Banded`). Its first step draws
    from one part by Poisson sampling, the next one from the next part, and so
    on: an example may be in one of `bands` steps in a row only, and is drawn
    there at `bands` times the rate, so that batches have the same mean size.
    Epsilon counts one Poisson-sampled step of that rate for each `bands` steps.

    With `users` it is persons who are put into parts, with all of their
    examples, and who are drawn, each by one coin, and whom the guarantee
    protects: see `poisson_batches`. What is said of examples here holds of
    persons then.

    Everywhere else, as where noise is independent, the data set is that of
    `poisson_batches`, whose arguments these are.

    Args:
        x: Examples.
        y: Targets.
        sample_weight: Weights. Needs `y`.
        expected_batch_size: Mean number of examples in a batch.
        sampling_rate: Probability of each example to be in a batch, in the
            mean over the parts, in (0, 1].
        bands: Number of parts, at least that of the optimizer's bands. `None`:
            that of its bands.
        steps_per_epoch: Number of batches in an iteration. Defaults to
            `1 / sampling_rate` rounded, at least 1.
        map_fn: Function that transforms a batch, each example by itself.
        cache: Boolean, whether to keep a PyDataset or random-access object in
            memory.
        seed: Integer that makes parts and draws reproducible. Anyone who has
            it can tell which examples were drawn.
        users: One id for each example, in order, that says whose it is, or a
            function of a batch of examples that returns their ids. Needs
            targets.
        max_examples_per_user: Greatest number of examples of a person in a
            step; needed with `users`.

    Returns:
        A `tf.data.Dataset` of `steps_per_epoch` batches `x`, `(x, y)` or
        `(x, y, sample_weight)`. A data set derived from it by `map`, `take`
        and the like claims nothing; use `map_fn`. With `users`, batches are
        those of persons.

    Raises:
        ValueError: If an argument is outside its range, or contradicts another
            one or the data.
        TypeError: If examples cannot be drawn from `x`, or ids be compared.

    Reference:
        - [(Amplified) banded matrix factorization: a unified approach to
          private training](https://arxiv.org/abs/2306.08153)
    """
    if bands is not None:
        bands = arguments.positive_integer("bands", bands)
    sampler = poisson.make_sampler(
        x,
        y,
        sample_weight,
        expected_batch_size=expected_batch_size,
        sampling_rate=sampling_rate,
        steps_per_epoch=steps_per_epoch,
        map_fn=map_fn,
        cache=cache,
        seed=seed,
        users=users,
        max_examples_per_user=max_examples_per_user,
    )
    if bands is not None:
        _sampling(sampler, bands)
    dataset, info = sampler.shard(0, 1)
    # Of all trainings: with a seed a second one would draw as the first did.
    entropy = batching.seeds(sampler.seed, _OF_DRAWS, sampler.earlier)
    cyclic = registry.Cyclic(
        parts=bands,
        most_parts=int(1.0 / sampler.rate * (1.0 + 1e-12)),
        sampling_of=functools.partial(_sampling, sampler),
        batches_of=functools.partial(_in_parts, sampler, entropy),
    )
    return registry.register(dataset, dataclasses.replace(info, cyclic=cyclic))


def _sampling(sampler: poisson.Sampler, parts: int) -> PoissonSampling:
    """Returns the sampling of a step that draws from one of several parts."""
    rate = sampler.rate * parts
    unit = "example" if sampler.persons is None else "person"
    if rate > 1.0 + 1e-12:
        raise ValueError(
            f"With {parts} parts each {unit} would have to be drawn with a "
            f"probability of {rate:.3g}: a part has fewer {unit}s than a "
            "batch. Use fewer bands, or smaller batches. Received: "
            f"bands={parts}, sampling_rate={sampler.rate:.4g}"
        )
    if parts == 1:
        return PoissonSampling(sampler.rate)
    return CyclicPoissonSampling(min(rate, 1.0), parts=parts)


def _in_parts(
    sampler: poisson.Sampler, entropy: Iterator[Any], parts: int
) -> tf.data.Dataset:
    """Returns batches from one part after the other, which say so.

    Each call draws the parts anew, but with a seed. Each iteration goes on
    with the part that is due if all iterations before it were whole.

    Args:
        sampler: Settings of the sampling.
        entropy: Seeds of iterations, each of them for one iteration of one
            call: trainings compose only if their draws are independent.
        parts: Number of parts.

    Returns:
        A data set of `PartBatch`es.
    """
    rate = _sampling(sampler, parts).sampling_rate
    members = assign(sampler.size, parts, sampler.seed)
    counts = [BinomialCounts(len(each), rate) for each in members]
    iterations = itertools.count()
    grouped = sampler.persons

    def draws() -> Iterator[tuple[int, np.ndarray]]:
        first = next(iterations) * sampler.steps
        rng = np.random.default_rng(next(entropy))
        for step in range(first, first + sampler.steps):
            part = step % parts
            drawn = members[part][poisson.draw(rng, counts[part])]
            if grouped is not None:
                drawn = grouped.draw_examples(rng, drawn)
            yield part, drawn

    dataset = batching.batches(
        sampler.source,
        draws,
        None,
        sampler.map_fn,
        places=None if grouped is None else grouped.max_examples,
        from_parts=True,
    )
    return dataset.apply(
        tf.data.experimental.assert_cardinality(sampler.steps)
    ).prefetch(2)


def assign(size: int, parts: int, seed: int | None) -> list[np.ndarray]:
    """Assigns each example, or person, to a part, by a coin of its own.

    Parts of equal size would not do: an example that is left out would move
    others from one part to the next.

    Args:
        size: Number of examples, or of persons.
        parts: Number of parts.
        seed: Integer; `None`: coins from the operating system.

    Returns:
        The indices of those in each part.
    """
    entropy = None if seed is None else (seed, parts, _OF_PARTS)
    coins = np.random.default_rng(entropy).integers(parts, size=size)
    return [np.flatnonzero(coins == part) for part in range(parts)]
