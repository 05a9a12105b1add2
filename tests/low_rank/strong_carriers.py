"""Carriers to many digits, for tests that ask which matrix they follow."""

from tf_dpfp import low_rank

_ROUNDS = 30


def patch(monkeypatch) -> None:
    """Runs the power method until it has converged."""
    one_round = low_rank.leading_carriers

    def converged(target, starts):
        carriers = starts
        for _ in range(_ROUNDS):
            carriers = one_round(target, carriers)
        return carriers

    monkeypatch.setattr(low_rank, "leading_carriers", converged)
