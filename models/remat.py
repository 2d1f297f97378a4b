"""Gradient checkpointing: what the backward pass saves of a layer's forward pass, and what it recomputes (Chen et al.
2016, arXiv:1604.06174).

A layer names its values where they are computed; a policy decides by name.
"""

from collections.abc import Callable
from typing import Literal

import jax
from jax import Array
from jax.ad_checkpoint import checkpoint_name

Remat = Literal["none", "dots", "full", "offload"]

_policies = jax.checkpoint_policies


def block_input(x: Array) -> Array:
    """Name x [B,T,D] as a layer's input: the only value that `full` and `offload` save."""
    return checkpoint_name(x, "block_input")


def worth_keeping(x: Array) -> Array:
    """Name the result of a product or of attention, which is expensive to compute: `dots` saves it, too."""
    return checkpoint_name(x, "dots")


def recomputing(block: Callable, remat: Remat) -> Callable:
    """`block` with a backward pass that saves everything (`none`), the results of products (`dots`), the layer's input
    (`full`), or that input in host memory (`offload`), and recomputes the rest."""
    if remat == "none":
        return block
    if remat == "full":
        return jax.checkpoint(block)
    if remat == "dots":
        return jax.checkpoint(block, policy=_policies.save_only_these_names("dots"))
    to_host = _policies.save_and_offload_only_these_names(
        names_which_can_be_saved=[],
        names_which_can_be_offloaded=["block_input"],
        offload_src="device",
        offload_dst="pinned_host",
    )
    return jax.checkpoint(block, policy=to_host)
