"""Fine-tunes a pretrained text encoder with differential privacy.

    python -m examples.trainers.finetune_text --method=lora --epsilon=3
    python -m examples.trainers.finetune_text --method=full --clipping=adaptive
    python -m examples.trainers.finetune_text --method=lora --blocks=2
    python -m examples.trainers.finetune_text --method=dpfp --public_labels
    python -m examples.trainers.finetune_text --preset=bert_tiny_en_uncased

By default the encoder is MiniLM and the data are sentences of movie reviews.
The guarantee covers these sentences, and nothing that the encoder saw before.
"""

import os
import sys
from collections.abc import Sequence

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

from absl import app
from absl import flags

from examples.trainers import commands
from examples.trainers import datasets
from examples.trainers import finetune_config
from examples.trainers import finetuning
from examples.trainers import text_datasets


def _define_flags() -> None:
    default = finetune_config.Config()
    commands.define_shared_flags(default)
    commands.define_run_flags(default)
    flags.DEFINE_string(
        "preset", default.preset, "minilm, or a preset's folder or name."
    )
    flags.DEFINE_string(
        "start",
        None,
        "The output_dir of an earlier training to go on from, or prompts.",
    )
    flags.DEFINE_string(
        "dataset",
        default.dataset,
        f"One of {', '.join(text_datasets.LOADERS)}, or tfds:NAME, for example "
        "tfds:glue/sst2.",
    )
    flags.DEFINE_enum(
        "method", default.method, finetune_config.METHODS, "What is trained."
    )
    flags.DEFINE_integer(
        "blocks", None, "How many of the top blocks; default: all."
    )
    flags.DEFINE_integer(
        "levels", default.levels, "How many blocks the classifier looks at."
    )
    flags.DEFINE_integer("rank", default.rank, "Of LoRA or of the carriers.")
    flags.DEFINE_integer(
        "prefix_length", default.prefix_length, "Vectors of a prefix."
    )
    flags.DEFINE_bool(
        "freeze_embeddings", False, "Leave the tables as they are."
    )
    flags.DEFINE_integer(
        "microbatches", default.microbatches, "Draws of a batch, for dpfp."
    )
    flags.DEFINE_bool(
        "public_labels",
        False,
        "Declares that anyone may know the labels; dpfp does not protect them.",
    )
    flags.DEFINE_integer("steps", None, "At most so many steps.")
    flags.DEFINE_bool("decay", False, "Let the learning rate fall to 0.")
    flags.DEFINE_float(
        "head_epsilon",
        default.head_epsilon,
        "Part of the budget that trains the head alone, first.",
    )
    flags.DEFINE_integer(
        "head_epochs", default.head_epochs, "Passes over the data of that."
    )
    flags.DEFINE_float(
        "head_learning_rate",
        default.head_learning_rate,
        "Learning rate of that.",
    )
    flags.DEFINE_float("ema", default.ema, "Momentum of averaged weights.")
    flags.DEFINE_integer(
        "sequence_length", default.sequence_length, "Tokens of an example."
    )


def main(argv: Sequence[str]) -> int:
    """Runs the command.

    Args:
        argv: The command line, flags taken out.

    Returns:
        The exit code: 0, or 2 if the flags do not make sense.
    """
    try:
        config = commands.read_flags(argv, finetune_config.Config)
        prepared = finetuning.prepare(config)
    except (ValueError, OSError, datasets.DatasetUnavailableError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(finetuning.report(finetuning.run(prepared), config))
    return 0


if __name__ == "__main__":
    _define_flags()
    app.run(main)
