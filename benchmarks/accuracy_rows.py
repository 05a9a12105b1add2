"""What `benchmarks.accuracy_table` trains, and the table of its results."""

import dataclasses
import re
import statistics
from collections.abc import Iterator, Mapping, Sequence

_IMAGES = "examples.trainers.train"
_TEXTS = "examples.trainers.finetune_text"
_LINEAR = "examples.trainers.train_linear"


@dataclasses.dataclass(frozen=True)
class Row:
    """A row of the table.

    Attributes:
        data: Name of the data, for people.
        method: What is trained, for people.
        module: Program that trains it.
        flags: Its flags.
    """

    data: str
    method: str
    module: str
    flags: tuple[str, ...] = ()

    @property
    def words(self) -> list[str]:
        """Command, but for the interpreter and the output folder."""
        return ["-m", self.module, *(f"--{flag}" for flag in self.flags)]


_FASHION = "dataset=fashion_mnist"
_ON_VECTORS = (
    *("method=head", "levels=4", "sequence_length=40", "decay"),
    *("batch_size=1000", "epochs=60", "learning_rate=0.02"),
    "l2_norm_clip=0.1",
)

_MOVIES = ("dataset=movie_reviews", "encoder=mpnet", "places=0")
_NEWS_READ = (
    *("dataset=newsgroups", "encoder=minilm", "levels=1"),
    *("sequence_length=128", "places=0"),
)

_NEWS = ("dataset=newsgroups", "places=8192", "rare_words")

ROWS: Mapping[str, Row] = {
    "mnist_cnn": Row("MNIST", "CNN", _IMAGES, ("model=cnn",)),
    "mnist_scattering": Row(
        "MNIST",
        "convolution on scattering features",
        _IMAGES,
        ("model=scattering",),
    ),
    "mnist_linear": Row(
        "MNIST",
        "linear on scattering features, the default of `make train`",
        _IMAGES,
    ),
    "fashion_cnn": Row(
        "Fashion-MNIST",
        "CNN",
        _IMAGES,
        (_FASHION, "model=cnn", "epsilon=2.7"),
    ),
    "fashion_ws_cnn": Row(
        "Fashion-MNIST",
        "CNN of standardised convolutions",
        _IMAGES,
        (_FASHION, "model=ws_cnn", "epsilon=2.7"),
    ),
    "fashion_scattering": Row(
        "Fashion-MNIST",
        "convolution on scattering features",
        _IMAGES,
        (_FASHION, "model=scattering", "epsilon=2.7"),
    ),
    "fashion_linear": Row(
        "Fashion-MNIST",
        "linear on scattering features",
        _IMAGES,
        (_FASHION, "epsilon=2.7"),
    ),
    "fashion_efficientnet": Row(
        "Fashion-MNIST",
        "linear on five blocks of frozen EfficientNet-Lite0",
        _IMAGES,
        (_FASHION, "model=linear_efficientnet", "epsilon=2.7"),
    ),
    "adult": Row(
        "Adult",
        "linear on answers and bins",
        _LINEAR,
        (
            *("dataset=adult", "l2_norm_clip=0.5", "batch_size=4096"),
            *("epochs=60", "learning_rate=16"),
            "epsilon=3",
        ),
    ),
    "adult_ordinary": Row(
        "Adult",
        "the same, without privacy",
        _LINEAR,
        (
            *("dataset=adult", "batch_size=256", "epochs=20"),
            *("learning_rate=0.1", "epsilon=inf"),
        ),
    ),
    "mails": Row(
        "SpamAssassin",
        "linear on hashed words",
        _LINEAR,
        (
            *("dataset=mails", "places=2048", "l2_norm_clip=0.1"),
            *("batch_size=1000", "epochs=60", "learning_rate=4"),
            "epsilon=3",
        ),
    ),
    "mails_ordinary": Row(
        "SpamAssassin",
        "the same, without privacy",
        _LINEAR,
        (
            *("dataset=mails", "places=2048", "batch_size=1000"),
            *("epochs=60", "learning_rate=1", "weight_averaging=0.9"),
            "epsilon=inf",
        ),
    ),
    "newsgroups": Row(
        "20 Newsgroups",
        "linear on hashed words, rare ones weigh more",
        _LINEAR,
        (
            *(*_NEWS, "l2_norm_clip=0.1", "batch_size=2000"),
            *("epochs=40", "learning_rate=8"),
            "epsilon=3",
        ),
    ),
    "newsgroups_ordinary": Row(
        "20 Newsgroups",
        "the same, without privacy",
        _LINEAR,
        (
            *(*_NEWS, "batch_size=500", "epochs=15"),
            *("learning_rate=4", "weight_averaging=0.95"),
            "epsilon=inf",
        ),
    ),
    "movies_head": Row(
        "movie sentences",
        "linear on four levels of frozen MiniLM",
        _TEXTS,
        (*_ON_VECTORS, "epsilon=3"),
    ),
    "movies_head_ordinary": Row(
        "movie sentences",
        "the same, without privacy",
        _TEXTS,
        (
            *("method=head", "levels=4", "sequence_length=40"),
            *("batch_size=64", "epochs=15", "learning_rate=0.003"),
            "epsilon=inf",
        ),
    ),
    "newsgroups_minilm": Row(
        "20 Newsgroups",
        "linear on the last level of frozen MiniLM",
        _LINEAR,
        (
            *(*_NEWS_READ, "l2_norm_clip=0.5", "batch_size=2000"),
            *("epochs=40", "learning_rate=4"),
            "epsilon=3",
        ),
    ),
    "newsgroups_minilm_ordinary": Row(
        "20 Newsgroups",
        "the same, without privacy",
        _LINEAR,
        (
            *(*_NEWS_READ, "batch_size=750", "epochs=40"),
            *("learning_rate=1", "weight_averaging=0.95"),
            "epsilon=inf",
        ),
    ),
    "movies_mpnet": Row(
        "movie sentences",
        "linear on four levels of frozen MPNet",
        _LINEAR,
        (
            *(*_MOVIES, "l2_norm_clip=0.1", "batch_size=1000"),
            *("epochs=60", "learning_rate=4"),
            "epsilon=3",
        ),
    ),
    "movies_mpnet_8": Row(
        "movie sentences",
        "the same",
        _LINEAR,
        (
            *(*_MOVIES, "l2_norm_clip=0.1", "batch_size=1000"),
            *("epochs=60", "learning_rate=4"),
            "epsilon=8",
        ),
    ),
    "movies_mpnet_ordinary": Row(
        "movie sentences",
        "the same, without privacy",
        _LINEAR,
        (
            *(*_MOVIES, "batch_size=500", "epochs=20"),
            *("learning_rate=0.1", "weight_averaging=0.95"),
            "epsilon=inf",
        ),
    ),
}


def result_of(printed: str) -> dict[str, float]:
    """Reads accuracy and epsilon from what a trainer printed.

    Args:
        printed: Its standard output.

    Returns:
        `test_accuracy`, in percent, and `epsilon`.

    Raises:
        ValueError: If they are not there.
    """
    accuracy = re.search(
        r"^Test accuracy +([\d.]+) %|: ([\d.]+)% correct", printed, re.MULTILINE
    )
    epsilon = re.search(
        r"^Epsilon +([\d.]+)|correct, epsilon ([\d.]+|inf) ",
        printed,
        re.MULTILINE,
    )
    if accuracy is None or epsilon is None:
        raise ValueError(f"No result in: {printed[-2000:]}")
    return {
        "test_accuracy": float(accuracy[1] or accuracy[2]),
        "epsilon": float(epsilon[1] or epsilon[2]),
    }


def command(name: str) -> str:
    """Returns the command of a row, for a shell."""
    return " ".join(["python", *ROWS[name].words])


def table(rows: Sequence[dict]) -> Iterator[str]:
    """Makes the lines of a Markdown table.

    Args:
        rows: Results of `train`.

    Yields:
        The lines.
    """
    yield "| data | method | epsilon | test accuracy | trainings | time |"
    yield "|---|---|---|---|---|---|"
    for name, row in ROWS.items():
        found = [result for result in rows if result["row"] == name]
        if not found:
            continue
        values = [result["test_accuracy"] for result in found]
        spread = f" ± {statistics.stdev(values):.2f}" if len(found) > 1 else ""
        seconds = statistics.median(result["seconds"] for result in found)
        yield (
            f"| {row.data} | {row.method} "
            f"| {max(result['epsilon'] for result in found):.2f} "
            f"| {statistics.mean(values):.2f}{spread} % "
            f"| {len(found)} | {seconds:.0f} s |"
        )
