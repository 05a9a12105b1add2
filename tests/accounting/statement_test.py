import dataclasses
import math
import re
import sys
from unittest import mock

from absl.testing import parameterized

from tf_dpfp.accounting import entries as entries_lib
from tf_dpfp.accounting import epsilon as epsilon_lib
from tf_dpfp.accounting import paragraphs
from tf_dpfp.accounting import releases
from tf_dpfp.accounting import samplings
from tf_dpfp.accounting import statement as statement_lib
from tf_dpfp.accounting import tf_privacy

_ANY = "Epsilon without any assumption on the sampling:"
_ZERO = "Epsilon under zero-out adjacency:"
_POISSON = "Epsilon with the Poisson sampling above:"
_ONCE = "Epsilon if each example occurred at most once per epoch:"
_AS_IF = "Epsilon if the batches had been Poisson-sampled (*):"


def _poisson(noise=1.0, steps=1000, rate=0.01, overflow=0.0):
    return entries_lib.LedgerEntry(
        samplings.PoissonSampling(rate, overflow), noise, steps
    )


def _unknown(noise=1.0, steps=1000, population=None, batch_size=None):
    return entries_lib.LedgerEntry(
        samplings.UnknownSampling(population, batch_size), noise, steps
    )


def _words(text):
    return " ".join(text.split())


def _figures(text):
    """Returns the figures of a statement by their labels."""
    return dict(re.findall(r"^ {4}(Epsilon .*?:) +(\S+)$", text, re.MULTILINE))


class StatementTest(parameterized.TestCase):
    def assert_figure(self, printed, entries, delta=1e-5, accountant="rdp"):
        epsilon = epsilon_lib.compute_epsilon(entries, delta, accountant)
        self.assertGreaterEqual(float(printed), epsilon)
        self.assertLess(float(printed), epsilon + 1.001e-3)

    @parameterized.parameters("rdp", "pld")
    def test_poisson_figures(self, accountant):
        text = statement_lib.statement(
            [_poisson()], 1e-5, accountant=accountant
        )
        figures = _figures(text)
        self.assertEqual(list(figures), [_POISSON, _ANY])
        self.assert_figure(
            figures[_POISSON], [_poisson()], accountant=accountant
        )
        self.assert_figure(figures[_ANY], [_unknown()], accountant=accountant)

    def test_key_sentences(self):
        words = _words(statement_lib.statement([_poisson()], 1e-5))
        for sentence in (
            "DP-SGD performed for 1000 steps:",
            "1000 steps with noise multiplier 1 and Poisson sampling at rate"
            " 0.01",
            "This privacy guarantee protects the release of all model"
            " checkpoints in addition to the final model: the trainable"
            " weights and the optimizer state after every step.",
            "Example-level DP with add-or-remove-one adjacency at delta ="
            " 1e-05 computed with RDP accounting, proved for the steps above:",
            "It was performed, not assumed.",
            "No user-level privacy guarantee is possible without a bound on"
            " the number of examples per user.",
            "This guarantee does not cover:",
            "training metrics and losses, shown or logged",
            "the choice of hyper-parameters",
            "early stopping",
            "preprocessing adapted to the data",
            "the number of examples",
            "pretrained weights",
            "rounding of floating-point noise",
        ):
            self.assertIn(sentence, words)
        for absent in ("WARNING", "NO PRIVACY", "SEEDED", "Conditional"):
            self.assertNotIn(absent, words)

    def test_unknown_sampling_of_unknown_sizes(self):
        text = statement_lib.statement([_unknown()], 1e-5)
        figures = _figures(text)
        self.assertEqual(list(figures), [_ANY, _ZERO])
        self.assert_figure(figures[_ANY], [_unknown()])
        # By hand: half the noise where others move, all of it where none does.
        self.assert_figure(figures[_ANY], [_poisson(0.5, rate=1.0)])
        self.assert_figure(figures[_ZERO], [_poisson(1.0, rate=1.0)])
        self.assertNotIn("Conditional", text)
        self.assertNotIn("It was performed", _words(text))
        self.assertIn("ordinary input pipeline", _words(text))
        self.assertIn("its sum moves by twice the clip norm", _words(text))
        self.assertIn(
            "Another guarantee, with zero-out in place of add-or-remove-one",
            _words(text),
        )

    @parameterized.parameters((100, None), (None, 10))
    def test_one_size_gives_no_conditional_figure(self, population, batch_size):
        entry = _unknown(population=population, batch_size=batch_size)
        text = statement_lib.statement([entry], 1e-5)
        self.assertEqual(list(_figures(text)), [_ANY, _ZERO])

    def test_conditional_figures_are_apart_from_the_proved_one(self):
        entry = _unknown(noise=2.0, steps=785, population=10_000, batch_size=64)
        text = statement_lib.statement([entry], 1e-5)
        figures = _figures(text)
        self.assertEqual(list(figures), [_ANY, _ZERO, _ONCE, _AS_IF])
        self.assert_figure(figures[_ANY], [_unknown(2.0, 785)])
        self.assert_figure(figures[_ZERO], [_poisson(2.0, 785, 1.0)])
        # An epoch has at least 156 steps, so 785 begin at most six. Under
        # zero-out: an example left out would move others in every step.
        self.assert_figure(figures[_ONCE], [_poisson(2.0, 6, 1.0)])
        self.assert_figure(figures[_AS_IF], [_poisson(2.0, 785, 0.0064)])
        proved, conditional = text.split("Conditional figures, NOT proved")
        self.assertIn(_ANY, proved)
        self.assertIn(_ZERO, proved)
        self.assertIn("under zero-out adjacency", _words(conditional))
        for label in (_ONCE, _AS_IF):
            self.assertNotIn(label, proved)
            self.assertIn(label, conditional)
        self.assertIn("Shuffling is not Poisson sampling", _words(text))

    def test_batch_of_everyone_is_no_condition(self):
        entry = _unknown(2.0, 5, population=10, batch_size=64)
        figures = _figures(statement_lib.statement([entry], 1e-2))
        self.assertEqual(figures[_ONCE], figures[_ZERO])
        self.assertEqual(figures[_AS_IF], figures[_ZERO])

    def test_mixed_training_is_composed(self):
        entries = [_poisson(), _unknown(9.0, 10, 10_000, 100)]
        text = statement_lib.statement(entries, 1e-5)
        figures = _figures(text)
        self.assertEqual(list(figures), [_POISSON, _ANY, _ZERO, _ONCE, _AS_IF])
        self.assert_figure(figures[_POISSON], entries)
        self.assert_figure(figures[_ANY], [_unknown(), _unknown(9.0, 10)])
        self.assert_figure(figures[_ZERO], [_poisson(), _poisson(9.0, 10, 1.0)])
        self.assert_figure(figures[_ONCE], [_poisson(), _poisson(9.0, 1, 1.0)])
        self.assert_figure(
            figures[_AS_IF], [_poisson(), _poisson(9.0, 10, 0.01)]
        )
        self.assertIn("DP-SGD performed for 1010 steps:", text)

    def test_overflow_is_stated_and_counted(self):
        entry = _poisson(overflow=1e-10)
        text = statement_lib.statement([entry], 1e-5)
        self.assertIn(
            "dropping surplus examples with probability at most 1e-10",
            _words(text),
        )
        self.assert_figure(_figures(text)[_POISSON], [entry])
        entry = _poisson(overflow=1e-3)
        text = statement_lib.statement([entry], 1e-5)
        self.assertEqual(_figures(text)[_POISSON], "infinite")

    def test_no_noise_is_said_plainly(self):
        entries = [_poisson(), _poisson(noise=0.0, steps=1)]
        text = statement_lib.statement(entries, 1e-5)
        self.assertIn("NO PRIVACY: 1 of 1001 steps without noise", text)
        self.assertIn("Epsilon is infinite", _words(text))
        self.assertNotIn("protects the release", _words(text))
        self.assertEmpty(_figures(text))

    def test_nothing_run(self):
        for entries in ([], [_poisson(steps=0)]):
            self.assertEqual(
                statement_lib.statement(entries, 1e-5),
                "No training step has been recorded: epsilon is 0.\n",
            )

    def test_other_trainings_are_told_where_nothing_ran(self):
        text = statement_lib.statement(
            [], 1e-5, ordinary_steps=2, trained_apart=["another took 3 steps"]
        )
        self.assertIn("epsilon is 0", text)
        self.assertIn("TRAINED BEFORE: the model took 2 ordinary", text)
        self.assertIn("TRAINED APART", text)
        self.assertIn("another took 3 steps", text)

    def test_delta_of_one_over_the_examples_is_warned_about(self):
        for arguments in (
            {"entries": [_poisson()], "population": 1000},
            {"entries": [_unknown(population=1000, batch_size=10)]},
        ):
            entries = arguments.pop("entries")
            at, below = (
                statement_lib.statement(entries, delta, **arguments)
                for delta in (1e-3, 0.999e-3)
            )
            self.assertIn("WARNING: delta = 0.001 is not below", _words(at))
            self.assertNotIn("WARNING", below)

    def test_delta_is_printed_in_full(self):
        text = statement_lib.statement([_poisson()], 1.23456789e-5)
        self.assertIn("delta = 1.23456789e-05", _words(text))

    def test_seed_is_confessed(self):
        words = _words(statement_lib.statement([_poisson()], 1e-5, seeded=True))
        self.assertIn("SEEDED: the randomness came from a seed", words)
        self.assertIn("can regenerate the noise and subtract it", words)

    def test_given_numbers_are_not_called_a_record(self):
        text = statement_lib.statement([_poisson()], 1e-5, recorded=False)
        self.assertIn("DP-SGD to be performed for 1000 steps:", text)
        self.assertIn("not the record of a training", _words(text))
        self.assertNotIn("It was performed", _words(text))

    def test_lines_fit_the_terminal(self):
        entries = [_poisson(overflow=1e-10), _unknown(9.0, 10, 10_000, 100)]
        text = statement_lib.statement(
            entries, 1e-3, population=10_000, seeded=True
        )
        self.assertLessEqual(max(map(len, text.splitlines())), 80)

    @parameterized.parameters(
        (0.0, "0.000"),
        (1e-9, "0.001"),
        (2.5961, "2.597"),
        (3.0, "3.000"),
        (2.9990000001, "3.000"),
        (math.inf, "infinite"),
    )
    def test_figures_are_rounded_up(self, epsilon, printed):
        self.assertEqual(paragraphs.round_up(epsilon), printed)

    @parameterized.parameters(5.49e22, 1.2345e15, 1e300)
    def test_huge_figures_are_rounded_up(self, epsilon):
        printed = paragraphs.round_up(epsilon)
        self.assertGreaterEqual(float(printed), epsilon)
        self.assertLessEqual(float(printed), epsilon * 1.002)

    @parameterized.parameters(0.0, 1.0, math.nan)
    def test_bad_delta_is_refused(self, delta):
        with self.assertRaisesRegex(ValueError, "delta"):
            statement_lib.statement([_poisson()], delta)

    def test_bad_population_is_refused(self):
        with self.assertRaisesRegex(ValueError, "population"):
            statement_lib.statement([_poisson()], 1e-5, population=0)

    def test_bad_accountant_is_refused(self):
        with self.assertRaisesRegex(ValueError, "accountant"):
            statement_lib.statement([], 1e-5, accountant="prv")


class TensorFlowPrivacyTest(parameterized.TestCase):
    """The figures of the statement that this one is modelled on."""

    def setUp(self):
        super().setUp()
        # Its own switch: without it the import needs Keras 2.
        sys.skip_tf_privacy_import = True
        try:
            from tensorflow_privacy.privacy.analysis import (
                compute_dp_sgd_privacy_lib,
            )
        except ImportError as error:
            self.skipTest(f"tensorflow-privacy is not installed: {error}")
        self.peer = compute_dp_sgd_privacy_lib

    @parameterized.parameters(
        ("rdp", 0.8, 1),
        ("rdp", 0.8, 5),
        ("rdp", 2.0, 1),
        ("rdp", 2.0, 5),
        ("pld", 2.0, 5),
    )
    def test_same_figures(self, accountant, noise, epochs):
        examples, batch_size, delta = 6400, 64, 1e-5
        theirs = self.peer.compute_dp_sgd_privacy_statement(
            examples,
            batch_size,
            epochs,
            noise,
            delta,
            used_microbatching=False,
            accountant_type=self.peer.AccountantType[accountant.upper()],
        )
        once, poisson = (
            float(figure)
            for figure in re.findall(r"^ {4}Epsilon.*: +(\S+)$", theirs, re.M)
        )
        steps = epochs * examples // batch_size
        ordinary = statement_lib.statement(
            [_unknown(noise, steps, examples, batch_size)],
            delta,
            accountant=accountant,
        )
        figures = _figures(ordinary)
        # Theirs are rounded to the nearest, ours up.
        self.assertBetween(float(figures[_ONCE]), once, once + 2e-3)
        self.assertBetween(float(figures[_AS_IF]), poisson, poisson + 2e-3)
        sampled = statement_lib.statement(
            [_poisson(noise, steps, batch_size / examples)],
            delta,
            accountant=accountant,
        )
        self.assertEqual(_figures(sampled)[_POISSON], figures[_AS_IF])

    @parameterized.parameters((64, 500), (33, 7), (6400, 3), (7, 12_345))
    def test_their_statement_counts_the_same_steps(self, batch_size, steps):
        entry = _poisson(1.5, steps, batch_size / 6400)
        said = tf_privacy.tf_privacy_statement([entry], 1e-5, "rdp", 6400)
        assert f"with {batch_size} examples per iteration" in " ".join(
            said.split()
        )
        _, figure = re.findall(r"^ {4}Epsilon.*: +(\S+)$", said, re.M)
        ours = epsilon_lib.compute_epsilon([entry], 1e-5)
        self.assertAlmostEqual(float(figure), ours, delta=2e-3 * (1 + ours))
        # Several views of each example change nothing.
        views = dataclasses.replace(entry, release=releases.ViewSums(4))
        assert said == tf_privacy.tf_privacy_statement(
            [views], 1e-5, "rdp", 6400
        )


class TensorFlowPrivacyRefusalsTest(parameterized.TestCase):
    def test_what_they_cannot_say_names_the_versions(self):
        for entries, population in (
            ([], 100),
            ([_poisson(1.0, 5), _poisson(2.0, 5)], 100),
            ([_poisson(0.0, 5)], 100),
            ([_poisson(1.0, 5)], None),
            ([_unknown(1.0, 5)], 100),
        ):
            with self.assertRaisesRegex(ValueError, "0.9.0.*0.6 or later"):
                tf_privacy.tf_privacy_statement(
                    entries, 1e-5, "rdp", population
                )

    def test_without_the_package_the_way_to_it_is_named(self):
        with mock.patch.dict(
            sys.modules, {"tensorflow_privacy.privacy.analysis": None}
        ):
            with self.assertRaisesRegex(ImportError, "--no-deps"):
                tf_privacy.tf_privacy_statement(
                    [_poisson(1.0, 5, 0.1)], 1e-5, "rdp", 100
                )
