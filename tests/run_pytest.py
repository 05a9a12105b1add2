"""Runs pytest on the paths it is given, as the main program of py_test."""

import sys

import pytest

if __name__ == "__main__":
    sys.exit(pytest.main(sys.argv[1:]))
