"""Which sampled completions become rows to learn from: verified, whole, each once; and why the others do not."""

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
    """What a completion must be. Reasons are told in the order in which they are looked at."""

    thresholds: Mapping[str, float]
    keep_per_prompt: int = 0
    keep_tokens: int = 0
    normalized: bool = True


def select(candidates: Iterable[Candidate], standards: Standards) -> tuple[list[Candidate], dict[str, int]]:
    """The candidates that are kept, in their order, and how many were dropped for which reason; kept and dropped add
    up to all of them. Of several that are alike the first is kept, whatever prompt's repetition it belongs to."""
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
    """Why a sample is not kept, looked at by itself; None for a good one."""
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
    """The text in one form of Unicode, without case, and with single spaces in place of punctuation and white space;
    numbers and operators stay, since they decide what a sum says."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    return " ".join(re.sub(r"(?<!\d)\.|\.(?!\d)|[^\w.+\-*/=<>^%]+", " ", folded).split())
