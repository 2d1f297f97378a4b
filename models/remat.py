"""What the backward pass finds of a layer's forward pass, and what it computes once more (Chen et al. 2016,
arXiv:1604.06174).

A layer names its values where they arise; a policy says what becomes of the names.
"""

from collections.abc import Callable
from typing import Literal

import jax
from jax import Array
from jax.ad_checkpoint import checkpoint_name

Remat = Literal["none", "dots", "full", "offload"]

_policies = jax.checkpoint_policies


def block_input(x: Array) -> Array:
    """x [B,T,D] as a layer takes it: all that `full` and `offload` keep."""
    return checkpoint_name(x, "block_input")


def worth_keeping(x: Array) -> Array:
    """The outcome of a product or of attention, dear to compute: kept by `dots`, too."""
    return checkpoint_name(x, "dots")


def recomputing(block: Callable, remat: Remat) -> Callable:
    """`block` with a backward pass that keeps everything (`none`), the products' outcomes (`dots`), the layer's input
    (`full`), or that input in the host's memory (`offload`), and computes the rest once more."""
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
