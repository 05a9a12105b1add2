import math

import pytest

from benchmarks import accuracy_rows
from examples.trainers import finetune_config
from examples.trainers import finetuning
from examples.trainers import linear_training
from examples.trainers import training


def _fields(row):
    flags = dict(flag.partition("=")[::2] for flag in row.flags)
    return {name: value or "True" for name, value in flags.items()}


@pytest.mark.parametrize("name", accuracy_rows.ROWS)
def test_every_flag_is_one_of_the_trainer(name):
    row = accuracy_rows.ROWS[name]
    config = {
        "examples.trainers.train": training.Config,
        "examples.trainers.finetune_text": finetune_config.Config,
        "examples.trainers.train_linear": linear_training.Config,
    }[row.module]
    assert set(_fields(row)) <= set(config.__dataclass_fields__)


def test_results_are_read_from_what_trainers_print():
    config = training.Config(epsilon=2.7)
    result = training.Result(0.98765, 2.69996, "A statement.", ({},), {})
    found = accuracy_rows.result_of(training.report(result, config))
    assert found == {"test_accuracy": 98.77, "epsilon": 2.7}
    config = finetune_config.Config(method="head", epsilon=3.0)
    result = finetuning.Result(0.80712, 2.9997, "A statement.", 10, 0.1)
    found = accuracy_rows.result_of(finetuning.report(result, config))
    assert found == {"test_accuracy": 80.71, "epsilon": 3.0}
    config = linear_training.Config(epsilon=math.inf)
    trained = linear_training.Result(0.86171, math.inf, "None.", None)
    found = accuracy_rows.result_of(linear_training.report(trained, config))
    assert found == {"test_accuracy": 86.17, "epsilon": math.inf}
    with pytest.raises(ValueError, match="No result"):
        accuracy_rows.result_of("Traceback")


def test_the_table_has_means_and_deviations():
    rows = [
        {
            "row": "mnist_cnn",
            "test_accuracy": accuracy,
            "epsilon": 2.93,
            "seconds": 100.0,
        }
        for accuracy in (98.0, 98.2, 98.4)
    ]
    *_, line = accuracy_rows.table(rows)
    assert "98.20 ± 0.20 %" in line and "| 3 | 100 s |" in line
