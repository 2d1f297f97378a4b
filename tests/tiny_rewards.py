"""Rewards of the small test runs, named as `file.py:function`."""

import os
import time


def vowels(prompts, completions, **columns):
    """The number of vowels: a random model writes some, so groups differ and gradients are not zero."""
    return [float(sum(letter in "aeiouAEIOU" for letter in text)) for text in completions]


def vowels_of_an_answer(completions, **columns):
    """The same for conversations."""
    return vowels([], [completion[-1]["content"] for completion in completions])


def counted(prompts, completions, **columns):
    """The same, and a line for each call in the file that TINY_REWARDS_LOG names; each takes some seconds, if
    TINY_REWARDS_SECONDS says so."""
    time.sleep(float(os.environ.get("TINY_REWARDS_SECONDS", "0")))
    with open(os.environ["TINY_REWARDS_LOG"], "a") as file:
        file.write(f"{len(prompts)} {prompts[0]}\n")
    return vowels(prompts, completions, **columns)


def needs_a_column(prompts, completions, solution, **columns):
    """A reward for data that have a column `solution`."""
    return [0.0 for _ in completions]


def brevity(completions, **columns):
    """The shorter the better."""
    return [-0.1 * len(text) for text in completions]
