"""Causal attention over whole rows, with the device's kernel.

`xla` runs everywhere and materializes the scores [B,N,T,T] of a layer. `cudnn` (CUDA) and `splash` (TPU) compute them
in blocks, and have gradients of their own (Dao et al. 2022, arXiv:2205.14135). All are exact and differ by rounding
only.
"""

from typing import Literal

import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import PartitionSpec

from grpo_jax.errors import UserError
from grpo_jax.sharding.mesh import ROWS

Kernel = Literal["auto", "xla", "cudnn", "splash"]
PLATFORMS = {"cudnn": "gpu", "splash": "tpu"}  # kernel -> the platform it needs

_LANES = 128  # splash attention needs row lengths that are multiples of this
_BLOCK = 512  # the most tokens of a block: 4 arrays of [512,512] float32 fit easily into a core's own memory


def causal_attention(
    q: Array, k: Array, v: Array, kernel: Kernel = "auto", segments: Array | None = None
) -> Array:
    """Attention [B,T,N,H] of q [B,T,N,H] over k, v [B,T,K,H]; token t attends to tokens 0..t of its row.

    With `segments` [B,T] int32 (packed rows), only to tokens with the same number. `cudnn` then reads a mask [B,1,T,T]
    in half precision and requires an even T; the others need no more memory than without.
    """
    chosen = _best(q) if kernel == "auto" else kernel
    if chosen == "cudnn" and _partly_manual():
        chosen = "xla"
    if chosen == "splash":
        return _over_mesh(splash, q, k, v, segments)
    mask = None if segments is None else (segments[:, :, None] == segments[:, None, :])[:, None]
    return jax.nn.dot_product_attention(q, k, v, mask=mask, is_causal=True, implementation=chosen)


def check_kernel(kernel: Kernel, platform: str, dtype: str) -> None:
    """Raise UserError if this platform or compute dtype does not support the kernel."""
    needed = PLATFORMS.get(kernel, platform)
    if needed != platform:
        raise UserError(
            f"attention = {kernel}: the devices are of kind {platform}, not {needed}; use auto or xla"
        )
    if kernel == "cudnn" and dtype == "float32":
        raise UserError(
            "attention = cudnn: it computes in half precision only, not in dtype float32; use auto or xla"
        )


def splash(q: Array, k: Array, v: Array, segments: Array | None = None, *, interpret: bool = False) -> Array:
    """JAX's splash attention. Rows are padded on the right to whole blocks, to which no earlier token attends.

    `interpret` runs it on CPU, for tests.
    """
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernels
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

    T, N, H = q.shape[1:]
    width = -(-T // _LANES) * _LANES
    block = next(n for n in range(min(_BLOCK, width), 0, -_LANES) if width % n == 0)
    attend = kernels.make_splash_mha(
        masks.MultiHeadMask([masks.CausalMask((width, width))] * N),
        block_sizes=kernels.BlockSizes(*(block,) * 8),  # of the forward pass and both backward passes
        head_shards=1,
        q_seq_shards=1,
        interpret=interpret,
    )
    heads_first = lambda x: jnp.pad(x, [(0, 0), (0, width - T), (0, 0), (0, 0)]).swapaxes(1, 2)
    scaled = q * jnp.asarray(H**-0.5, q.dtype)
    ids = None
    if segments is not None:
        # Padding attends to itself: a softmax over nothing is undefined.
        padded = jnp.pad(segments, [(0, 0), (0, width - T)], constant_values=-1)
        ids = kernels.SegmentIds(padded, padded)
    return jax.vmap(attend)(*map(heads_first, (scaled, k, v)), ids).swapaxes(1, 2)[:, :T]


def _best(q: Array) -> Literal["xla", "cudnn", "splash"]:
    """The kernel for `auto`, by the platform of the current mesh, whose devices may exist or only be described.

    Decided while tracing rather than by `jax.lax.platform_dependent`, which traces every branch: cuDNN's cannot be
    traced without its library. Full precision uses XLA, because the other kernels do not compute in it.
    """
    device = jax.sharding.get_abstract_mesh().abstract_device
    platform = "cpu" if device is None else device.platform
    half = q.dtype in (jnp.bfloat16, jnp.float16)
    cudnn_takes = half and q.shape[-1] % 8 == 0 and q.shape[-1] <= 128
    splash_pays = half and q.shape[1] >= _LANES  # shorter rows would be mostly padding
    if platform == "gpu" and cudnn_takes:
        return "cudnn"
    return "splash" if platform == "tpu" and splash_pays else "xla"


def _partly_manual() -> bool:
    """Whether some but not all axes of the mesh are manual (`jax.shard_map`), as in a rollout with `tensor` > 1. There
    cuDNN's attention, which has partitioning rules of its own, does not compile (JAX 0.10)."""
    mesh = jax.sharding.get_abstract_mesh()
    return bool(mesh.manual_axes) and set(mesh.manual_axes) != set(mesh.axis_names)


def _over_mesh(attend, q: Array, k: Array, v: Array, segments: Array | None) -> Array:
    """`attend`, run on every device for its own rows and heads, because the compiler cannot partition a kernel."""
    mesh = jax.sharding.get_abstract_mesh()
    left = [axis for axis in mesh.axis_names if axis not in mesh.manual_axes]
    if not left:
        return attend(q, k, v, segments)
    rows = tuple(axis for axis in ROWS if axis in left)
    heads = "tensor" if "tensor" in left and k.shape[2] % mesh.shape["tensor"] == 0 else None
    spec = PartitionSpec(rows or None, None, heads)
    specs = (spec, spec, spec, None if segments is None else PartitionSpec(rows or None, None))
    return jax.shard_map(attend, in_specs=specs, out_specs=spec, axis_names=set(left), check_vma=False)(
        q, k, v, segments
    )
