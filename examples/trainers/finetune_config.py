"""What to fine-tune of a text encoder, and how."""

from __future__ import annotations

import dataclasses
import math

from examples.trainers import clippings
from examples.trainers import commands
from examples.trainers import text_datasets
from tf_dpfp import accounting

METHODS = ("head", "lora", "ffa_lora", "full", "rgp", "bias", "prefix", "dpfp")
# On vectors that the frozen encoder makes once.
ON_VECTORS = ("head", "dpfp")
MINILM = "minilm"
PROMPTS = "prompts"


@dataclasses.dataclass(frozen=True)
class Config:
    """What to fine-tune, and how; a flag for each field.

    Attributes:
        preset: `minilm`, or a preset of a BERT-type backbone of KerasHub: a
            folder or a name.
        dataset: What `examples.trainers.text_datasets.load` takes.
        start: Folder that an earlier training wrote (`output_dir`), with whose
            encoder and head this one starts; several, with commas between,
            for the means of their weights; `prompts` for the preset's
            encoder, and a head that tells made-up sentences of praise from
            those of blame; `None` for a new head.
        method: `head` (a linear classifier on the frozen encoder), `lora`,
            `ffa_lora` (of LoRA's two thin matrices the second alone; Sun et
            al., 2024, arXiv 2403.12313), `full` (everything), `rgp`
            (everything, through low-rank carriers), `bias` (biases, and the
            scales of norms), `prefix` (vectors in front of the tokens) or
            `dpfp` (a linear classifier on noised vectors of the frozen
            encoder; epsilon is then for replacing an example).
        blocks: How many of the top blocks are trained. What is below is
            frozen and computed once. `None`: all, and the embeddings. A
            `prefix` stands below them, above the embeddings with `None`.
        levels: Of how many blocks, from the top, the token means are laid side
            by side for the classifier; of trained blocks and of frozen ones.
        rank: Of LoRA, or of the carriers.
        prefix_length: Number of vectors of a `prefix`.
        freeze_embeddings: Whether the tables stay as they are; for `full` and
            `rgp`.
        clipping: One of `examples.trainers.clippings.CLIPPINGS`.
        epsilon: The budget, from which the noise follows. Infinity trains
            without privacy: ordinary Adam on shuffled batches.
        delta: Probability with which the guarantee may fail.
        l2_norm_clip: Clip norm of one example's gradient.
        batch_size: Expected number of examples of a Poisson batch.
        microbatch_size: Physical batch, to bound memory; it changes no result.
        microbatches: Draws that a batch is made of; for `dpfp`.
        public_labels: Declares that the labels may be known to anyone; `dpfp`
            does not protect them.
        epochs: Passes over the data, as expected.
        steps: Stops earlier; the noise is then that of so many steps.
        learning_rate: Of Adam; `None` for the method's default.
        decay: Whether the learning rate falls to 0, along a cosine.
        head_epsilon: A part of the budget, for training the head alone before
            the rest joins in; 0 for none. Such steps are cheap.
        head_epochs: Passes over the data of this training.
        head_learning_rate: Its learning rate.
        ema: Momentum of an average of the weights over the steps, which is
            what is tested and kept; 0 for the last weights.
        sequence_length: Tokens of an example; longer ones are cut.
        seed: Makes a run repeatable, and its noise known to whoever knows the
            seed. `None` for a release.
        held_out: Number of training examples to test on, in place of the test
            set, and not to train with; for choosing settings.
        output_dir: Where the fine-tuned model and the privacy statement go.
    """

    preset: str = MINILM
    start: str | None = None
    dataset: str = "movie_reviews"
    method: str = "lora"
    blocks: int | None = None
    levels: int = 1
    rank: int = 8
    prefix_length: int = 8
    freeze_embeddings: bool = False
    clipping: str = "flat"
    epsilon: float = 3.0
    delta: float = 1e-5
    l2_norm_clip: float = 0.1
    batch_size: int = 1000
    microbatch_size: int | None = 64
    microbatches: int = 64
    public_labels: bool = False
    epochs: int = 5
    steps: int | None = None
    learning_rate: float | None = None
    decay: bool = False
    head_epsilon: float = 0.0
    head_epochs: int = 30
    head_learning_rate: float = 0.03
    ema: float = 0.0
    sequence_length: int = 48
    seed: int | None = None
    held_out: int = 0
    output_dir: str | None = None

    def __post_init__(self):
        if self.private:
            accounting.check_epsilon(self.epsilon)
        accounting.check_delta(self.delta, "rdp")
        choices = {
            "method": METHODS,
            "clipping": clippings.CLIPPINGS,
        }
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise ValueError(
                    f"--{name} is one of {', '.join(allowed)}. Received: "
                    f"{getattr(self, name)!r}."
                )
        text_datasets.check_name(self.dataset)
        commands.check_at_least_one(
            self,
            (
                "rank",
                "prefix_length",
                "levels",
                "batch_size",
                "microbatches",
                "epochs",
                "head_epochs",
                "sequence_length",
            ),
        )
        if self.blocks is not None:
            commands.check_at_least_one(self, ("blocks",))
        if not 0.0 <= self.head_epsilon < self.epsilon:
            raise ValueError(
                "--head_epsilon is a part of --epsilon. Received: "
                f"{self.head_epsilon} of {self.epsilon}."
            )
        if not 0.0 <= self.ema < 1.0:
            raise ValueError(f"--ema is in [0, 1). Received: {self.ema}.")
        commands.check_clip_norm(self)
        if self.method == "dpfp":
            self._check_dpfp()

    def _check_dpfp(self) -> None:
        if not self.public_labels:
            raise ValueError(
                "--method=dpfp protects the texts and not their labels. "
                "Declare the labels public with --public_labels, or choose "
                "another method."
            )
        if not self.private or self.head_epsilon or self.start == PROMPTS:
            raise ValueError(
                "--method=dpfp trains a new head at a finite --epsilon: leave "
                "out --epsilon=inf, --head_epsilon and --start=prompts, or "
                "choose another method."
            )

    @property
    def private(self) -> bool:
        """Whether there is a budget to keep to."""
        return self.epsilon != math.inf
