"""Metrics logged beside the loss, collected per row: the same for every split into micro-batches.

A micro-batch yields an array [B] for each figure; the rows of all of them are put together before anything is
divided. Rows that were not computed (see `batches.py`) hold zeros, and `computed` says which.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax import Array


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class RowSums:
    """Per-row values [B]: sums over tokens, single values, and extremes over tokens."""

    sums: dict[str, Array]
    least: dict[str, Array]
    most: dict[str, Array]
    computed: Array  # [B] bool

    def __or__(self, other: "RowSums") -> "RowSums":
        """Both, for the same rows."""
        return RowSums(
            self.sums | other.sums, self.least | other.least, self.most | other.most, self.computed
        )


def sum_tokens(x: Array, mask: Array) -> Array:
    """Sum over a row's tokens [B] of x [B,Tc], or [B,1] which stands for each of them."""
    return (jnp.where(mask > 0, x, 0.0)).sum(-1)


def extremes(x: Array, mask: Array) -> tuple[Array, Array]:
    """Least and largest [B] over a row's tokens of x [B,Tc] or [B,1]; infinities in a row without tokens."""
    return jnp.where(mask > 0, x, jnp.inf).min(-1), jnp.where(mask > 0, x, -jnp.inf).max(-1)


def token_mean(total: Array, mask: Array, rows: Array | None = None) -> Array:
    """The mean [] over all tokens from rows' sums [B]; of the rows given, [B] bool, alone."""
    tokens = mask.sum(-1) if rows is None else mask.sum(-1) * rows
    return total.sum() / jnp.maximum(tokens.sum(), 1.0)


def row_means(total: Array, mask: Array) -> Array:
    """Each row's own mean [B]; 0 in a row without tokens."""
    return total / jnp.maximum(mask.sum(-1), 1.0)


def clip_mean(total: Array, mask: Array, *, per_row: bool) -> Array:
    """The share [] of tokens, or of rows when a row has one ratio, from rows' counts of tokens [B]."""
    return row_means(total, mask).mean() if per_row else token_mean(total, mask)


def clip_metrics(low: Array, high: Array, mask: Array, *, per_row: bool) -> dict[str, Array]:
    """TRL's `clip_ratio/*` from rows' counts of clipped tokens [B]: means over tokens, or over rows when a row has
    one ratio, and the extremes of rows' means. Rows that were not computed have advantage 0 and clip nothing."""
    of_rows = {"low": row_means(low, mask), "high": row_means(high, mask)}
    mean = lambda total: clip_mean(total, mask, per_row=per_row)
    seen = (mask.sum(-1) > 0) | per_row
    return {
        "clip_ratio/low_mean": mean(low),
        "clip_ratio/high_mean": mean(high),
        "clip_ratio/region_mean": mean(low + high),
        "clip_ratio/low_min": _extreme(jnp.where(seen, of_rows["low"], jnp.inf).min()),
        "clip_ratio/high_max": _extreme(jnp.where(seen, of_rows["high"], -jnp.inf).max()),
    }


def _extreme(x: Array) -> Array:
    """An extreme [] over rows; 0, and not infinity, when there was none."""
    return jnp.where(jnp.isfinite(x), x, 0.0)


def sampling_rows(
    logprobs: Array, sampler_logprobs: Array | None, correction: Array, mask: Array, on_policy: Array | None
) -> RowSums:
    """The gap between the scorer [B,Tc] and the sampler, and the importance ratio ([B,Tc] or [B,1]) that corrects it.

    Rows that are not `on_policy` [B] count in neither: their sampler was another policy.
    """
    mask = mask if on_policy is None else mask * on_policy[:, None]
    computed = jnp.ones(len(mask), bool)
    if sampler_logprobs is None:
        return RowSums({}, {}, {}, computed)
    gap = jnp.where(mask > 0, jnp.abs(logprobs - sampler_logprobs), 0.0)
    least, most = extremes(correction, mask)
    per_row = correction.shape[-1] == 1 != mask.shape[-1]
    counted = (mask.sum(-1) > 0).astype(jnp.float32) if per_row else mask.sum(-1)
    ratio = correction[:, 0] * counted if per_row else sum_tokens(correction, mask)
    return RowSums(
        {
            "gap": gap.sum(-1),
            "gap_counted": mask.sum(-1),
            "sampler_ratio": ratio,
            "sampler_counted": counted,
        },
        {"sampler_ratio": least},
        {"gap": gap.max(-1), "sampler_ratio": most},
        computed,
    )


def sampling_metrics(rows: RowSums) -> dict[str, Array]:
    """TRL's `sampling/*`: rounding noise in float32, a measure of mismatch otherwise; not a number where no row was
    computed."""
    if "gap" not in rows.sums:
        return {}
    ratio, counted = rows.sums["sampler_ratio"], rows.sums["sampler_counted"]
    found = {
        "sampling/sampling_logp_difference/mean": rows.sums["gap"].sum()
        / jnp.maximum(rows.sums["gap_counted"].sum(), 1.0),
        "sampling/sampling_logp_difference/max": _extreme(rows.most["gap"].max()),
        "sampling/importance_sampling_ratio/min": _extreme(rows.least["sampler_ratio"].min()),
        "sampling/importance_sampling_ratio/mean": ratio.sum() / jnp.maximum(counted.sum(), 1.0),
        "sampling/importance_sampling_ratio/max": _extreme(rows.most["sampler_ratio"].max()),
    }
    return {name: jnp.where(rows.computed.any(), value, jnp.nan) for name, value in found.items()}
