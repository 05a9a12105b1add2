"""Steps without noise against TF-Privacy, on Keras 2, in its own process."""

import pytest

import tf_dpfp
from tests.oracles import comparison
from tests.oracles import problems

pytestmark = pytest.mark.usefixtures("without_trial")


@pytest.fixture(scope="module")
def tf_privacy(tmp_path_factory):
    return comparison.run_worker(
        "tests.oracles.tf_privacy_worker",
        tmp_path_factory.mktemp("tf_privacy"),
        TF_USE_LEGACY_KERAS="1",
    )


# TF-Privacy writes every example's gradient out (`by optimizer`), or has
# norms by the layer's formula (`by model`; not of convolutions).
@pytest.mark.parametrize(
    ("run", "optimizer", "arguments"),
    [
        ("cnn by optimizer", tf_dpfp.DPSGD, {"momentum": 0.9}),
        ("mlp by optimizer", tf_dpfp.DPAdagrad, {}),
        ("mlp by model", tf_dpfp.DPSGD, {}),
        ("text by model", tf_dpfp.DPSGD, {}),
        ("cnn by model", tf_dpfp.DPSGD, {"microbatch_size": 5}),
    ],
)
def test_flat_clipping_equals_tf_privacy(tf_privacy, run, optimizer, arguments):
    name = run.split()[0]
    model = comparison.train(name, optimizer=optimizer, **arguments)
    comparison.assert_same(model, tf_privacy[run])


@pytest.mark.parametrize("name", problems.MODELS)
def test_the_comparison_sees_the_clip(tf_privacy, name):
    model = comparison.train(name, l2_norm_clip=problems.CLIP * 1.5)
    comparison.assert_differs(model, tf_privacy[f"{name} by model"])
