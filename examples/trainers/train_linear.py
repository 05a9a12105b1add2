"""Trains a linear classifier of records or texts with differential privacy.

    python -m examples.trainers.train_linear --dataset=adult --epsilon=3
    python -m examples.trainers.train_linear --dataset=mails --batch_size=1000
    python -m examples.trainers.train_linear --dataset=movie_reviews \
        --encoder=mpnet --places=0

The features look at no private data: of census records a place for each answer
that the survey knows, of texts a place for each word, by its hash, or vectors
of a public encoder that stays as it is. So all that is spent is spent on the
model, and a linear one has not much to learn.
"""

import os
import sys
from collections.abc import Sequence

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

from absl import app
from absl import flags

from examples.trainers import commands
from examples.trainers import datasets
from examples.trainers import encoded_texts
from examples.trainers import linear_training


def _define_flags() -> None:
    default = linear_training.Config()
    commands.define_shared_flags(default)
    flags.DEFINE_float("momentum", default.momentum, "Momentum of SGD.")
    flags.DEFINE_float(
        "weight_averaging",
        default.weight_averaging,
        "Decay of averages of the weights.",
    )
    flags.DEFINE_enum(
        "dataset", default.dataset, linear_training.DATASETS, "The data."
    )
    flags.DEFINE_integer(
        "places",
        default.places,
        "Length of the vectors of words; 0 for none beside an encoder.",
    )
    flags.DEFINE_enum(
        "encoder",
        default.encoder,
        list(encoded_texts.ENCODERS),
        "A frozen public encoder, for texts.",
    )
    flags.DEFINE_integer(
        "levels", default.levels, "How many blocks of it, from the top."
    )
    flags.DEFINE_integer(
        "sequence_length", default.sequence_length, "Tokens it reads at once."
    )
    flags.DEFINE_integer(
        "windows", default.windows, "How often, in a long text."
    )
    flags.DEFINE_bool(
        "rare_words",
        default.rare_words,
        "Let words weigh more, the rarer they are in public texts.",
    )
    commands.define_outcome_flags(default)


def main(argv: Sequence[str]) -> int:
    """Runs the command.

    Args:
        argv: The command line, flags taken out.

    Returns:
        The exit code: 0, or 2 if the flags do not make sense.
    """
    try:
        config = commands.read_flags(argv, linear_training.Config)
        result = linear_training.train(config)
    except (ValueError, OSError, datasets.DatasetUnavailableError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(linear_training.report(result, config))
    return 0


if __name__ == "__main__":
    _define_flags()
    app.run(main)
