import pytest


@pytest.fixture(autouse=True)
def _without_trial(without_trial):
    """It is not what is tested, and it takes half of the time."""
