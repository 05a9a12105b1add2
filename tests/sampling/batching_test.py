import numpy as np
import pytest

import tf_dpfp
from tf_dpfp.sampling import batching

X, Y = np.zeros((8, 2), np.float32), np.arange(8) % 2

SEEDED = {
    "poisson_batches": lambda seed: tf_dpfp.poisson_batches(
        X, Y, expected_batch_size=2.5, seed=seed
    ),
    "stratified_batches": lambda seed: (
        tf_dpfp.representations.stratified_batches(
            X, Y, draw_size=2, labels="public", seed=seed
        )
    ),
    "randomize_labels": lambda seed: tf_dpfp.representations.randomize_labels(
        Y, 1.0, 2, seed=seed
    ),
}


@pytest.mark.parametrize("kind", SEEDED)
@pytest.mark.parametrize("seed", [True, -1, 1.0, "1", 2**63, np.nan, [1]])
def test_what_is_no_seed_is_refused_alike(kind, seed):
    with pytest.raises(ValueError) as caught:
        SEEDED[kind](seed)
    assert str(caught.value) == (
        "`seed` must be None or an integer from 0 to 2**63 - 1. "
        + ("Leave the quotes out: text is no number. " * isinstance(seed, str))
        + f"Received: seed={seed!r}"
    )


@pytest.mark.parametrize("kind", SEEDED)
@pytest.mark.parametrize("seed", [None, 0, np.int64(3), 2**63 - 1])
def test_seeds_are_taken_alike(kind, seed):
    SEEDED[kind](seed)


def test_a_seed_of_another_type_draws_the_same():
    draws = [
        [x.tolist() for x in data.as_numpy_iterator()]
        for data in (
            tf_dpfp.poisson_batches(np.arange(50), sampling_rate=0.5, seed=seed)
            for seed in (3, np.int16(3), np.uint64(3))
        )
    ]
    assert draws[0] == draws[1] == draws[2]


def test_iterations_and_shards_have_seeds_of_their_own():
    taken = [batching.seeds(4, shard) for shard in (0, 1)]
    found = [tuple(next(seeds)) for seeds in taken for _ in range(3)]
    states = {
        tuple(np.random.SeedSequence(seed).generate_state(4)) for seed in found
    }
    assert len(states) == 6
    assert next(batching.seeds(None)) is None


def test_whoever_draws_after_steps_has_seeds_of_its_own():
    """With views and without, after steps and others that drew after them."""
    numbers = [(0,), (1,), (2,), (0, 1), (1, 0), (1, 1)]
    found = []
    for steps in range(3):
        for others in numbers:
            earlier = batching.Earlier()
            earlier.ask(lambda _, words=(steps, *others): words)
            seed = next(batching.seeds(4, earlier=earlier))
            found += batching.generators(seed)
    states = {str(rng.bit_generator.state) for rng in found}
    assert len(states) == len(found) == 2 * 3 * len(numbers)
