import dp_accounting
from absl.testing import absltest

from tf_dpfp.accounting import entries as entries_lib
from tf_dpfp.accounting import events
from tf_dpfp.accounting import releases
from tf_dpfp.accounting import samplings

_POISSON = samplings.PoissonSampling(0.1)
_UNKNOWN = samplings.UnknownSampling(population=100, batch_size=10)


class EventsTest(absltest.TestCase):
    def test_poisson_is_a_sampled_gaussian_composed_over_steps(self):
        self.assertEqual(
            events.entry_event(entries_lib.LedgerEntry(_POISSON, 1.5, 7)),
            dp_accounting.SelfComposedDpEvent(
                dp_accounting.PoissonSampledDpEvent(
                    0.1, dp_accounting.GaussianDpEvent(1.5)
                ),
                7,
            ),
        )

    def test_unknown_sampling_is_not_amplified(self):
        # Even though the sizes are known.
        self.assertEqual(
            events.entry_event(entries_lib.LedgerEntry(_UNKNOWN, 1.5, 7)),
            # Sensitivity 2: an example left out moves others between batches.
            dp_accounting.SelfComposedDpEvent(
                dp_accounting.GaussianDpEvent(0.75), 7
            ),
        )

    def test_zero_out_leaves_examples_in_place(self):
        adjacency = releases.Adjacency.ZERO_OUT
        self.assertEqual(
            events.entry_event(
                entries_lib.LedgerEntry(_UNKNOWN, 1.5, 7), adjacency
            ),
            dp_accounting.SelfComposedDpEvent(
                dp_accounting.GaussianDpEvent(1.5), 7
            ),
        )
        sampled = entries_lib.LedgerEntry(_POISSON, 1.5, 7)
        self.assertEqual(
            events.entry_event(sampled, adjacency), events.entry_event(sampled)
        )

    def test_entries_are_composed_under_one_adjacency(self):
        entry = entries_lib.LedgerEntry(_UNKNOWN, 1.5, 7)
        for adjacency, sigma in (
            (None, 0.75),
            (releases.Adjacency.ADD_OR_REMOVE_ONE, 0.75),
            (releases.Adjacency.ZERO_OUT, 1.5),
        ):
            (event,) = events.compose_events([entry], adjacency).events
            self.assertEqual(event.event, dp_accounting.GaussianDpEvent(sigma))

    def test_rate_one_is_the_gaussian_itself(self):
        whole = samplings.PoissonSampling(1.0)
        self.assertEqual(
            events.entry_event(entries_lib.LedgerEntry(whole, 1.5, 7)),
            dp_accounting.SelfComposedDpEvent(
                dp_accounting.GaussianDpEvent(1.5), 7
            ),
        )

    def test_no_noise_is_not_private(self):
        self.assertEqual(
            events.entry_event(entries_lib.LedgerEntry(_POISSON, 0.0, 1)),
            dp_accounting.NonPrivateDpEvent(),
        )

    def test_no_step_is_no_operation(self):
        for noise_multiplier in (0.0, 1.0):
            entry = entries_lib.LedgerEntry(_POISSON, noise_multiplier, 0)
            self.assertEqual(
                events.entry_event(entry), dp_accounting.NoOpDpEvent()
            )
            self.assertEqual(
                events.compose_events([entry]), dp_accounting.NoOpDpEvent()
            )

    def test_composition_keeps_every_step(self):
        entries = [
            entries_lib.LedgerEntry(_POISSON, 1.5, 7),
            entries_lib.LedgerEntry(_UNKNOWN, 2.0, 3),
        ]
        composed = events.compose_events(iter(entries))
        self.assertEqual(
            composed,
            dp_accounting.ComposedDpEvent(
                [events.entry_event(entry) for entry in entries]
            ),
        )
