import pytest
import tensorflow as tf

from tf_dpfp import distribute
from tf_dpfp.distribute import copies


def _variable():
    return tf.Variable([1.0, 2.0])


def test_without_a_strategy_it_is_tf_device():
    with distribute.on_devices(["CPU:0", "no such device"]):
        variable = _variable()
        assert (variable + 1.0).device.endswith("CPU:0")
    assert copies.devices_of(variable) == (variable.device,)


def test_under_a_strategy_weights_are_copied_to_the_devices():
    strategy = tf.distribute.MirroredStrategy(["CPU:0"])
    with strategy.scope(), distribute.on_devices(["/CPU:0"]):
        variable = _variable()
    assert variable.distribute_strategy is strategy
    (device,) = copies.devices_of(variable)
    assert device == strategy.extended.worker_devices[0]
    seen = []

    def run():
        with distribute.on_devices(["CPU:0"]):
            seen.append((variable + 1.0).device)

    tf.function(lambda: strategy.run(run), autograph=False)()
    assert seen == [device]


@pytest.mark.parametrize(
    "strategy, devices, message",
    [
        (tf.distribute.MirroredStrategy, ["CPU:0"] * 2, "each of the 1 rep"),
        (tf.distribute.OneDeviceStrategy, ["CPU:0"], "OneDeviceStrategy keeps"),
    ],
)
def test_what_can_not_be_placed_is_refused(strategy, devices, message):
    arguments = ["CPU:0"] if "One" in strategy.__name__ else [["CPU:0"]]
    with strategy(*arguments).scope():
        with pytest.raises(ValueError, match=message):
            with distribute.on_devices(devices):
                pass
