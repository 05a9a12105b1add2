import keras
import pytest


@pytest.fixture(autouse=True)
def _same_weights_every_time():
    """In half precision an output next to a kink can fall on either side."""
    keras.utils.set_random_seed(0)
