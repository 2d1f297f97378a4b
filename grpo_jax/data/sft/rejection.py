"""Selects the sampled completions to learn from: verified, complete, no duplicates. Counts why others are dropped."""

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

Candidate = dict[str, Any]
"""A sample: prompt (text or messages), text (the prompt as the model read it), completion, finished, tokens, rewards
(name -> number, or None where it does not apply), and its provenance."""


@dataclass(frozen=True)
class Standards:
    """What a completion must satisfy to be kept.

    thresholds: reward -> the least value.
    keep_per_prompt: the most completions of a prompt; 0 for all.
    keep_tokens: the most tokens of a completion; 0 for any number.
    normalized: drop completions that equal another one once normalized.
    """

    thresholds: Mapping[str, float]
    keep_per_prompt: int = 0
    keep_tokens: int = 0
    normalized: bool = True


def select(candidates: Iterable[Candidate], standards: Standards) -> tuple[list[Candidate], dict[str, int]]:
    """The kept candidates in order, and reason -> number of dropped ones. A candidate counts for the first reason that
    applies. Of duplicates, the first is kept."""
    kept: list[Candidate] = []
    dropped: Counter[str] = Counter()
    seen: set[tuple[str, str]] = set()
    alike: set[tuple[str, str]] = set()
    of_prompt: Counter[str] = Counter()
    for one in candidates:
        text, exact = one["text"], (one["text"], one["completion"])
        same = (text, normalized(one["completion"]))
        reason = fault(one, standards)
        if reason is None and exact in seen:
            reason = "duplicate"
        if reason is None and standards.normalized and same in alike:
            reason = "near duplicate"
        if reason is None and standards.keep_per_prompt and of_prompt[text] >= standards.keep_per_prompt:
            reason = "enough of the prompt"
        if reason is not None:
            dropped[reason] += 1
            continue
        seen.add(exact)
        alike.add(same)
        of_prompt[text] += 1
        kept.append(one)
    return kept, dict(dropped)


def fault(one: Candidate, standards: Standards) -> str | None:
    """Why a sample cannot be kept, whatever the others are; None if it can."""
    if not one["finished"]:
        return "truncated"
    if not one["completion"].strip():
        return "empty"
    for name, least in standards.thresholds.items():
        value = one["rewards"].get(name)
        if value is None:
            return f"{name} does not apply"
        if value < least:
            return f"{name} below {least:g}"
    if standards.keep_tokens and one["tokens"] > standards.keep_tokens:
        return "too long"
    return None


def normalized(text: str) -> str:
    """The text in Unicode normal form, without case, and with single spaces in place of punctuation and white space.
    Numbers and operators stay, because they decide what a formula means."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    return " ".join(re.sub(r"(?<!\d)\.|\.(?!\d)|[^\w.+\-*/=<>^%]+", " ", folded).split())
