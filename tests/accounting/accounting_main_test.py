import re

from absl.testing import absltest
from absl.testing import parameterized

from tests import programs
from tf_dpfp.accounting import LedgerEntry
from tf_dpfp.accounting import UnknownSampling
from tf_dpfp.accounting import __main__ as command
from tf_dpfp.accounting import calibration
from tf_dpfp.accounting import statement as statement_lib

_MNIST = {
    "delta": 1e-5,
    "noise_multiplier": 1.1,
    "num_examples": 60000,
    "batch_size": 256,
    "epochs": 60,
}


def _without(*names, **changes):
    kept = {name: v for name, v in _MNIST.items() if name not in names}
    return kept | changes


class ReportTest(parameterized.TestCase):
    def test_epsilon_of_parameters(self):
        text = command.report(**_MNIST)
        self.assertIn("14063 steps with noise multiplier 1.1", text)
        self.assertIn("2.597", text)
        self.assertIn("not the record of a training", text)

    def test_rate_and_steps_say_the_same_as_sizes_and_epochs(self):
        by_rate = command.report(
            delta=1e-5,
            noise_multiplier=1.1,
            sampling_rate=0.01,
            steps=500,
        )
        by_size = command.report(
            delta=1e-5,
            noise_multiplier=1.1,
            num_examples=1000,
            batch_size=10,
            epochs=5,
        )
        self.assertEqual(by_rate.split("delta")[1], by_size.split("delta")[1])
        self.assertIn("over 1000 examples for 500 steps", by_size)

    # Fixed batches move by two clip norms: twice the noise of rate 1.
    @parameterized.parameters(("poisson", 0.01, 1.0), ("unknown", 1.0, 2.0))
    def test_noise_of_a_budget(self, sampling, accounted_rate, sensitivity):
        text = command.report(
            delta=1e-5,
            epsilon=3.0,
            num_examples=1000,
            batch_size=10,
            steps=500,
            sampling=sampling,
        )
        first, rest = text.split("\n\n", 1)
        noise = float(first.removeprefix("Noise multiplier: "))
        # To within the tolerance of both searches.
        self.assertAlmostEqual(
            noise,
            sensitivity
            * calibration.calibrate_noise_multiplier(
                3.0, 1e-5, accounted_rate, 500
            ),
            delta=3e-4,
        )
        self.assertTrue(rest.startswith("DP-SGD to be performed"))
        self.assertIn("3.000", rest)

    def test_unknown_sampling_needs_no_rate(self):
        text = command.report(
            delta=1e-5, noise_multiplier=5.0, steps=10, sampling="unknown"
        )
        self.assertEqual(
            text,
            statement_lib.statement(
                [LedgerEntry(UnknownSampling(), 5.0, 10)],
                1e-5,
                recorded=False,
            ),
        )

    @parameterized.parameters(
        ({"delta": None}, "--delta is required"),
        ({"epsilon": 3.0}, "exactly one of --noise_multiplier and --epsilon"),
        ({"noise_multiplier": None}, "Received: neither"),
        ({"steps": 10}, "exactly one of --steps and --epochs"),
        ({"epochs": None}, "Received: neither"),
        ({"sampling_rate": 0.1}, "not all three"),
        ({"batch_size": None}, "Give --sampling_rate, or"),
        ({"num_examples": None}, "Give --sampling_rate, or"),
        ({"batch_size": 0}, "--batch_size must be at least 1"),
        ({"num_examples": -1}, "--num_examples must be at least 1"),
        ({"batch_size": 60001}, "more than --num_examples"),
        ({"epochs": 0.0}, "--epochs must be above 0"),
        ({"epochs": float("nan")}, "--epochs must be above 0"),
        (
            {"noise_multiplier": -1.0},
            "noise_multiplier` must be .* of at least 0",
        ),
        ({"delta": 0.0}, "`delta` must be a finite number above 0"),
    )
    def test_bad_flags_are_refused(self, changes, message):
        with self.assertRaisesRegex(ValueError, message):
            command.report(**_without(**changes))

    def test_epochs_without_a_rate_are_refused(self):
        with self.assertRaisesRegex(ValueError, "Give those, or --steps"):
            command.report(
                delta=1e-5, noise_multiplier=5.0, epochs=3, sampling="unknown"
            )

    def test_rate_outside_its_range_is_refused(self):
        for length in ({"epochs": 3}, {"steps": 3}):
            with self.assertRaisesRegex(ValueError, "sampling_rate"):
                command.report(
                    delta=1e-5,
                    noise_multiplier=5.0,
                    sampling_rate=2.0,
                    **length,
                )


class CommandTest(absltest.TestCase):
    def run_command(self, *arguments):
        return programs.run(
            ["-m", "tf_dpfp.accounting", *arguments],
            self.create_tempdir().full_path,
        )

    def test_prints_the_report(self):
        result = self.run_command(
            "--noise_multiplier=1.1",
            "--num_examples=60000",
            "--batch_size=256",
            "--epochs=60",
            "--delta=1e-5",
        )
        self.assertEqual(result.returncode, 0, result.stderr)
        self.assertEqual(result.stdout, command.report(**_MNIST))

    def test_bad_flags_end_with_one_sentence(self):
        result = self.run_command("--epsilon=3", "--noise_multiplier=1")
        self.assertEqual(result.returncode, 2)
        self.assertEqual(result.stdout, "")
        self.assertRegex(result.stderr, re.compile("^error: --delta is", re.M))
        self.assertNotIn("Traceback", result.stderr)
