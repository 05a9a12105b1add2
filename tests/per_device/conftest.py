import keras
import pytest


@pytest.fixture(autouse=True)
def _seeded_and_without_trial(without_trial):
    """It is not what is tested, and it takes half of the time."""
    keras.utils.set_random_seed(0)
