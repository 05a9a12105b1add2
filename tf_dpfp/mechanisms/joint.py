"""Joint: noised representations, and noised gradients of what is below them.

**Mechanism.** Each step releases noised representations and the noised sums of
clipped gradients of the layers below, of the same examples: two Gaussian
mechanisms in one release, of noise multiplier
`accounting.joint_noise_multiplier`. Adjacency: one example replaced.
Sensitivity: twice the clip norm of each part.
"""

import dataclasses
from typing import Any

import tensorflow as tf

from tf_dpfp import accounting
from tf_dpfp import counting
from tf_dpfp import replicas
from tf_dpfp import step as step_lib
from tf_dpfp.independence.representations import Findings
from tf_dpfp.mechanisms import building
from tf_dpfp.mechanisms import clip_layers
from tf_dpfp.mechanisms.gradients import Gradients
from tf_dpfp.sampling import pipelines


@dataclasses.dataclass(frozen=True)
class Joint(Gradients):
    """Noises representations, and the gradients of the layers below them.

    The model has exactly one `DPRepresentationClip`.
    """

    sampler = "representations.stratified_batches"

    def entries(self) -> list[accounting.LedgerEntry]:
        """Lists what layers and optimizer have released so far."""
        by_layers = [e for layer in self.layers for e in layer.ledger_entries]
        return [*by_layers, *self.optimizer.ledger_entries]

    def next_entries(self) -> list[accounting.LedgerEntry]:
        """Lists what the next step releases, representations included."""
        self.release()
        return super().next_entries()

    def objections(self) -> list[str]:
        """Tells if the optimizer took steps without the layer's noise."""
        return clip_layers.uncounted_steps(self.model, self._counted())

    def keep_uncounted(self) -> None:
        """Keeps in mind steps that no layer counted, before `compile`."""
        clip_layers.keep_uncounted(self.model, self._counted())

    def _counted(self) -> int:
        return sum(
            e.steps for e in self.entries() if e.release.has_representations
        )

    def check_compiled(self) -> None:
        """Checks the layer, and tries a functional model at once."""
        super().check_compiled()
        self.release()
        inputs = clip_layers.inputs_of(self.model)
        if self.model.built and inputs is not None:
            self.try_on(inputs)

    def check_ready(self) -> None:
        """Checks the layer as well."""
        super().check_ready()
        self.release()

    def release(self) -> counting.GaussianRelease:
        """Tells the optimizer what is released beside its sums.

        Returns:
            The release of the representations.

        Raises:
            ValueError: If representations can't be counted with sums.
        """
        if len(self.layers) != 1:
            raise ValueError(
                f"Model '{self.model.name}' has {len(self.layers)} "
                "DPRepresentationClip layers and a private optimizer, which "
                "counts the representations of one. Keep one of them."
            )
        (layer,) = self.layers
        if layer.end_to_end:
            raise ValueError(
                f"Layer '{layer.name}' has end_to_end=True, with which nothing "
                "is proved, and a private optimizer noises the gradient of "
                "what is below it. Leave `end_to_end` out."
            )
        if layer.seed is not None:
            raise ValueError(
                f"Layer '{layer.name}' has seed={layer.seed}, and with a "
                "private optimizer its noise can't be repeated. Leave `seed` "
                "out."
            )
        self.optimizer.release_jointly(layer.release)
        return layer.release

    def try_on(self, x: Any) -> Findings:
        """Tries the model on made-up inputs.

        Args:
            x: Inputs of a batch, or their specifications.

        Returns:
            The findings.

        Raises:
            ValueError: If the noise does not protect the examples, nothing
                below it is to be trained, or a step releases twice.
        """
        found = clip_layers.findings(self.model, x, self.layer_checks)
        if not found.trainable_below:
            raise ValueError(
                f"Model '{self.model.name}' has a DPRepresentationClip and "
                "nothing to train below it, and "
                f"{type(self.optimizer).__name__} would add noise to what is "
                "noise already. Compile it with an ordinary optimizer, such "
                "as 'adam', or take the layer out."
            )
        if found.calls != 1:
            raise ValueError(
                f"The DPRepresentationClip is called {found.calls} times in a "
                "forward pass, and a private optimizer counts one release of "
                "representations with each sum. Call it once."
            )
        return found

    def describe(
        self, arguments: dict[str, Any], need_batch_size: bool
    ) -> pipelines.Pipeline:
        """Describes the data: draws without replacement amplify."""
        return pipelines.describe_joint(arguments, need_batch_size)

    # Rows of padding would be released, too.
    pads = False

    def strategy(self) -> tf.distribute.Strategy | None:
        """Returns the strategy, if rows are released under it."""
        strategy = super().strategy()
        if replicas.deals(strategy):
            replicas.check_rows(strategy)
        return strategy

    def below(self, x: Any) -> step_lib.Below:
        """Returns what is trained below the representations."""
        released = self.release()
        found = self.try_on(x)
        building.build_optimizer(self.model, self.optimizer, was_called=True)
        return step_lib.Below(released, found.positions)

    def check_draws(self, batches: Any, pipeline: pipelines.Pipeline) -> None:
        """Tries the model first: labels that are declared get a ledger row."""
        if pipeline.drawn is not None:
            self.release()
            self.try_on(batches.element_spec[0])

    def check_joined(self, kind: accounting.Release) -> None:
        """Refuses batches of persons and of views."""
        raise ValueError(
            pipelines.NOT_OF_JOINT_STEPS
            if kind.unit == "person"
            else pipelines.NOT_OF_VIEWS
        )

    def kind(self, pipeline: pipelines.Pipeline) -> Any:
        """Returns the kind of release, by what the draws say of labels."""
        if pipeline.drawn is None:
            return None
        (layer,) = self.layers
        layer.count_labels(pipeline.drawn)
        return layer.kind_of(pipeline.drawn)
