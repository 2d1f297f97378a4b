"""Attention while decoding: the two-part einsum beside the kernels that ship with JAX, without the hardware.

    python benchmarks/decode_kernels.py > decode_kernels.json

Whether a kernel compiles ahead of time for the head layouts of Qwen2.5, and by formula the bytes of memory that each
way moves for the attention of one token of every row, over all layers, in bfloat16:

    einsum   the prompt's keys and values once for its G rows, the ring of a row's own slots whole, and the scores in
             float32 twice written and twice read (before and after the softmax), where the compiler keeps them apart
    kernel   keys and values of prompt and completion once for each row, of those that are filled; no scores

A kernel that can give its softmax's maximum and sum could do a row's own part alone, beside the einsum for the prompt
(`joined`). GPU: jax.experimental.pallas.ops.gpu.decode_attention (gives them). TPU: ops.tpu.paged_attention (does not).
"""

import argparse
import json
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from grpo_jax.models.config import PUBLISHED, ModelConfig
from grpo_jax.rollout.row_table import ring_slots
from grpo_jax.sharding.targets import compiler_options, topology_mesh

ROWS, PAGE = 128, 64  # rows of a batch; tokens of a page
CASES = (
    (8, 512),
    (16, 512),
    (8, 1024),
    (8, 2048),
    (8, 4096),
    (16, 16384),
)  # completions a prompt; their tokens


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shapes", nargs="+", default=["0.5b", "1.5b", "3b", "7b"], choices=list(PUBLISHED))
    args = parser.parse_args()
    kernels = {"h200:1": gpu_kernel, "v5e:1x1": tpu_kernel}
    compiled = {
        target: {name: outcome(target, kernel, PUBLISHED[name]) for name in args.shapes}
        for target, kernel in kernels.items()
    }
    moved = [bytes_moved(PUBLISHED["1.5b"], *case) for case in CASES]
    print(json.dumps({"jax": jax.__version__, "compiled": compiled, "gib_a_token_1.5b": moved}, indent=2))


def outcome(target: str, kernel: Any, cfg: ModelConfig) -> str:
    """`compiles`, or the first line of what the compiler says."""
    mesh = topology_mesh(target)
    here = NamedSharding(mesh, PartitionSpec())
    array = lambda dtype, *shape: jax.ShapeDtypeStruct(shape, dtype, sharding=here)
    try:
        with jax.set_mesh(mesh):
            function, arguments = kernel(cfg, array)
            jax.jit(function).lower(*arguments).compile(compiler_options(target))
    except Exception as error:  # whatever a kernel or a compiler raises is the outcome
        return f"{type(error).__name__}: {str(error).splitlines()[0][:150]}"
    return "compiles"


def gpu_kernel(cfg: ModelConfig, array: Any) -> tuple[Any, tuple]:
    """A row's own part, with what is needed to join it with another."""
    from jax.experimental.pallas.ops.gpu.decode_attention import gqa

    q = array(jnp.bfloat16, ROWS, cfg.num_heads, cfg.head_dim)
    kv = array(jnp.bfloat16, ROWS, 512, cfg.num_kv_heads, cfg.head_dim)
    attend = lambda q, k, v, n: gqa(q, k, v, kv_seq_len=n, return_residuals=True)
    return attend, (q, kv, kv, array(jnp.int32, ROWS))


def tpu_kernel(cfg: ModelConfig, array: Any) -> tuple[Any, tuple]:
    """Prompt and completion of each row."""
    from jax.experimental.pallas.ops.tpu.paged_attention import paged_attention

    q = array(jnp.bfloat16, ROWS, cfg.num_heads, cfg.head_dim)
    pages = array(jnp.bfloat16, cfg.num_kv_heads, ROWS * 16, PAGE, cfg.head_dim)
    attend = lambda *given: paged_attention(*given, pages_per_compute_block=8)
    return attend, (q, pages, pages, array(jnp.int32, ROWS), array(jnp.int32, ROWS, 16))


def bytes_moved(cfg: ModelConfig, samples: int, length: int, prompt: int = 512) -> dict[str, Any]:
    """GiB for one token of ROWS rows, on the average over completions of `length` tokens that all go on to the end."""
    token = 2 * cfg.num_layers * cfg.num_kv_heads * cfg.head_dim * 2
    scores = 4 * 4 * cfg.num_layers * cfg.num_heads
    ring = sum(ring_slots(t, length) for t in range(1, length + 1)) / length
    slots, filled = ROWS * ring, ROWS * (length + 1) / 2
    once, each = ROWS // samples * prompt, ROWS * prompt
    gib = lambda count: round(count / 2**30, 2)
    return {
        "samples": samples,
        "prompt": prompt,
        "length": length,
        "slots": round(ring),
        "einsum": gib(token * (once + slots) + scores * (each + slots)),
        "kernel": gib(token * (each + filled)),
        "joined": gib(token * (once + filled) + scores * each),
    }


if __name__ == "__main__":
    main()
