"""Puts this folder's helper modules within reach of its tests."""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parent))
