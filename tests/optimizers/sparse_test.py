"""Settings of sparse tables, and the optimizers that they are for."""

import keras
import pytest

import tf_dpfp

ALL = tf_dpfp.Sparse("items", threshold=-40.0)

OPTIMIZERS = {
    "DPAdam": lambda s: tf_dpfp.DPAdam(
        0.1, noise_multiplier=1, sparse_tables=s
    ),
    "DPRMSprop": lambda s: tf_dpfp.DPRMSprop(
        0.1, noise_multiplier=1, sparse_tables=s
    ),
    "momentum=0.9": lambda s: tf_dpfp.DPSGD(
        0.1, momentum=0.9, noise_multiplier=1, sparse_tables=s
    ),
    "weight_decay": lambda s: tf_dpfp.DPSGD(
        0.1, weight_decay=0.1, noise_multiplier=1, sparse_tables=s
    ),
    "global_clipnorm": lambda s: tf_dpfp.DPLazyAdam(
        0.1, global_clipnorm=1.0, noise_multiplier=1, sparse_tables=s
    ),
    "use_ema": lambda s: tf_dpfp.DPSGD(
        0.1, use_ema=True, noise_multiplier=1, sparse_tables=s
    ),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizers_that_move_other_rows_are_refused(name):
    OPTIMIZERS[name](None)
    with pytest.raises(ValueError, match=name):
        OPTIMIZERS[name](ALL)


def test_an_update_of_ones_own_is_refused():
    class Own(keras.optimizers.SGD):
        def update_step(self, gradient, variable, learning_rate):
            super().update_step(gradient, variable, learning_rate)

    private = tf_dpfp.private_optimizer_class(Own)
    with pytest.raises(ValueError, match="DPOwn"):
        private(0.1, noise_multiplier=1.0, sparse_tables=ALL)


@pytest.mark.parametrize(
    ("kwargs", "match"),
    [
        ({"sparse_tables": "items"}, "must be a tf_dpfp.Sparse"),
        ({"correlated_noise": tf_dpfp.Banded(2)}, "Correlated noise"),
        (
            {"clipping": tf_dpfp.clipping.PerDevice()},
            "one device",
        ),
    ],
)
def test_settings_that_do_not_go_together_are_refused(kwargs, match):
    kwargs = {"sparse_tables": ALL, **kwargs}
    with pytest.raises(ValueError, match=match):
        tf_dpfp.DPSGD(0.1, noise_multiplier=1.0, **kwargs)


@pytest.mark.parametrize(
    "kwargs",
    [
        {"tables": []},
        {"tables": [1]},
        {"tables": ["a", "a"]},
        {"threshold": float("nan")},
        {"contribution_share": 0.0},
        {"contribution_share": 1.0},
        {"contribution_clip": 0.0},
        {"contribution_clip": 1e-7},
        {"contribution_clip": 1e7},
    ],
)
def test_arguments_out_of_range_are_refused(kwargs):
    with pytest.raises(ValueError, match=next(iter(kwargs))):
        tf_dpfp.Sparse(**{"tables": "items", **kwargs})
