"""Three ways to train privately, one of which a model is compiled for."""

from tf_dpfp.mechanisms.choose import choose
from tf_dpfp.mechanisms.choose import gradients_of
from tf_dpfp.mechanisms.choose import mechanism_of
from tf_dpfp.mechanisms.choose import not_private
from tf_dpfp.mechanisms.gradients import Gradients
from tf_dpfp.mechanisms.joint import Joint
from tf_dpfp.mechanisms.mechanism import Mechanism
from tf_dpfp.mechanisms.representations import Representations

__all__ = [
    "Gradients",
    "Joint",
    "Mechanism",
    "Representations",
    "choose",
    "gradients_of",
    "mechanism_of",
    "not_private",
]
