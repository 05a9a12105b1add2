"""The table of all rules, from every module that registers some."""

from tf_dpfp.independence import channel_rules
from tf_dpfp.independence import contraction_rules
from tf_dpfp.independence import control_flow_rules
from tf_dpfp.independence import crop_rules
from tf_dpfp.independence import diagonal_rules
from tf_dpfp.independence import elementwise_rules
from tf_dpfp.independence import image_rules
from tf_dpfp.independence import list_rules
from tf_dpfp.independence import lookup_rules
from tf_dpfp.independence import loop_rules
from tf_dpfp.independence import movement_rules
from tf_dpfp.independence import number_rules
from tf_dpfp.independence import random_rules
from tf_dpfp.independence import reduction_rules
from tf_dpfp.independence import registry
from tf_dpfp.independence import scatter_rules
from tf_dpfp.independence import search_rules
from tf_dpfp.independence import shape_rules
from tf_dpfp.independence import slice_rules
from tf_dpfp.independence import state_rules
from tf_dpfp.independence import text_rules

# Importing them registers their rules.
MODULES = (
    channel_rules,
    contraction_rules,
    control_flow_rules,
    crop_rules,
    diagonal_rules,
    elementwise_rules,
    image_rules,
    list_rules,
    lookup_rules,
    loop_rules,
    movement_rules,
    number_rules,
    random_rules,
    reduction_rules,
    scatter_rules,
    search_rules,
    shape_rules,
    slice_rules,
    state_rules,
    text_rules,
)


def find(operation: str) -> registry.Rule | None:
    """Returns the rule for a type of operation; `None` if there is none."""
    return registry.RULES.get(operation)


def operations() -> list[str]:
    """Lists the types of operations that have a rule."""
    return sorted(registry.RULES)
