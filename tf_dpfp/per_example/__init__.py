"""Recording layer calls and turning them into per-example gradients.

This package knows layers and nothing of privacy: no norms are compared with a
threshold here, no noise is drawn.
"""

# Importing a module of rules registers them.
from tf_dpfp.per_example import convolution as _convolution
from tf_dpfp.per_example import convolutional_lstm as _convolutional_lstm
from tf_dpfp.per_example import dense as _dense
from tf_dpfp.per_example import depthwise_convolution as _depthwise_convolution
from tf_dpfp.per_example import einsum_dense as _einsum_dense
from tf_dpfp.per_example import embedding as _embedding
from tf_dpfp.per_example import keras_hub_layers as _keras_hub_layers
from tf_dpfp.per_example import normalization as _normalization
from tf_dpfp.per_example import recurrent as _recurrent
from tf_dpfp.per_example import scale as _scale
from tf_dpfp.per_example import time_distributed as _time_distributed
from tf_dpfp.per_example.batched import IsBatched
from tf_dpfp.per_example.consecutive import add_consecutive
from tf_dpfp.per_example.generic import GenericRule
from tf_dpfp.per_example.generic import added_losses
from tf_dpfp.per_example.generic import example_seeds
from tf_dpfp.per_example.gradients import EmbeddingRows
from tf_dpfp.per_example.gradients import OuterProduct
from tf_dpfp.per_example.gradients import PerExampleGradient
from tf_dpfp.per_example.gradients import PerExampleTensor
from tf_dpfp.per_example.own_weights import OwnWeightsRule
from tf_dpfp.per_example.recording import NotRecordedError
from tf_dpfp.per_example.recording import Played
from tf_dpfp.per_example.recording import Unit
from tf_dpfp.per_example.recording import explaining
from tf_dpfp.per_example.recording import find_units
from tf_dpfp.per_example.recording import is_folded
from tf_dpfp.per_example.recording import played_back
from tf_dpfp.per_example.recording import record_calls
from tf_dpfp.per_example.rules import GradientRule
from tf_dpfp.per_example.rules import LayerCall
from tf_dpfp.per_example.rules import register_gradient_rule
from tf_dpfp.per_example.rules import rule_for
from tf_dpfp.per_example.sums import add

del _convolution, _convolutional_lstm, _dense, _depthwise_convolution
del _einsum_dense, _embedding, _keras_hub_layers, _normalization, _recurrent
del _scale, _time_distributed

__all__ = [
    "GenericRule",
    "GradientRule",
    "IsBatched",
    "LayerCall",
    "NotRecordedError",
    "Played",
    "PerExampleTensor",
    "OuterProduct",
    "OwnWeightsRule",
    "PerExampleGradient",
    "EmbeddingRows",
    "Unit",
    "add",
    "add_consecutive",
    "added_losses",
    "example_seeds",
    "explaining",
    "find_units",
    "is_folded",
    "played_back",
    "record_calls",
    "register_gradient_rule",
    "rule_for",
]
