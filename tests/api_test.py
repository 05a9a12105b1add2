import inspect

import pytest

import tf_dpfp

NAMES = """
Adaptive Automatic ByFunction ClippedGradients Clipping DPAdagrad DPAdam
DPAdamW DPLion DPRMSprop DPRepresentationClip DPSGD
DebiasedCrossentropy Flat GenericRule GradientRule Materialized NotPrivateError
OuterProduct PerBlock PerDevice PerLayer PrivacyBudget Problem
RGPDense RandomizedLabels RowGather calibrate
calibrate_representation claimed_epsilon clipped_gradients dealt_step epsilon
fix is_private ledger make_private microbatch_sampler poisson_batches
privacy_statement private_optimizer_class randomize_labels
register_gradient_rule reparametrize restore sampled_steps stratified_batches
thresholds validate
""".split()


@pytest.mark.parametrize("name", NAMES)
def test_public_names_are_there_and_documented(name):
    thing = getattr(tf_dpfp, name)
    assert inspect.getdoc(thing), name
    assert thing.__doc__, f"{name} inherits its docstring"


def test_nothing_else_is_public():
    public = {
        name
        for name, thing in vars(tf_dpfp).items()
        if not name.startswith("_") and not inspect.ismodule(thing)
    }
    assert public == set(NAMES)


@pytest.mark.parametrize("name", tf_dpfp.auditing.__all__)
def test_names_of_auditing_are_documented(name):
    assert getattr(tf_dpfp.auditing, name).__doc__, name


def test_version():
    assert tf_dpfp.__version__.count(".") == 2
