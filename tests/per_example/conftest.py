import pathlib
import sys

# The oracle is shared by the tests of this folder, which is not a package.
sys.path.insert(0, str(pathlib.Path(__file__).parent))
