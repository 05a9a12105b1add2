import pathlib
import sys

import keras
import pytest

# The oracle is shared by the tests of this folder, which is not a package.
sys.path.insert(0, str(pathlib.Path(__file__).parent))


@pytest.fixture(autouse=True)
def _same_weights_every_time():
    """In half precision an output next to a kink can fall on either side."""
    keras.utils.set_random_seed(0)
