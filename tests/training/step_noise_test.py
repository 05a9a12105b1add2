"""The noise of whole steps, on models whose gradients are zero."""

import math

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import tf_dpfp
from tests import helpers
from tests import programs
from tf_dpfp.optimizers import release

pytestmark = pytest.mark.usefixtures("without_trial")

# Kernels of over 2^16 numbers: beside the biases, both ways to draw noise.
WIDTH = 260
CLIP, MULTIPLIER, EXPECTED = 0.3, 1.7, 5.0
STD = CLIP * MULTIPLIER / EXPECTED


def _silent_model(seed=None, clipping="flat", rows=WIDTH, **kwargs):
    """Zero inputs and zero labels: whatever moves is noise."""
    model = keras.Sequential(
        [
            keras.Input((rows,)),
            layers.Dense(WIDTH, kernel_initializer="zeros"),
            layers.Dense(WIDTH, kernel_initializer="zeros", name="second"),
        ]
    )
    tf_dpfp.make_private(model)
    microbatch_size = kwargs.pop("microbatch_size", None)
    model.compile(
        tf_dpfp.DPSGD(
            1.0,
            l2_norm_clip=CLIP,
            noise_multiplier=MULTIPLIER,
            expected_batch_size=EXPECTED,
            clipping=clipping,
            microbatch_size=microbatch_size,
            seed=seed,
        ),
        # No gradient anywhere, and still a path to every weight.
        loss=lambda y_true, y_pred: tf.reduce_sum(0.0 * y_pred),
        **kwargs,
    )
    return model


def _steps(model, count=1, examples=6):
    """The moves of each step, one flat vector for every variable."""
    x = np.zeros((examples, model.input_shape[1]), np.float32)
    y = np.zeros((examples, WIDTH), np.float32)
    moves = []
    for _ in range(count):
        before = [v.numpy() for v in model.trainable_variables]
        model.train_on_batch(x, y)
        moves.append(
            [
                (v.numpy() - b).astype(np.float64).ravel()
                for v, b in zip(model.trainable_variables, before, strict=True)
            ]
        )
    return moves


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        # The noise is drawn once for the batch, not once for each piece.
        {"clipping": "per_layer", "microbatch_size": 2},
        {"jit_compile": True, "microbatch_size": 2},
    ],
    ids=str,
)
def test_the_noise_of_a_step_has_exactly_the_stated_scale(arguments):
    model = _silent_model(**arguments)
    sample = np.concatenate([np.concatenate(move) for move in _steps(model, 4)])
    # The scales next to it must be told apart at this sample size.
    wrong = (0.98, 1.02, 1 / math.sqrt(2), math.sqrt(2), 0.5, 2.0)
    helpers.assert_normal(sample, STD, wrong)


@pytest.mark.parametrize("allocation", ["equal_budget", "by_dimension"])
def test_each_group_has_the_noise_that_its_allocation_says(allocation):
    clipping = tf_dpfp.PerLayer(
        thresholds="by_dimension", noise_allocation=allocation
    )
    # Layers of unlike size: with equal ones every allocation is the same.
    model = _silent_model(clipping=clipping, rows=WIDTH // 5)
    first, second = (
        np.concatenate([np.concatenate(move[i : i + 2]) for move in moves])
        for moves in [_steps(model, 3)]
        for i in (0, 2)
    )
    dimensions = [WIDTH * (WIDTH // 5 + 1), WIDTH * (WIDTH + 1)]
    thresholds = [CLIP * math.sqrt(d / sum(dimensions)) for d in dimensions]
    for sample, threshold, dimension in zip(
        (first, second), thresholds, dimensions, strict=True
    ):
        if allocation == "equal_budget":
            scale = MULTIPLIER * math.sqrt(2) * threshold
        else:
            scale = MULTIPLIER * math.sqrt(sum(dimensions) / dimension)
            scale *= threshold
        scale /= EXPECTED
        wrong = (0.9, 1.1, 1 / math.sqrt(2), math.sqrt(2), 0.5, 2.0)
        helpers.assert_normal(sample, scale, wrong)


def test_noise_that_waits_for_its_sum_is_the_same(monkeypatch):
    early = _steps(_silent_model(seed=3))
    monkeypatch.setattr(release, "_DRAWN_EARLY", 0)
    late = _steps(_silent_model(seed=3))
    for a, b in zip(early[0], late[0], strict=True):
        np.testing.assert_array_equal(a, b)


def test_noise_is_independent_over_steps_tensors_and_rows():
    moves = _steps(_silent_model(), 3)
    kernels = [move[0] for move in moves] + [move[2] for move in moves]
    bound = 5.0 / math.sqrt(len(kernels[0]))
    for i, a in enumerate(kernels):
        for b in kernels[:i]:
            assert abs(np.corrcoef(a, b)[0, 1]) < bound
    for kernel in kernels:
        matrix = kernel.reshape(WIDTH, WIDTH)
        between_rows = np.corrcoef(matrix) - np.eye(WIDTH)
        assert np.max(np.abs(between_rows)) < 6.5 / math.sqrt(WIDTH)
    # Not one number twice: no stream is read a second time.
    every = np.concatenate(kernels)
    assert len(np.unique(every)) > 0.98 * len(every)


def test_a_seed_given_again_repeats_no_noise():
    model = _silent_model(seed=7)
    first = _steps(model, 2)
    # Compiled anew, the optimizer counts from zero; the noise does not.
    model.compile(
        tf_dpfp.DPSGD(
            1.0,
            l2_norm_clip=CLIP,
            noise_multiplier=MULTIPLIER,
            expected_batch_size=EXPECTED,
            seed=7,
        ),
        loss=lambda y_true, y_pred: tf.reduce_sum(0.0 * y_pred),
    )
    bound = 5.0 / math.sqrt(WIDTH * WIDTH)
    for again in _steps(model, 2):
        for before in first:
            assert abs(np.corrcoef(before[0], again[0])[0, 1]) < bound


def test_unseeded_runs_differ_and_seeded_ones_do_not():
    def first_move(seed):
        # Keras's own seed is not the noise's.
        keras.utils.set_random_seed(3)
        return np.concatenate(_steps(_silent_model(seed, rows=3), 2)[1])

    assert np.any(first_move(None) != first_move(None))
    np.testing.assert_array_equal(first_move(11), first_move(11))
    assert np.all(first_move(11) != first_move(12))


_PROCESS = """
import numpy as np, tensorflow as tf
from tf_dpfp import noise
source = noise.NoiseSource()
key = source.key_of(source.next_step(), 0)
print(noise.gaussian_noise([4], 1.0, key).numpy().tolist())
"""


def test_two_processes_draw_different_noise(tmp_path):
    # Of one interpreter, with the same hashes of strings.
    outputs = [
        programs.run(["-c", _PROCESS], tmp_path, check=True).stdout
        for _ in range(2)
    ]
    assert outputs[0].startswith("[") and outputs[0] != outputs[1]


def test_a_restored_run_draws_new_noise(tmp_path):
    model = _silent_model(rows=3)
    _steps(model)
    checkpoint = tf.train.Checkpoint(model=model)
    path = checkpoint.save(str(tmp_path / "checkpoint"))
    first = np.concatenate(_steps(model)[0])
    checkpoint.restore(path)
    again = np.concatenate(_steps(model)[0])
    assert np.all(first != again)


@pytest.mark.parametrize("kind", ["keras", "weights.h5", "checkpoint"])
def test_no_checkpoint_holds_the_key_or_the_state(tmp_path, kind):
    model = _silent_model(seed=None, rows=3)
    _steps(model)
    key = model.optimizer._noise_source._key.numpy()
    if kind == "keras":
        model.save(tmp_path / "model.keras")
    elif kind == "weights.h5":
        model.save_weights(tmp_path / "model.weights.h5")
    else:
        tf.train.Checkpoint(model=model, optimizer=model.optimizer).save(
            str(tmp_path / "checkpoint")
        )
    files = [p for p in tmp_path.rglob("*") if p.is_file()]
    assert files
    needle = key.tobytes()
    for path in files:
        data = path.read_bytes()
        assert needle not in data and needle[::-1] not in data
    # Uncompressed, too.
    saved = {}
    if kind == "checkpoint":
        reader = tf.train.load_checkpoint(str(tmp_path))
        saved = {
            name: reader.get_tensor(name)
            for name in reader.get_variable_to_shape_map()
        }
    else:
        model.optimizer.save_own_variables(saved)
    for name, value in saved.items():
        assert not np.any(np.asarray(value).ravel()[:1] == key), name
    sums = [v for k, v in saved.items() if np.size(v) >= 3 * WIDTH]
    # Weights may be there (they are released), clipped sums may not.
    for value in sums:
        if kind != "checkpoint":
            assert np.size(value) not in (3 * WIDTH, WIDTH * WIDTH)
