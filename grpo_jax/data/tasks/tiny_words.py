"""Common parts of the tiny tasks. Their models have one token for each symbol of the task: a number, a tag or a phrase.
Worked examples reason step by step, and some of them badly.

A tiny task is a module with NAME, SYMBOLS, `options_of`, `make_tiny_rows` and `worked_examples`; its rows have a column
`size`, the size of the problem. `demo/cold_start.py` makes starting models for the tasks that it lists.
"""

import random
from collections.abc import Sequence

TAGS = ("<think>", "</think>", "<answer>", "</answer>")
LARGEST = 99
"""The largest number in a problem or its solution: each number is one symbol."""
NUMBERS = tuple(str(n) for n in range(LARGEST + 1))


def shuffled(rng: random.Random, items: Sequence) -> list:
    """The items in random order. Python guarantees the results of `random()` across versions, not of `shuffle`."""
    return [item for _, item in sorted((rng.random(), item) for item in items)]
