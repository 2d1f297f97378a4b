"""From a scored rollout to the mini-batches of its updates: NumPy arrays, whole on every host."""

import math
from dataclasses import dataclass

import numpy as np

from grpo_jax.learner.groups import SampledGroups
from grpo_jax.learner.microbatches import widths

_SHORTEST = 16  # smallest width: completions are cut to the least power of two that holds the longest


@dataclass(frozen=True, kw_only=True)
class Passes:
    """How a rollout becomes optimizer updates."""

    num_iterations: int = 1
    num_minibatches: int = 1
    micro_batch_size: int = 0  # rows; 0: the whole mini-batch
    gradient_samples: int = 0  # train on the first so many completions of each prompt; 0: all
    mask_truncated: bool = False  # leave out completions that were cut at the limit
    skip_zero_advantages: bool = True  # skip micro-batches whose rows have no gradient
    length_buckets: int = 1  # widths that micro-batches may have
    share_prompts: bool = False  # compute the prompt once for its group
    carries_over: bool = False  # some groups may have been sampled by older weights

    @property
    def updates(self) -> int:
        """Optimizer updates per rollout."""
        return self.num_iterations * self.num_minibatches

    def rows(self, prompts: int, samples: int) -> int:
        """Rows to train on in a rollout of `samples` completions for each of `prompts` prompts."""
        return prompts * (self.gradient_samples or samples)

    def alike(self, samples: int, micro_rows: int, shards: int) -> int:
        """Rows after one another, in each of `shards` parts of a micro-batch, that have one prompt to share."""
        carry = self.gradient_samples or samples
        if not self.share_prompts or carry % self.num_minibatches or micro_rows % shards:
            return 1
        return math.gcd(carry // self.num_minibatches, micro_rows // shards)

    def micro_batches(self, rows: int) -> int:
        """Micro-batches per mini-batch, for a rollout with `rows` rows to train on."""
        mini = rows // self.num_minibatches
        return mini // (self.micro_batch_size or mini)


@dataclass(frozen=True, kw_only=True)
class MiniBatch:
    """The rows of one update, in the order in which micro-batches take them."""

    prompts: np.ndarray  # [B,Tp] int32
    prompt_lengths: np.ndarray  # [B] int32
    tokens: np.ndarray  # [B,Tc] int32
    mask: np.ndarray  # [B,Tc] float32
    logprobs: np.ndarray  # [B,Tc] float32
    advantages: np.ndarray  # [B] or [B,Tc] float32
    on_policy: np.ndarray | None  # [B] bool
    mean_tokens: np.float32
    ends: (
        np.ndarray
    )  # [K] int32: micro-batches before ends[k] fit the k-th width, those after the last are left out


def minibatches(
    groups: SampledGroups, advantages: np.ndarray, passes: Passes, *, skip: bool, rows_together: int = 1
) -> list[MiniBatch]:
    """The mini-batches of a rollout with advantages [P,G], [P,G,1] or [P,G,Tc]: row b in mini-batch
    b % num_minibatches. `skip`: rows with advantage 0 come last, to be left out. `rows_together`: how many
    rows of one prompt stay together (`Passes.alike`)."""
    rows = _rows(groups, advantages, passes)
    n, micro_batches = passes.num_minibatches, passes.micro_batches(len(rows.tokens))
    mean_tokens = np.float32(rows.mask.sum(dtype=np.float64) / n)
    every_nth = lambda i: np.arange(i, len(rows.tokens), n)
    return [
        _arranged(rows, every_nth(i), mean_tokens, passes, micro_batches, rows_together, skip)
        for i in range(n)
    ]


def _rows(groups: SampledGroups, advantages: np.ndarray, passes: Passes) -> MiniBatch:
    """All rows that carry gradient as one mini-batch, B = P * G; prompts and completions cut to a bucket of the
    longest."""
    prompts, rollout = groups.batch, groups.rollout
    P, G, Tc = rollout.tokens.shape
    carry = passes.gradient_samples or G
    width = bucket(int(rollout.lengths[:, :carry].max()), Tc)
    prompt_width = bucket(int(prompts.lengths.max()), prompts.tokens.shape[1])
    flat = lambda x: np.asarray(x[:, :carry, :width]).reshape(P * carry, -1)
    per_row = lambda x: np.repeat(x, carry, axis=0)
    mask = flat(rollout.action_mask).astype(np.float32)
    if passes.mask_truncated:
        mask *= rollout.finished[:, :carry].reshape(-1, 1)
    return MiniBatch(
        prompts=per_row(prompts.tokens[:, :prompt_width]),
        prompt_lengths=per_row(prompts.lengths),
        tokens=flat(rollout.tokens),
        mask=mask,
        logprobs=flat(rollout.logprobs),
        advantages=_advantages(advantages[:, :carry], P * carry, width),
        on_policy=per_row(groups.on_policy) if passes.carries_over else None,
        mean_tokens=np.float32(0),
        ends=np.zeros(1, np.int32),
    )


def _advantages(advantages: np.ndarray, rows: int, width: int) -> np.ndarray:
    """[B], or [B,width] where tokens have advantages of their own."""
    if advantages.ndim == 2 or advantages.shape[-1] == 1:
        return advantages.reshape(rows).astype(np.float32)
    return advantages[..., :width].reshape(rows, -1).astype(np.float32)


def _arranged(
    rows: MiniBatch,
    which: np.ndarray,
    mean_tokens: np.float32,
    passes: Passes,
    micro_batches: int,
    rows_together: int,
    skip: bool,
) -> MiniBatch:
    """The mini-batch of the rows `which`, in the order in which micro-batches take them: micro-batch m the rows b with
    b % micro_batches == m, so that it has rows of every shard of a mesh. So
    many `rows_together` follow one another as before."""
    mask, advantages = rows.mask[which], rows.advantages[which]
    widest = np.array(widths(mask.shape[1], passes.length_buckets))
    ranks = _ranks(mask, advantages if skip else None, widest, rows_together)
    if skip or len(widest) > 1:
        order = np.argsort(ranks, kind="stable").reshape(micro_batches, -1)  # [M,B/M/rows_together]
    else:
        order = np.arange(len(ranks)).reshape(-1, micro_batches).T
    of_rows = (order[..., None] * rows_together + np.arange(rows_together)).reshape(
        micro_batches, -1
    )  # [M,B/M]
    needed = np.where(ranks < len(widest), ranks, -1)[order].max(-1)  # [M], -1: not at all
    ends = [((needed >= 0) & (needed <= rank)).sum() for rank in range(len(widest))]
    return _pick(rows, which[of_rows.T.ravel()], mean_tokens, np.array(ends, np.int32))


def _ranks(
    mask: np.ndarray, advantages: np.ndarray | None, widest: np.ndarray, rows_together: int
) -> np.ndarray:
    """[B/rows_together]: the smallest of the widths [K] that the rows fit; K where their `advantages` are all 0."""
    ranks = np.searchsorted(widest, _ends(mask).reshape(-1, rows_together).max(-1))
    if advantages is None:
        return ranks
    acts = (advantages != 0).reshape(len(mask), -1) & (mask != 0)
    return np.where(acts.reshape(len(ranks), -1).any(-1), ranks, len(widest))


def _ends(mask: np.ndarray) -> np.ndarray:
    """[B]: the position after the last 1 of each row of `mask` [B,Tc]; 0 where there is none."""
    return np.where(mask != 0, np.arange(1, mask.shape[1] + 1), 0).max(-1)


def _pick(rows: MiniBatch, which: np.ndarray, mean_tokens: np.float32, ends: np.ndarray) -> MiniBatch:
    return MiniBatch(
        prompts=rows.prompts[which],
        prompt_lengths=rows.prompt_lengths[which],
        tokens=rows.tokens[which],
        mask=rows.mask[which],
        logprobs=rows.logprobs[which],
        advantages=rows.advantages[which],
        on_policy=None if rows.on_policy is None else rows.on_policy[which],
        mean_tokens=mean_tokens,
        ends=ends,
    )


def bucket(longest: int, widest: int) -> int:
    """The smallest of 16, 32, 64, ..., `widest` that holds `longest`: padding that all rows share is not computed,
    and the number of compilations stays logarithmic."""
    return min(max(_SHORTEST, 1 << (longest - 1).bit_length()), widest)
