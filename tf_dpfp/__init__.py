"""Differentially private training for Keras 3 on TensorFlow.

The names of an ordinary private training are here. What is needed more rarely
is in submodules:

* `tf_dpfp.clipping`: groups of variables and their thresholds;
* `tf_dpfp.low_rank`: low-rank carriers (RGP);
* `tf_dpfp.representations`: noised representations (DP-FP);
* `tf_dpfp.gradient_rules`: per-example gradients of your own layers;
* `tf_dpfp.loops`: custom training loops;
* `tf_dpfp.distribute`: several devices and machines;
* `tf_dpfp.recipes`: layers and averages for accuracy;
* `tf_dpfp.tuning`: hyper-parameter search inside of the budget;
* `tf_dpfp.accounting`: epsilon without a model;
* `tf_dpfp.auditing`: attacks, and lower bounds on epsilon;
* `tf_dpfp.cards`: privacy cards, read from files;
* `tf_dpfp.errors`: what is raised and listed.
"""

import importlib as _importlib
import typing as _typing

import keras as _keras

if _keras.backend.backend() != "tensorflow":
    raise ImportError(
        "tf_dpfp trains Keras models on the TensorFlow backend; this process "
        f"runs Keras on '{_keras.backend.backend()}'. Set the environment "
        "variable KERAS_BACKEND=tensorflow before Keras is imported."
    )

from tf_dpfp import accounting
from tf_dpfp import cards
from tf_dpfp import clipping
from tf_dpfp import distribute
from tf_dpfp import errors
from tf_dpfp import gradient_rules
from tf_dpfp import loops
from tf_dpfp import low_rank
from tf_dpfp import recipes
from tf_dpfp import renamed as _renamed
from tf_dpfp import representations
from tf_dpfp import tuning
from tf_dpfp.accounting import calibrate_noise_multiplier
from tf_dpfp.cards import privacy_card
from tf_dpfp.clipping import Flat
from tf_dpfp.clipping import PerLayer
from tf_dpfp.evaluation import PrivateEvaluation
from tf_dpfp.evaluation import evaluate_privately
from tf_dpfp.layers import DPRepresentationClip
from tf_dpfp.layers import PerExample
from tf_dpfp.low_rank import RGPDense
from tf_dpfp.low_rank import reparametrize
from tf_dpfp.optimizers import DPSGD
from tf_dpfp.optimizers import Banded
from tf_dpfp.optimizers import DPAdagrad
from tf_dpfp.optimizers import DPAdam
from tf_dpfp.optimizers import DPAdamW
from tf_dpfp.optimizers import DPLazyAdam
from tf_dpfp.optimizers import DPLion
from tf_dpfp.optimizers import DPRMSprop
from tf_dpfp.optimizers import Sparse
from tf_dpfp.optimizers import private_optimizer_class
from tf_dpfp.sampling import cyclic_poisson_batches
from tf_dpfp.sampling import poisson_batches
from tf_dpfp.training import BackupAndRestore
from tf_dpfp.training import PrivacyBudget
from tf_dpfp.training import clip_norms
from tf_dpfp.training import compute_epsilon
from tf_dpfp.training import ledger
from tf_dpfp.training import make_private
from tf_dpfp.training import privacy_statement
from tf_dpfp.training import validate
from tf_dpfp.validation import fix
from tf_dpfp.version import __version__

if _typing.TYPE_CHECKING:
    from tf_dpfp import auditing

__all__ = [
    "BackupAndRestore",
    "Banded",
    "DPAdagrad",
    "DPAdam",
    "DPAdamW",
    "DPLazyAdam",
    "DPLion",
    "DPRMSprop",
    "DPRepresentationClip",
    "DPSGD",
    "Flat",
    "PerExample",
    "PerLayer",
    "PrivacyBudget",
    "PrivateEvaluation",
    "RGPDense",
    "Sparse",
    "calibrate_noise_multiplier",
    "clip_norms",
    "compute_epsilon",
    "cyclic_poisson_batches",
    "evaluate_privately",
    "fix",
    "ledger",
    "make_private",
    "poisson_batches",
    "privacy_card",
    "privacy_statement",
    "private_optimizer_class",
    "reparametrize",
    "validate",
]

_SUBMODULES = (
    "accounting",
    "auditing",
    "cards",
    "clipping",
    "distribute",
    "errors",
    "gradient_rules",
    "loops",
    "low_rank",
    "recipes",
    "representations",
    "tuning",
)


def __getattr__(name: str) -> _typing.Any:
    if name == "auditing":
        # Training needs none of it: not imported with the rest.
        return _importlib.import_module("tf_dpfp.auditing")
    return _renamed.find(name)


def __dir__() -> list[str]:
    return sorted([*__all__, *_SUBMODULES, "__version__"])
