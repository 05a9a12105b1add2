"""The public surface: which names there are, and which there were."""

import importlib
import inspect
import warnings

import numpy as np
import pytest

import tf_dpfp
from tf_dpfp import renamed
from tf_dpfp import sampling

FIRST_ROW = """
BackupAndRestore Banded DPAdagrad DPAdam DPAdamW DPLazyAdam DPLion DPRMSprop
DPRepresentationClip DPSGD Flat PerExample PerLayer PrivacyBudget
PrivateEvaluation RGPDense Sparse calibrate_noise_multiplier clip_norms
compute_epsilon cyclic_poisson_batches evaluate_privately fix ledger
make_private poisson_batches privacy_card privacy_statement
private_optimizer_class reparametrize validate
""".split()

SUBMODULES = {
    "accounting": """
        BandedPersonSums BandedSums CyclicPoissonSampling EndToEnd Evaluation
        EveryExample EveryLabel Joint Labels LedgerEntry MembershipAttacks
        PersonEvaluation PersonRepresentations PersonSums PoissonSampling
        Representations Search Sums UnknownSampling
        ViewSums WithoutReplacement calibrate_noise_multiplier claimed_epsilon
        compare_bands compute_epsilon max_steps
        membership_attacks
    """,
    "auditing": """
        AuditPoint AuditReport ReleaseRecorder RocCurve audit audit_scores
        dirac_audit epsilon_of_counts epsilon_of_guesses example_losses
        insert_canaries likelihood_scores many_runs_epsilon
        membership_inference one_run_epsilon one_run_p_value plot_audit
        plot_roc roc_curve spread_scores unused_features
    """,
    "cards": "PrivacyCard privacy_card read_card",
    "clipping": """
        Adaptive Automatic ByFunction Clipping Flat PerBlock PerDevice PerLayer
    """,
    "distribute": "ReplicasDifferError make_strategy on_devices",
    "errors": "NotPrivateError Problem ReplicasDifferError",
    "gradient_rules": """
        EmbeddingRows GenericRule GradientRule LayerCall OuterProduct
        PerExampleGradient PerExampleTensor register_gradient_rule
    """,
    "loops": """
        ClippedGradients clipped_gradients distributed_step is_private
        sampled_steps
    """,
    "low_rank": "RGPDense remove_carriers reparametrize",
    "recipes": "Scattering2D WSConv2D WeightAveraging",
    "representations": """
        DebiasedCrossentropy RandomizedLabels calibrate_representation
        randomize_labels stratified_batches
    """,
    "tuning": "Candidate Found Suggestion search suggest",
}

QUALIFIED = [
    *FIRST_ROW,
    *(
        f"{m}.{name}"
        for m, names in SUBMODULES.items()
        for name in names.split()
    ),
]

# Every name of version 0.1 before it was sorted into submodules.
OLD = """
Adaptive Automatic ByFunction ClippedGradients Clipping DPAdagrad DPAdam
DPAdamW DPLion DPRMSprop DPRepresentationClip DPSGD
DebiasedCrossentropy Flat GenericRule GradientRule Materialized NotPrivateError
OuterProduct PerBlock PerDevice PerLayer PrivacyBudget Problem
RGPDense RandomizedLabels RowGather calibrate
calibrate_representation claimed_epsilon clipped_gradients dealt_step epsilon
fix is_private ledger make_private microbatch_sampler poisson_batches
privacy_card privacy_statement private_optimizer_class randomize_labels
register_gradient_rule reparametrize restore sampled_steps
thresholds validate
""".split()
REMOVED = "DPModel DPSequential RGPConv1D RGPConv2D RGPEinsumDense".split()
MOVED = sorted(set(OLD) - set(FIRST_ROW) - set(REMOVED))


def _find(qualified):
    module, _, name = f"tf_dpfp.{qualified}".rpartition(".")
    return getattr(importlib.import_module(module), name)


def test_the_first_row_is_as_agreed():
    assert sorted(tf_dpfp.__all__) == sorted(FIRST_ROW)


@pytest.mark.parametrize("module", SUBMODULES)
def test_a_submodule_has_its_public_names_and_no_other(module):
    public = importlib.import_module(f"tf_dpfp.{module}").__all__
    assert sorted(public) == sorted(SUBMODULES[module].split())


@pytest.mark.parametrize("name", QUALIFIED)
def test_public_names_are_documented(name):
    thing = _find(name)
    assert inspect.getdoc(thing), name
    assert thing.__doc__, f"{name} inherits its docstring"


@pytest.mark.parametrize("name", QUALIFIED)
def test_public_names_are_those_of_the_source(name):
    """No alias: what `help` and a traceback show is what is typed."""
    assert _find(name).__qualname__ == name.rpartition(".")[2]


@pytest.mark.parametrize("module", SUBMODULES)
def test_submodules_are_attributes_that_say_what_they_are_for(module):
    assert getattr(tf_dpfp, module).__doc__
    assert f"`tf_dpfp.{module}`" in tf_dpfp.__doc__


def test_dir_shows_what_is_public_and_nothing_else():
    assert dir(tf_dpfp) == sorted([*FIRST_ROW, *SUBMODULES, "__version__"])


def test_what_is_defined_beside_the_public_names_is_a_module_or_private():
    stray = {
        name
        for name, thing in vars(tf_dpfp).items()
        if not name.startswith("_") and not inspect.ismodule(thing)
    }
    assert stray == set(FIRST_ROW)


@pytest.mark.parametrize("name", MOVED)
def test_old_names_work_and_name_the_new_one(name):
    with pytest.warns(DeprecationWarning, match=f"^tf_dpfp.{name} is") as seen:
        found = getattr(tf_dpfp, name)
    (warning,) = seen
    # Shown for the line that used the name.
    assert warning.filename == __file__
    words = str(warning.message).rpartition("use tf_dpfp.")[2]
    new = words.partition("(")[0].rstrip(".")
    assert new in QUALIFIED
    if name != "microbatch_sampler":
        assert found is _find(new)


@pytest.mark.parametrize("name", [*FIRST_ROW, *SUBMODULES])
def test_new_names_warn_of_nothing(name):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        getattr(tf_dpfp, name)


X = np.arange(48.0, dtype="float32")[:, None]
Y = np.arange(48) % 2


def test_the_old_sampler_takes_its_old_arguments_and_draws_the_same():
    new = tf_dpfp.representations.stratified_batches(
        X, Y, draw_size=12, draws=3, labels="public", seed=5
    )
    with pytest.warns(DeprecationWarning, match=r"\(draw_size=, draws=\)"):
        old = tf_dpfp.microbatch_sampler(
            X, Y, microbatch_size=12, microbatches=3, labels="public", seed=5
        )
    assert sampling.sampling_of(old) == sampling.sampling_of(new)
    for (a, _), (b, _) in zip(
        old.as_numpy_iterator(), new.as_numpy_iterator(), strict=True
    ):
        np.testing.assert_array_equal(a, b)


def test_the_old_sampler_takes_one_draw_by_default_and_refuses_alike():
    with pytest.warns(DeprecationWarning):
        sampler = tf_dpfp.microbatch_sampler
    one = sampler(X, Y, microbatch_size=12, labels="public")
    assert sampling.sampling_of(one).draws == 1
    with pytest.raises(ValueError, match="`draw_size` must be an integer"):
        sampler(X, Y, microbatch_size=0, labels="public")


def test_an_old_name_can_be_imported():
    with pytest.warns(DeprecationWarning, match="use tf_dpfp.compute_epsilon."):
        from tf_dpfp import epsilon
    assert epsilon is tf_dpfp.compute_epsilon


@pytest.mark.parametrize("name", REMOVED)
def test_removed_names_say_what_to_use(name):
    way_out = "make_private" if name.startswith("DP") else "reparametrize"
    with pytest.raises(AttributeError, match=f"{name} was removed.*{way_out}"):
        getattr(tf_dpfp, name)


def test_no_name_is_both_old_and_new():
    assert not set(renamed._RENAMED) & {*FIRST_ROW, *SUBMODULES}
    assert sorted(renamed._RENAMED) == MOVED


def test_other_names_are_not_there():
    with pytest.raises(AttributeError, match="no attribute 'dp_sgd'"):
        tf_dpfp.dp_sgd  # noqa: B018


def test_version():
    assert tf_dpfp.__version__.count(".") == 2
