"""Splits a mini-batch into micro-batches inside a program, loops over them, and joins the results."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from grpo_jax.sharding.constraints import over_rows


def split(tree: Any, parts: int) -> Any:
    """Arrays [B,...] as [parts,B/parts,...], row b in part b % parts: each part takes rows from every shard of the
    mesh, and no row moves to another device. Scalars are repeated."""

    def one(x: Array) -> Array:
        if x.ndim == 0:
            return jnp.broadcast_to(x, (parts,))
        return over_rows(x.reshape(-1, parts, *x.shape[1:]).swapaxes(0, 1), axis=1)

    return jax.tree.map(one, tree)


def joined(parts: Array) -> Array:
    """[parts,B/parts,...] as [B,...], in the order that `split` took apart."""
    return parts.swapaxes(0, 1).reshape(-1, *parts.shape[2:])


def widths(longest: int, count: int) -> list[int]:
    """Widths of completions that micro-batches may have, each half of the next, the last `longest`."""
    halves = [max(longest >> halved, 1) for halved in range(count)]
    return sorted(set(halves))


def narrowed(tree: Any, longest: int, width: int) -> Any:
    """The arrays of a micro-batch whose completions end within `width`: [b,longest] as [b,width], and whole rows
    [b,prompt + longest] as [b,prompt + width]."""
    cut = lambda x: x[:, : x.shape[1] - longest + width] if x.ndim == 2 and x.shape[1] >= longest else x
    return jax.tree.map(cut, tree)


def gone_through(body: Callable, start: Any, parts: int, longest: int, ends: Array | None) -> Any:
    """`body(width, i, carry)` for micro-batches i, from `start`: all `parts` of them in full width, or, with `ends`
    [K], those before ends[0] in the least of K widths, those from there to ends[1] in the next, and so on.

    The loops' lengths are data: the number of rows of each width causes no new compilation.
    """
    if ends is None:
        return jax.lax.fori_loop(0, parts, lambda i, carry: body(longest, i, carry), start)
    carry, begin = start, jnp.int32(0)
    for width, end in zip(widths(longest, len(ends)), ends, strict=True):
        carry = jax.lax.fori_loop(begin, end, lambda i, carry, width=width: body(width, i, carry), carry)
        begin = end
    return carry
