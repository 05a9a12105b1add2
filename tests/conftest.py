import os

# Before anything imports TensorFlow or matplotlib.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("MPLBACKEND", "Agg")

import functools
import gc
import sys

import hypothesis
import pytest
from absl import flags

# Tracing a graph takes seconds: no deadline. In CI the examples are always the
# same ones, so that what fails there is the change, not the draw.
hypothesis.settings.register_profile(
    "tf_dpfp", deadline=None, derandomize=bool(os.environ.get("CI"))
)
hypothesis.settings.load_profile("tf_dpfp")


def pytest_collection_modifyitems(items):
    # A long file at the end would leave the other processes without work.
    items.sort(key=lambda item: "tuning" not in item.path.parts)


def pytest_collection_finish():
    # What is imported stays: the collector need not look at it while graphs
    # are traced, which makes much rubbish.
    gc.collect()
    gc.freeze()
    # Nor at what a graph is made of after every 700 objects.
    gc.set_threshold(400_000, 10, 10)


def pytest_configure(config):
    del config
    # absltest and the examples read flags, which pytest does not parse.
    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()


@pytest.fixture(scope="module", autouse=True)
def _leave_to_the_collector_what_is_new():
    """Has it walk through what a file left behind once, and not ever again.

    TensorFlow and Keras keep much of every model that was made. The longer a
    process runs, the more of that a full collection walks through, in whichever
    test it falls: up to a minute where memory is slow.
    """
    yield
    gc.collect()
    gc.freeze()


@functools.cache
def _split_cpu():
    """Four logical CPUs, which stand for the devices of a larger machine."""
    import tensorflow as tf

    (cpu,) = tf.config.list_physical_devices("CPU")
    tf.config.set_logical_device_configuration(
        cpu, [tf.config.LogicalDeviceConfiguration()] * 4
    )


@functools.cache
def _note_no_stacks():
    """Has TensorFlow make operations without the stack that they come from.

    Its only use is in messages, "defined at ...", and below pytest stacks are
    so deep that noting them takes a tenth of the time of tracing.
    """
    from tensorflow.python.framework import ops

    ops._create_c_op = functools.partial(
        ops._create_c_op, extract_traceback=False
    )


@functools.cache
def _leave_pipelines_as_they_are():
    """Has tf.data look for no better buffers and numbers of threads.

    The thread that looks wakes up after longer and longer times, up to a
    minute. An iterator is deleted only once it did, where the signal to end
    comes just as it falls asleep: about one of two hundred. Until then the
    whole process waits.
    """
    import tensorflow as tf
    from tensorflow.python.data.ops import dataset_ops

    def without(dataset):
        options = tf.data.Options()
        options.autotune.enabled = False
        return dataset.with_options(options)

    dataset_ops.DatasetV2._apply_debug_options = without


def pytest_pycollect_makemodule():
    # Before any test module, for TensorFlow starts with the first tensor of
    # one; and here, for pytest-xdist's own process collects nothing.
    _split_cpu()
    _note_no_stacks()
    _leave_pipelines_as_they_are()


@pytest.fixture
def seeded():
    """The same first weights every time."""
    import keras

    keras.utils.set_random_seed(0)


@pytest.fixture
def without_trial(monkeypatch):
    """Trains without the trial, which takes long; the trial itself."""
    from tf_dpfp.independence import gradients as trial_lib

    trial = trial_lib.check
    monkeypatch.setattr(trial_lib, "check", lambda *_: True)
    return trial


@pytest.fixture
def with_trial(without_trial, monkeypatch):
    """Trains with the trial, in a file whose other tests leave it out."""
    from tf_dpfp.independence import gradients as trial_lib

    monkeypatch.setattr(trial_lib, "check", without_trial)


@pytest.fixture(autouse=True)
def _forget_caching_device():
    """A body of `tf.map_fn` that raises leaves one behind, for all scopes."""
    yield
    if "tensorflow" not in sys.modules:
        return
    import tensorflow as tf

    if tf.compat.v1.get_variable_scope().caching_device is None:
        return

    @tf.function
    def forget():
        tf.compat.v1.get_variable_scope().set_caching_device(None)

    forget()


@pytest.fixture(autouse=True)
def _restore_global_settings():
    """No test hands its dtype policy or eager mode on to the next one."""
    before = _global_settings()
    yield
    if _global_settings() == before:
        return
    policy, image_data_format, eager = before or ("float32", None, False)
    import keras
    import tensorflow as tf

    keras.config.set_dtype_policy(policy)
    keras.config.set_image_data_format(image_data_format or "channels_last")
    tf.config.run_functions_eagerly(eager)


def _global_settings():
    # Of libraries that are there already: not every test needs them.
    if "keras" not in sys.modules or "tensorflow" not in sys.modules:
        return None
    import keras
    import tensorflow as tf

    return (
        keras.config.dtype_policy(),
        keras.config.image_data_format(),
        tf.config.functions_run_eagerly(),
    )
