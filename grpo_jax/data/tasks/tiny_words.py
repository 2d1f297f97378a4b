"""What the tiny tasks have in common. Their models know a task's own symbols and nothing else, one a number, a tag or
a whole phrase; their worked examples think aloud, and some of them badly.

A tiny task is a module with NAME, SYMBOLS, `options_of`, `make_tiny_rows` and `worked_examples`; its rows have a
column `size`, which says how large the problem is. `demo.py` makes starting models for the tasks that it lists.
"""

import random
from collections.abc import Sequence

TAGS = ("<think>", "</think>", "<answer>", "</answer>")
LARGEST = 99
"""No number in a problem or its solution may be larger: each is one symbol."""
NUMBERS = tuple(str(n) for n in range(LARGEST + 1))


def shuffled(rng: random.Random, items: Sequence) -> list:
    """Python promises that `random()` repeats across versions, not `shuffle`."""
    return [item for _, item in sorted((rng.random(), item) for item in items)]
