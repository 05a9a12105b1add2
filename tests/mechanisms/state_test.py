"""State of a private model: which steps are of a batch that was dealt."""

import threading

import keras
import pytest
import tensorflow as tf

import tf_dpfp
from tf_dpfp.mechanisms import state as state_lib


def test_a_batch_is_dealt_to_steps_of_the_loop_of_fit_alone():
    state = state_lib.State()
    # No loop deals.
    with state.dealing():
        assert state.dealt_to == 1
    state.fit_deals_to = 4
    state.fit_deals_in = threading.get_ident(), 1
    for loops, dealt_to in ((1, 4), (0, 1), (2, 1)):
        with pytest.raises(KeyError):
            with state.dealing(loops):
                assert state.dealt_to == dealt_to
                raise KeyError
        assert state.dealt_to == 1
    seen = []

    def step():
        with state.dealing(1):
            seen.append(state.dealt_to)

    thread = threading.Thread(target=step)
    thread.start()
    thread.join()
    assert seen == [1]
    # A step in a callback of the loop is none of the loop's.
    with state.dealing(1):
        with state.dealing(2):
            assert state.dealt_to == 1
        assert state.dealt_to == 4


def test_weights_are_averaged_inside_alone_and_only_if_asked():
    class Averaging:
        entered = []

        def averaged(self):
            self.entered.append("averaged")
            return state_lib.contextlib.nullcontext()

        def live(self):
            self.entered.append("live")
            return state_lib.contextlib.nullcontext()

    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    with pytest.raises(tf_dpfp.errors.NotPrivateError):
        state_lib.state_of(model)
    state = state_lib.make_state(model)
    for context in (state_lib.averaged, state_lib.live):
        with context(model):
            assert not Averaging.entered
    state.averaging = Averaging()
    with state_lib.averaged(model), state_lib.live(model):
        assert Averaging.entered == ["averaged", "live"]


def test_arguments_that_are_handed_on_are_those_of_keras():
    class Task(keras.Model):
        def fit(self, x, **kwargs):
            return super().fit(x, **kwargs)

    found = state_lib.bound(Task().fit, (1,), {"epochs": 7})
    assert (found["x"], found["epochs"], found["class_weight"]) == (1, 7, None)
    args, kwargs = state_lib.replaced(
        Task().fit, (1,), {"epochs": 7}, x=2, batch_size=3
    )
    assert (args, kwargs) == ((2,), {"epochs": 7, "batch_size": 3})


def test_arguments_in_another_order_are_told():
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    with pytest.raises(TypeError, match="first argument.*model=1e-05"):
        tf_dpfp.compute_epsilon(1e-5, model)


def test_a_model_that_is_not_compiled_is_told_so():
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    tf_dpfp.make_private(model)
    with pytest.raises(tf_dpfp.errors.NotPrivateError, match="not compiled"):
        tf_dpfp.loops.clipped_gradients(model, tf.ones((1, 2)), tf.ones((1, 1)))
