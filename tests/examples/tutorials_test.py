"""The tutorials, run from top to bottom with little data."""

import ast
import pathlib
import re

import keras
import numpy as np
import pytest

import tf_dpfp
from examples import tutorial_files
from tests.replicas import common as replicas


def _census(package, member, sha256):
    del package, sha256
    rng = np.random.default_rng(0)
    lines = []
    for _ in range(300):
        age, years = rng.integers(17, 80), rng.integers(1, 16)
        label = ">50K" if years > 9 else "<=50K"
        words = ", ".join(f"w{n}" for n in rng.integers(0, 9, 6))
        lines.append(
            f"{age}, Private, 77516, Masters, {years}, {words[:2]}, b, c, d, "
            f"Male, 2174, 0, 40, Cuba, {label}"
        )
    ending = "." if member.endswith("test") else ""
    return ("|header\n" + "\n".join(x + ending for x in lines)).encode()


def test_structured_data(run, capsys):
    found = run("structured_data", fetch=_census, batch_size=100, budgets=[1.0])
    assert (pathlib.Path("structured_data.png")).exists()
    for budget, model in zip(found["budgets"], found["models"], strict=True):
        spent = tf_dpfp.compute_epsilon(model, found["delta"])
        assert 0.9 * budget < spent <= budget
    # What is made of a person hangs on nobody else.
    some = {name: column[:5] for name, column in found["train"].items()}
    np.testing.assert_array_equal(found["encode"](some), found["x_train"][:5])
    assert set(np.unique(found["y_train"])) == {0.0, 1.0}
    assert "It was performed, not assumed" in capsys.readouterr().out


def _letters(package, member, sha256):
    del package, member, sha256
    rng = np.random.default_rng(0)
    groups = ["alt.atheism", "comp.graphics", "rec.autos", "soc.religion"]
    words = [f"of {group} and {rng.integers(9)}" for group in groups]
    lines = ["Category\tText", "d\tstring", "class\t"]
    lines += [f"{groups[n]}\t{words[n]}" for n in rng.integers(0, 4, 300)]
    return "\n".join(lines).encode()


def test_text_transformer(run):
    found = run(
        "text_transformer",
        fetch=_letters,
        batch_size=100,
        length=8,
        vocabulary_size=50,
        budgets=[3.0],
    )
    assert pathlib.Path("text_transformer.png").exists()
    for budget, model in zip(found["budgets"], found["models"], strict=True):
        spent = tf_dpfp.compute_epsilon(model, found["delta"])
        assert 0.99 * budget < spent <= budget
    # Religion is talk; no word is a number by which others are counted.
    assert set(found["y_train"]) == {0, 1, 3}
    assert found["x_train"].min() == 0 and found["x_train"].max() <= 50


def _ratings(package, member, sha256):
    del package, sha256
    rng = np.random.default_rng(0)
    if member.endswith(".user"):
        jobs = ["baker", "other"]
        lines = [f"{n}\t{20 + n}\tF\t{jobs[n % 2]}\t0" for n in range(1, 41)]
    else:
        lines = [
            f"{rng.integers(1, 41)}\t{rng.integers(1, 99)}\t"
            f"{rng.integers(1, 6)}\t0"
            for _ in range(600)
        ]
    return "\n".join(["header", *lines]).encode()


def test_recommender(run, capsys):
    found = run(
        "recommender", fetch=_ratings, budgets=[3.0, 8.0], numbers=[1, 2, 3]
    )
    assert pathlib.Path("recommender.png").exists()
    for budget, model in zip(found["budgets"], found["models"], strict=True):
        spent = tf_dpfp.compute_epsilon(model, found["delta"])
        assert 0.99 * budget < spent <= budget
        (entry,) = tf_dpfp.ledger(model)
        assert entry.release.unit == "person"
    # One rating has what was asked for; more of them have more.
    first, *more = found["of_a_person"]
    assert 0.99 * 3.0 < first <= 3.0 and first < more[0] < more[-1]
    assert "person" in capsys.readouterr().out


@pytest.mark.parametrize(
    "path", tutorial_files.paths(), ids=lambda path: path.stem
)
def test_a_tutorial_needs_nothing_but_itself(path):
    modules = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            modules.add(node.module)
    assert {"examples", "tests"}.isdisjoint(m.split(".")[0] for m in modules)


def _network():
    """Arrays of a lower part of one convolution, and of the upper part."""
    rng = np.random.default_rng(0)
    shapes = [(1, 1, 3, 192), (192,)]
    for kernel in (
        (1, 1, 192, 1152),
        (3, 3, 1152, 1),
        (1, 1, 1152, 320),
        (1, 1, 320, 1280),
    ):
        outputs = kernel[2] if kernel[3] == 1 else kernel[3]
        shapes += [kernel, *[(outputs,)] * 4]
    # Variances are above 0.
    return [
        rng.normal(0, 0.05, shape) if len(shape) > 1 else rng.random(shape) + 1
        for shape in shapes
    ]


def _lower():
    return keras.Sequential(
        [
            keras.Input((28, 28, 3)),
            keras.layers.AveragePooling2D(14),
            keras.layers.Conv2D(192, 1),
        ]
    )


@pytest.mark.slow
def test_frozen_statistics(run, capsys):
    rng = np.random.default_rng(0)

    def images():
        x = rng.integers(0, 256, (60, 28, 28)).astype("uint8")
        y = rng.integers(0, 10, 60)
        return (x, y), (x[:20], y[:20])

    found = run(
        "frozen_statistics",
        load_images=images,
        load_weights=_network,
        make_lower=_lower,
        budgets=[8.0],
        batch_size=20,
    )
    assert pathlib.Path("frozen_statistics.png").exists()
    model = found["model"]
    assert 0.99 * 8.0 < tf_dpfp.compute_epsilon(model, 1e-5) <= 8.0
    printed = capsys.readouterr().out
    # Frozen statistics leave the network as it was; groups do not.
    assert "keep_statistics=True: correlation 1.000" in printed
    assert "keep_statistics=False: correlation 1.000" not in printed
    (stem,) = found["frozen"]().trainable_weights[:1]
    assert stem.shape == (1280, 10)


def _functions(name):
    text = (tutorial_files.TUTORIALS / f"{name}.py").read_text()
    _, mark, rest = text.partition("def fetch(")
    return rest.partition("\n    return content\n")[0] if mark else None


def test_what_fetches_is_the_same_everywhere_and_checks():
    found = {
        path.stem: _functions(path.stem) for path in tutorial_files.paths()
    }
    texts = {text for text in found.values() if text}
    assert len(texts) == 1
    assert "hashlib.sha256(content).hexdigest() != sha256" in texts.pop()


# Its calls are those of tests/auditing, and docs/auditing.md runs most of them.
@pytest.mark.slow
def test_audit(run, monkeypatch):
    monkeypatch.setenv("TF_DPFP_TUTORIAL_RUNS", "600")
    found = run("audit", budgets=[4.0])
    assert pathlib.Path("audit.png").exists()
    assert [r.claimed_epsilon for r in found["reports"]] == [None, 4.0]
    # Of the coins of canaries, and of the promise of this budget.
    assert found["reports"][1].included.sum() in range(400, 600)
    assert found["sound"].lower_bound < found["half"].lower_bound
    assert found["wrong"].refuted


def test_several_devices(run, monkeypatch, capsys):
    # The CPU of this process is split already.
    monkeypatch.setattr(
        tf_dpfp.distribute, "make_strategy", lambda *_, **__: strategy
    )
    strategy = replicas.strategy(2)
    found = run("several_devices", budgets=[3.0])
    assert pathlib.Path("several_devices.png").exists()
    (model,) = found["models"]
    assert model.distribute_strategy is strategy
    (entry,) = tf_dpfp.ledger(model)
    assert entry.steps == 20 and entry.sampling.sampling_rate == 0.05
    assert set(tf_dpfp.clip_norms(found["split"])) == {"CPU:0", "CPU:1"}
    epsilons = re.findall(r"epsilon ([\d.]+), test", capsys.readouterr().out)
    assert [2.9 < float(e) <= 3.0 for e in epsilons] == [True, True, False]


@pytest.mark.parametrize(
    ("tutorial", "says", "leaves"),
    [
        (
            "mnist_private_training",
            "Epsilon with the Poisson sampling above",
            "private_mnist.keras",
        ),
        ("adaptive_clipping", "epsilon 2.", "adaptive_thresholds.png"),
        (
            "low_rank_carriers",
            "random: test accuracy",
            "low_rank_carriers.png",
        ),
    ],
)
def test_tutorials_on_images(run, tutorial, says, leaves, monkeypatch, capsys):
    def small():
        rng = np.random.default_rng(0)
        x = rng.integers(0, 256, (300, 28, 28)).astype("uint8")
        y = rng.integers(0, 10, 300)
        return (x, y), (x[:100], y[:100])

    for data in (keras.datasets.mnist, keras.datasets.fashion_mnist):
        monkeypatch.setattr(data, "load_data", small)
    found = run(tutorial, batch_size=256)
    assert says in capsys.readouterr().out
    assert pathlib.Path(leaves).exists()
    assert 0.9 < np.abs(found["x_train"]).max() <= 1.0


def test_noised_representations(run, capsys):
    rng = np.random.default_rng(0)

    def sentences():
        texts = np.array([f"sentence {i}" for i in range(10_340)], object)
        return texts, rng.integers(0, 2, (len(texts), 1))

    def encoder():
        ids = keras.Input((4,), dtype="int32", name="token_ids")
        mask = keras.Input((4,), dtype="int32", name="padding_mask")
        outputs = {"sequence_output": keras.layers.Embedding(50, 8)(ids)}
        return (
            keras.Model({"token_ids": ids, "padding_mask": mask}, outputs),
            lambda texts: {
                "token_ids": rng.integers(0, 50, (len(texts), 4)),
                "padding_mask": np.ones((len(texts), 4), "int32"),
            },
        )

    pytest.importorskip("keras_hub")
    run(
        "noised_representations",
        load_sentences=sentences,
        load_encoder=encoder,
        counts=[1, 512],
    )
    printed = capsys.readouterr().out
    # Both guarantees are met, each for its own neighbours.
    assert "replace-one adjacency" in printed
    figures = [float(e) for e in re.findall(r"epsilon (\d\.\d+)\n", printed)]
    assert len(figures) == 3
    assert all(2.9 < figure <= 3.0 for figure in figures)
    assert pathlib.Path("noised_representations.png").exists()
