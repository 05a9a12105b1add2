"""What the table of private fine-tuning trains and prints."""

import dataclasses
import math

import pytest

from benchmarks import text_rows
from examples.trainers import finetune_config


@pytest.mark.parametrize("epsilon", [3.0, math.inf])
@pytest.mark.parametrize("method", list(text_rows.METHODS))
def test_the_command_says_every_setting(method, epsilon):
    config = text_rows.config(method, epsilon, seed=2, start="folder")
    words = text_rows.command(config).split()
    assert words[:3] == ["python", "-m", "examples.trainers.finetune_text"]
    given = {}
    for word in words[3:]:
        name, _, value = word.removeprefix("--").partition("=")
        given[name] = value if value else True
    for field in dataclasses.fields(finetune_config.Config):
        value = getattr(config, field.name)
        if value == field.default:
            assert field.name not in given
        elif isinstance(value, bool):
            assert given[field.name] is value
        else:
            assert type(value)(given[field.name]) == value


def test_only_public_methods_start_from_the_public_training():
    for method in text_rows.METHODS:
        config = text_rows.config(method, 3.0, seed=1, start="folder")
        assert (config.start == "folder") == method.startswith("public")


def _row(accuracy, **changes):
    row = dict(
        method="head",
        epsilon=3.0,
        accuracy=accuracy,
        trainable=770,
        seconds_per_step=0.02,
        peak_mib=1000,
    )
    return {**row, **changes}


def test_the_summary_has_mean_spread_and_number_by_method_and_epsilon():
    rows = [
        _row(0.8, epsilon=None, seconds_per_step=9.0, peak_mib=9000),
        _row(0.7),
        _row(0.72, seconds_per_step=0.01, peak_mib=1100),
        _row(0.9, method="full_1"),
    ]
    assert list(text_rows.summary(rows)) == [
        "| method | epsilon 3 | without privacy | weights trained "
        "| private step | memory |",
        "|---|---|---|---|---|---|",
        "| head | 71.00 ± 1.41 (2) | 80.00 (1) | 770 | 10 ms | 1000 MiB |",
        "| full_1 | 90.00 (1) |  | 770 | 20 ms | 1000 MiB |",
    ]
