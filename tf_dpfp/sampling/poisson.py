"""Poisson sampling: every example joins every batch independently."""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import tensorflow as tf

from tf_dpfp import arguments
from tf_dpfp.accounting import PoissonSampling
from tf_dpfp.sampling import batching
from tf_dpfp.sampling import capacities
from tf_dpfp.sampling import persons
from tf_dpfp.sampling import registry
from tf_dpfp.sampling import source as source_lib
from tf_dpfp.sampling import sources
from tf_dpfp.sampling import views as views_lib
from tf_dpfp.sampling.binomial import BinomialCounts
from tf_dpfp.sampling.persons import Persons
from tf_dpfp.sampling.source import Source


def poisson_batches(
    x: Any,
    y: Any = None,
    sample_weight: Any = None,
    *,
    expected_batch_size: float | None = None,
    sampling_rate: float | None = None,
    steps_per_epoch: int | None = None,
    padded: str | None = None,
    capacity: int | None = None,
    map_fn: Callable[..., Any] | None = None,
    cache: bool = False,
    seed: int | None = None,
    users: Any = None,
    max_examples_per_user: int | None = None,
    augment: Any = None,
    multiplicity: int | None = None,
) -> tf.data.Dataset:
    """Draws batches by Poisson sampling, which the privacy analysis assumes.

    Each example is in each batch with probability `sampling_rate`,
    independently of every other example and of every other batch. Batches
    therefore vary in size, and may be empty. Every iteration over the data set
    draws anew, so each epoch sees other batches; an example may be in none or
    in several batches of one epoch.

    The guarantee is for adding or removing one example. Neither the sampling
    rate nor the divisor of the sums may then depend on that example: the scale
    of the noise in the weights shows the divisor. `expected_batch_size` alone
    or `sampling_rate` alone treats the size of the data set as public. If it
    is not public, choose both, and `steps_per_epoch`, yourself.
    An example must be in the data once, and an example is what is protected:
    a person with several examples is protected less.

    With `users` it is persons who are drawn, each by one coin, and whom the
    guarantee protects, with all of their examples. Of a person who is drawn up
    to `max_examples_per_user` examples are used, chosen at random in every
    step. `fit` clips the sum of their gradients. What is said of examples here
    holds of persons then: the rate, `expected_batch_size`, `capacity`, the
    `microbatch_size` of the optimizer and the public size count persons.

    With `augment` and `multiplicity` each example that is drawn becomes as
    many augmented views, and `fit` clips the mean of their gradients. What is
    drawn, clipped and protected stays the example: noise and epsilon are those
    of one view, at the cost of computing several.

    Example:

    >>> x = np.arange(10)
    >>> batches = tf_dpfp.poisson_batches(
    ...     x, expected_batch_size=4, steps_per_epoch=3, seed=2
    ... )
    >>> [batch.tolist() for batch in batches.as_numpy_iterator()]
    [[3, 6], [2, 9, 5], [3, 7, 8, 5, 6]]

    Args:
        x: Examples, as one of:
            - an array or tensor, or arrays nested in dicts, tuples and lists,
                with a common first axis over examples. Floats become Keras's
                `floatx`, as in `fit`. Memory-mapped arrays are read by batch;
            - a `tf.data.Dataset` of single examples (not repeated) with a
                known cardinality, or of batches of them. It is read once, with
                a progress bar if that takes long, and kept in memory, so random
                augmentation belongs in `map_fn`;
            - a `keras.utils.PyDataset`. Examples are drawn from within its
                batches, which must all have the size of the first, except the
                last, and must hold the same examples whenever they are read. A
                draw reads every batch that it touches; see `cache`;
            - an object with `__len__` and `__getitem__`, which returns one
                example (TFDS data sources, torch and grain style). A method
                `__getitems__` is used if there is one.
        y: Targets, nested like `x`. Left out if `x` yields `(x, y)` or
            `(x, y, sample_weight)` itself.
        sample_weight: Weights, nested like `x` or `y`. Needs `y`.
        expected_batch_size: Mean number of examples in a batch. Beside
            `sampling_rate`, it is only the public number that the sum of a
            step is divided by.
        sampling_rate: Probability of each example to be in a batch, in (0, 1].
            Without `expected_batch_size`, sums are divided by it times the
            size of the data set, which treats that size as public.
        steps_per_epoch: Number of batches in an iteration. Defaults to
            `1 / sampling_rate` rounded, at least 1.
        padded: `None` for batches of the size drawn, which `fit` pads to one
            of four sizes where XLA compiles the step, or `"static"` for batches
            of exactly `capacity` examples, whose shapes are static as TPUs
            need them. Padding is zeros (empty strings) of weight zero, so
            padded batches are always `(x, y, sample_weight)` and need targets.
            Metrics see the padding unless they are `weighted_metrics`.
        capacity: Size of a padded batch. Defaults to the smallest multiple of
            8 that a draw exceeds with probability at most 1e-15. A draw that
            does exceed it loses its surplus at random, and the accountant
            counts the probability of that.
        map_fn: Function that transforms a batch, called as by
            `tf.data.Dataset.map`, with `x`, `(x, y)` or
            `(x, y, sample_weight)`. It must keep the batch size and must treat
            each example by itself (augmentation, casting): to mix examples, as
            batch statistics and mixup do, breaks the guarantee. It sees
            padding, too, whose weights are set to zero afterwards.
        cache: Boolean, whether to read a PyDataset or random-access object
            once and keep it in memory, which makes drawing fast. Other kinds
            are in memory already.
        seed: Integer from 0 to 2^63 - 1 that makes the draws reproducible;
            iterations differ from each other, and those of a training that goes
            on from those of its beginning. Anyone who has the seed can tell
            which examples were drawn. `None` takes the randomness of each
            iteration from the operating system, whatever global seeds are set.
        users: One id for each example, in order, that says whose it is:
            integers, strings or other values to compare. Or a function of a
            batch of examples (`x`, `(x, y)` or `(x, y, sample_weight)`, as
            arrays) that returns their ids. Needs targets.
        max_examples_per_user: Greatest number of examples of a person in a
            step; needed with `users`. A step computes so many for everyone.
        augment: Random augmentation of the inputs: a Keras layer, a list of
            layers, or a function of one example, without a first axis, that
            returns one of static shape. It follows `map_fn`, and is called for
            each view on one example alone, with secret seeds for layers and
            for `keras.random`. Targets and weights are those of the example.
        multiplicity: Number K of views of each example. Defaults to 1. Without
            `augment` they are copies, for random layers inside of the model.

    Returns:
        A `tf.data.Dataset` of `steps_per_epoch` batches `x`, `(x, y)` or
        `(x, y, sample_weight)`, known to `fit` as Poisson-sampled. Lists come
        out as tuples; a tuple `x` without `y` comes out as `(x,)`, as in
        Keras. A data set derived from it by `map`, `take` and the like claims
        nothing; use `map_fn`. With `users`, batches are named tuples
        `(x, y, sample_weight)` of shapes `(persons, max_examples_per_user,
        ...)`, of weight zero where a person has fewer examples; `map_fn` sees
        all of it end to end. With `multiplicity` above 1, they are named tuples
        of shapes `(examples, multiplicity, ...)`.

    Raises:
        ValueError: If an argument is outside its range, or contradicts another
            one or the data.
        TypeError: If examples cannot be drawn from `x`, or ids be compared.

    Reference:
        - Abadi et al., 2016, "Deep Learning with Differential Privacy".
        - Mironov et al., 2019, "Renyi Differential Privacy of the Sampled
            Gaussian Mechanism".
        - De et al., 2022, "Unlocking High-Accuracy Differentially Private Image
            Classification through Scale" (augmentation multiplicity).
    """
    sampler = make_sampler(
        x,
        y,
        sample_weight,
        expected_batch_size=expected_batch_size,
        sampling_rate=sampling_rate,
        steps_per_epoch=steps_per_epoch,
        padded=padded,
        capacity=capacity,
        map_fn=map_fn,
        cache=cache,
        seed=seed,
        users=users,
        max_examples_per_user=max_examples_per_user,
        augment=augment,
        multiplicity=multiplicity,
    )
    shards = registry.Shards(sampler.shard, sampler.digest)
    return registry.register(*sampler.shard(0, 1), shards)


def make_sampler(
    x: Any,
    y: Any = None,
    sample_weight: Any = None,
    *,
    expected_batch_size: float | None = None,
    sampling_rate: float | None = None,
    steps_per_epoch: int | None = None,
    padded: str | None = None,
    capacity: int | None = None,
    map_fn: Callable[..., Any] | None = None,
    cache: bool = False,
    seed: int | None = None,
    users: Any = None,
    max_examples_per_user: int | None = None,
    augment: Any = None,
    multiplicity: int | None = None,
) -> "Sampler":
    """Checks the arguments of `poisson_batches`, which these are.

    Returns:
        The settings.

    Raises:
        ValueError: If an argument is outside its range, or contradicts another
            one or the data.
        TypeError: If examples cannot be drawn from `x`, or ids be compared.
    """
    batch_size, rate = _checked_sizes(expected_batch_size, sampling_rate)
    if steps_per_epoch is not None:
        steps_per_epoch = arguments.positive_integer(
            "steps_per_epoch", steps_per_epoch
        )
    capacity = capacities.checked(padded, capacity)
    seed = arguments.seed(seed)
    registry.refuse_drawn(x)
    places = persons.checked_places(users, max_examples_per_user)
    views = views_lib.checked(augment, multiplicity, users)
    source = sources.make_source(x, y, sample_weight, cache)
    grouped = None if places is None else persons.group(source, users, places)
    size = source.size if grouped is None else grouped.size
    if rate is None:
        assert batch_size is not None  # One of the two was given.
        rate = _rate_of(
            batch_size, size, "examples" if users is None else "persons"
        )
    return Sampler(
        source=source,
        rate=rate,
        persons=grouped,
        expected_batch_size=batch_size or rate * size,
        steps=steps_per_epoch or max(1, round(1 / rate)),
        padded=padded is not None,
        capacity=capacity,
        map_fn=map_fn,
        seed=seed,
        views=views,
    )


@dataclasses.dataclass(frozen=True)
class Sampler:
    """Checked settings of `poisson_batches`."""

    source: Source
    persons: Persons | None
    rate: float
    expected_batch_size: float
    steps: int
    padded: bool
    capacity: int | None
    map_fn: Callable[..., Any] | None
    seed: int | None
    views: views_lib.Views | None
    earlier: batching.Earlier = dataclasses.field(
        default_factory=batching.Earlier
    )

    @property
    def size(self) -> int:
        """Number of examples, or of persons, that are drawn from."""
        return self.source.size if self.persons is None else self.persons.size

    def digest(self, key: bytes) -> bytes:
        """Computes a digest of the examples; see `examples_digest`."""
        if self.persons is None:
            return source_lib.digest(self.source, key)
        return self.persons.digest(self.source, key)

    def shard(
        self, index: int, count: int
    ) -> tuple[tf.data.Dataset, registry.SamplingInfo]:
        """Returns the batches of one worker; see `sampled_shard`."""
        largest = -(-self.size // count)
        capacity, overflow = None, 0.0
        if self.padded:
            if self.capacity:
                capacity = -(-self.capacity // count)
            else:
                capacity = capacities.default_capacity(largest, self.rate)
            # Any of the shards may overflow.
            overflow = count * capacities.overflow_probability(
                largest, self.rate, capacity
            )
        info = registry.SamplingInfo(
            sampling=PoissonSampling(self.rate, min(1.0, overflow)),
            expected_batch_size=self.expected_batch_size,
            population=self.size,
            steps_per_epoch=self.steps,
            capacity=capacity,
            seeded=self.seed is not None,
            max_examples_per_user=(
                None if self.persons is None else self.persons.max_examples
            ),
            multiplicity=1 if self.views is None else self.views.count,
            ask_earlier=self.earlier.ask,
        )
        return self._batches(index, count, capacity), info

    def _batches(
        self, index: int, count: int, capacity: int | None
    ) -> tf.data.Dataset:
        """Returns `steps` batches of every `count`-th example."""
        source, grouped, places = self.source, self.persons, None
        if grouped is None:
            source = source_lib.every_nth(source, index, count)
            size = source.size
        else:
            grouped = grouped.every_nth(index, count)
            size, places = grouped.size, grouped.max_examples
        entropy = batching.seeds(self.seed, index, self.earlier)
        counts = BinomialCounts(size, self.rate)

        def draws() -> Iterator[Any]:
            rng, of_views = batching.generators(next(entropy))
            for _ in range(self.steps):
                drawn = draw(rng, counts, capacity)
                if grouped is not None:
                    drawn = grouped.draw_examples(rng, drawn)
                if self.views is None:
                    yield drawn
                else:
                    yield drawn, batching.secret_seeds(of_views, len(drawn))

        dataset = batching.batches(
            source,
            draws,
            capacity,
            self.map_fn,
            places=places,
            views=self.views,
        )
        return dataset.apply(
            tf.data.experimental.assert_cardinality(self.steps)
        ).prefetch(2)


def draw(
    rng: np.random.Generator,
    counts: BinomialCounts,
    capacity: int | None = None,
) -> np.ndarray:
    """Draws the indices of one Poisson batch, in random order.

    A binomial number of examples, chosen without replacement, has the same
    distribution as one coin per example, and takes no time for the others.

    Args:
        rng: Generator that the randomness comes from.
        counts: Distribution of the number of examples.
        capacity: Greatest number of indices; a surplus is dropped at random.

    Returns:
        Distinct indices, an integer array of varying length.
    """
    # The choice is uniform among all subsets, by integers alone. It is
    # shuffled, so what is cut off is uniform among the drawn.
    drawn = rng.choice(counts.population, counts.draw(rng), replace=False)
    return drawn[:capacity]


def _checked_sizes(
    expected_batch_size: float | None, sampling_rate: float | None
) -> tuple[float | None, float | None]:
    """Returns both arguments as floats or `None`, not both `None`."""
    if expected_batch_size is None and sampling_rate is None:
        raise ValueError(
            "`expected_batch_size`, `sampling_rate` or both must be given. "
            "Received: expected_batch_size=None, sampling_rate=None"
        )
    if expected_batch_size is not None:
        expected_batch_size = arguments.number(
            "expected_batch_size", expected_batch_size, above=0
        )
    if sampling_rate is not None:
        sampling_rate = arguments.number(
            "sampling_rate",
            sampling_rate,
            above=0,
            most=1,
            hint="For a batch size, use `expected_batch_size`.",
        )
    return expected_batch_size, sampling_rate


def _rate_of(expected_batch_size: float, population: int, unit: str) -> float:
    if expected_batch_size > population:
        raise ValueError(
            f"`expected_batch_size` must be at most the number of {unit}, "
            f"{population}. Choose a smaller one. Received: "
            f"expected_batch_size={expected_batch_size:g}"
        )
    return expected_batch_size / population
