"""Trials for what trains the same model again and again."""

from collections.abc import Callable


def once(trial: Callable[..., None]) -> Callable[..., None]:
    """Returns a trial that leaves out models like one that it has tried.

    Documents and tutorials make the same model for each of their settings. A
    trial of it takes as long as all else that such a training does.

    Args:
        trial: `tf_dpfp.independence.gradients.check`.

    Returns:
        The same for the first model of its layers, weights, rules and loss.
    """
    tried = set()

    def check(model, plan, data):
        key = (
            *(
                (type(each), str(each.dtype))
                for each in model._flatten_layers()
            ),
            *((tuple(v.shape), v.trainable) for v in model.variables),
            *((type(each.layer), type(each.rule)) for each in plan.units),
            *(each is None for each in plan.carriers),
            *(type(model.loss), plan.kind, plan.representations is None),
            type(model.distribute_strategy),
        )
        if key in tried:
            return
        trial(model, plan, data)
        tried.add(key)

    return check
