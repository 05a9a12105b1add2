"""Differentially private training for Keras 3 on TensorFlow."""

import keras as _keras

if _keras.backend.backend() != "tensorflow":
    raise ImportError(
        "tf_dpfp trains Keras models on the TensorFlow backend; this process "
        f"runs Keras on '{_keras.backend.backend()}'. Set the environment "
        "variable KERAS_BACKEND=tensorflow before Keras is imported."
    )

from tf_dpfp import auditing
from tf_dpfp.accounting import calibrate
from tf_dpfp.accounting import claimed_epsilon
from tf_dpfp.clipping import Adaptive
from tf_dpfp.clipping import Automatic
from tf_dpfp.clipping import ByFunction
from tf_dpfp.clipping import Clipping
from tf_dpfp.clipping import Flat
from tf_dpfp.clipping import PerBlock
from tf_dpfp.clipping import PerDevice
from tf_dpfp.clipping import PerLayer
from tf_dpfp.layers import DebiasedCrossentropy
from tf_dpfp.layers import DPRepresentationClip
from tf_dpfp.low_rank import RGPDense
from tf_dpfp.low_rank import reparametrize
from tf_dpfp.low_rank import restore
from tf_dpfp.optimizers import DPSGD
from tf_dpfp.optimizers import ClippedGradients
from tf_dpfp.optimizers import DPAdagrad
from tf_dpfp.optimizers import DPAdam
from tf_dpfp.optimizers import DPAdamW
from tf_dpfp.optimizers import DPLion
from tf_dpfp.optimizers import DPRMSprop
from tf_dpfp.optimizers import NotPrivateError
from tf_dpfp.optimizers import private_optimizer_class
from tf_dpfp.per_example import GenericRule
from tf_dpfp.per_example import GradientRule
from tf_dpfp.per_example import Materialized
from tf_dpfp.per_example import OuterProduct
from tf_dpfp.per_example import RowGather
from tf_dpfp.per_example import register_gradient_rule
from tf_dpfp.sampling import RandomizedLabels
from tf_dpfp.sampling import calibrate_representation
from tf_dpfp.sampling import microbatch_sampler
from tf_dpfp.sampling import poisson_batches
from tf_dpfp.sampling import randomize_labels
from tf_dpfp.sampling import stratified_batches
from tf_dpfp.training import PrivacyBudget
from tf_dpfp.training import clipped_gradients
from tf_dpfp.training import dealt_step
from tf_dpfp.training import epsilon
from tf_dpfp.training import is_private
from tf_dpfp.training import ledger
from tf_dpfp.training import make_private
from tf_dpfp.training import privacy_statement
from tf_dpfp.training import sampled_steps
from tf_dpfp.training import thresholds
from tf_dpfp.validation import Problem
from tf_dpfp.validation import fix
from tf_dpfp.validation import validate
from tf_dpfp.version import __version__
