"""Privacy accounting: ledger entries, their epsilon, and the statement."""

from tf_dpfp.accounting.bands import compare_bands
from tf_dpfp.accounting.calibration import calibrate_noise_multiplier
from tf_dpfp.accounting.calibration import least_noise
from tf_dpfp.accounting.calibration import noise_within
from tf_dpfp.accounting.claimed import claimed_epsilon
from tf_dpfp.accounting.entries import LedgerEntry
from tf_dpfp.accounting.entries import adjacency_of
from tf_dpfp.accounting.epsilon import MIN_PLD_DELTA
from tf_dpfp.accounting.epsilon import check_delta
from tf_dpfp.accounting.epsilon import check_epsilon
from tf_dpfp.accounting.epsilon import compute_epsilon
from tf_dpfp.accounting.epsilon import max_steps
from tf_dpfp.accounting.events import compose_events
from tf_dpfp.accounting.joint import BudgetSplit
from tf_dpfp.accounting.joint import joint_noise_multiplier
from tf_dpfp.accounting.joint import other_noise_multiplier
from tf_dpfp.accounting.joint import split_budget
from tf_dpfp.accounting.joint import split_contributions
from tf_dpfp.accounting.ledger_rows import decode_rows
from tf_dpfp.accounting.ledger_rows import encode_rows
from tf_dpfp.accounting.ledger_rows import greater
from tf_dpfp.accounting.ledger_rows import missing
from tf_dpfp.accounting.paragraphs import Paragraph
from tf_dpfp.accounting.paragraphs import round_up
from tf_dpfp.accounting.persons import refuse_mixed
from tf_dpfp.accounting.record import Record
from tf_dpfp.accounting.releases import Adjacency
from tf_dpfp.accounting.releases import BandedPersonSums
from tf_dpfp.accounting.releases import BandedSums
from tf_dpfp.accounting.releases import EndToEnd
from tf_dpfp.accounting.releases import Evaluation
from tf_dpfp.accounting.releases import Joint
from tf_dpfp.accounting.releases import Labels
from tf_dpfp.accounting.releases import PersonEvaluation
from tf_dpfp.accounting.releases import PersonRepresentations
from tf_dpfp.accounting.releases import PersonSums
from tf_dpfp.accounting.releases import Release
from tf_dpfp.accounting.releases import Representations
from tf_dpfp.accounting.releases import Sums
from tf_dpfp.accounting.releases import ViewSums
from tf_dpfp.accounting.samplings import CyclicPoissonSampling
from tf_dpfp.accounting.samplings import EveryExample
from tf_dpfp.accounting.samplings import EveryLabel
from tf_dpfp.accounting.samplings import PoissonSampling
from tf_dpfp.accounting.samplings import Sampling
from tf_dpfp.accounting.samplings import UnknownSampling
from tf_dpfp.accounting.samplings import WithoutReplacement
from tf_dpfp.accounting.searches import RUNS
from tf_dpfp.accounting.searches import Search
from tf_dpfp.accounting.statement import paragraphs_of
from tf_dpfp.accounting.statement import statement as privacy_statement
from tf_dpfp.accounting.statement import written
from tf_dpfp.accounting.table import merge
from tf_dpfp.accounting.tf_privacy import tf_privacy_statement
from tf_dpfp.accounting.tradeoff import MembershipAttacks
from tf_dpfp.accounting.tradeoff import has_losses
from tf_dpfp.accounting.tradeoff import membership_attacks
from tf_dpfp.accounting.tradeoff import unlimited

# Public. The other names are for the other folders of the package.
__all__ = [
    "BandedPersonSums",
    "BandedSums",
    "CyclicPoissonSampling",
    "EndToEnd",
    "Evaluation",
    "EveryExample",
    "EveryLabel",
    "Joint",
    "Labels",
    "LedgerEntry",
    "MembershipAttacks",
    "PersonEvaluation",
    "PersonRepresentations",
    "PersonSums",
    "PoissonSampling",
    "Representations",
    "Search",
    "Sums",
    "UnknownSampling",
    "ViewSums",
    "WithoutReplacement",
    "calibrate_noise_multiplier",
    "claimed_epsilon",
    "compare_bands",
    "compute_epsilon",
    "max_steps",
    "membership_attacks",
]
