"""Penalties for repetition and length. Those that count tokens have TRL 1.16's names, arguments and values.

The `get_` functions return objects rather than closures, so that they can be pickled and run in a worker process. Each
comes as a factory with TRL's signature, its object, and a named reward with the same options.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from grpo_jax.rewards.functions.scripts import words
from grpo_jax.rewards.functions.text import text_of


def get_repetition_penalty_reward(ngram_size: int = 3, max_penalty: float = -1.0) -> "RepetitionPenalty":
    """A penalty that goes from 0 to `max_penalty` with the share of repeated n-grams of tokens.

    Args:
        ngram_size: tokens of an n-gram; at least 1.
        max_penalty: 0 or less.

    r = max_penalty (1 - distinct n-grams / all n-grams); 0 if there is no n-gram.
    arXiv:2502.03373, appendix C.2.
    """
    if ngram_size < 1:
        raise ValueError(f"ngram_size = {ngram_size}: an n-gram has at least 1 token")
    if max_penalty > 0:
        raise ValueError(f"max_penalty = {max_penalty} would reward repetition; give 0 or less")
    return RepetitionPenalty(ngram_size, max_penalty)


@dataclass(frozen=True)
class RepetitionPenalty:
    """See `get_repetition_penalty_reward`."""

    ngram_size: int
    max_penalty: float
    __name__ = "repetition_penalty_reward"

    def __call__(self, completion_ids: Sequence[Any], **columns: Any) -> list[float]:
        """One float in [max_penalty, 0] per row."""
        return [self.max_penalty * share if (share := self.repeated(ids)) else 0.0 for ids in completion_ids]

    def repeated(self, ids: Sequence[Any]) -> float:
        """The share of n-grams that occur earlier in the row as well."""
        n = self.ngram_size
        ngrams = [tuple(ids[i : i + n]) for i in range(len(ids) - n + 1)]
        return 1.0 - len(set(ngrams)) / len(ngrams) if ngrams else 0.0


def repetition_penalty_reward(
    completion_ids: Sequence[Any], *, ngram_size: int = 3, max_penalty: float = -1.0, **columns: Any
) -> list[float]:
    """`get_repetition_penalty_reward` as a named reward with options."""
    return get_repetition_penalty_reward(ngram_size, max_penalty)(completion_ids)


def repetition(
    completions: Sequence[Any],
    *,
    ngram_size: int = 3,
    max_penalty: float = -1.0,
    faithful: bool = False,
    **columns: Any,
) -> list[float]:
    """The repetition penalty on n-grams of lower-case words, after Open-R1; a Chinese or Japanese character is a word.

    `scripts.py` defines what a word is: programs and formulas, which repeat for good reason, contain none.

    Args:
        faithful: as in Open-R1, words are separated by white space. This catches repeated numbers and formulas, but
            also penalises formulas that repeat for good reason, and takes a line of Chinese for one word.
    """
    spelled = (lambda text: text.split()) if faithful else (lambda text: [word for word, _ in words(text)])
    small = [[word.lower() for word in spelled(text_of(c))] for c in completions]
    return get_repetition_penalty_reward(ngram_size, max_penalty)(small)


def get_soft_overlong_punishment(max_completion_len: int, soft_punish_cache: int) -> "SoftOverlongPunishment":
    """A penalty of up to -1 for completions that come near the length limit.

    Args:
        max_completion_len: the limit, in tokens.
        soft_punish_cache: tokens below the limit over which it falls from 0 to -1; 0: -1 beyond the limit only.

    The formula is in `overlong.py` (DAPO, arXiv:2503.14476, equation 13). The setting `overlong_buffer` does the same
    inside the trainer.
    """
    if max_completion_len < 1 or soft_punish_cache < 0:
        raise ValueError(
            f"max_completion_len = {max_completion_len}, soft_punish_cache = {soft_punish_cache}: "
            "give at least 1 and at least 0"
        )
    return SoftOverlongPunishment(max_completion_len, soft_punish_cache)


@dataclass(frozen=True)
class SoftOverlongPunishment:
    """See `get_soft_overlong_punishment`."""

    max_completion_len: int
    soft_punish_cache: int
    __name__ = "soft_overlong_punishment_reward"

    def __call__(self, completion_ids: Sequence[Any], **columns: Any) -> list[float]:
        """One float in [-1, 0] per row."""
        from grpo_jax.rewards.functions.overlong import soft_overlong  # imported here because it needs numpy

        lengths = [len(ids) for ids in completion_ids]
        if not self.soft_punish_cache:
            return [-1.0 if n > self.max_completion_len else 0.0 for n in lengths]
        return soft_overlong(lengths, self.max_completion_len, self.soft_punish_cache).tolist()


def soft_overlong_punishment_reward(
    completion_ids: Sequence[Any],
    *,
    max_completion_len: int = 20480,
    soft_punish_cache: int = 4096,
    **columns: Any,
) -> list[float]:
    """`get_soft_overlong_punishment` as a named reward with options; the defaults are DAPO's."""
    return get_soft_overlong_punishment(max_completion_len, soft_punish_cache)(completion_ids)
