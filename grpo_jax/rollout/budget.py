"""How many completions are under way at a time in a given memory. Formulas of shapes: nothing is compiled."""

from dataclasses import dataclass

import jax.numpy as jnp

from grpo_jax.models.config import ModelConfig
from grpo_jax.rollout.row_table import first_size
from grpo_jax.rollout.state import Size

_LOGITS = 3  # arrays [rows,V] in float32 that live at a time: logits, weights, one between them
_PREFILL_TOKENS = 16384  # prompt tokens that a part of the mesh reads at a time


def prompts_at_a_time(prompt_width: int) -> int:
    """How many prompts a part of the mesh reads in one program, for the sake of their activations."""
    return max(_PREFILL_TOKENS // prompt_width, 1)


@dataclass(frozen=True)
class Demand:
    """P x G completions of up to `width` tokens of prompts of up to `prompt_width`, over `parts` of a mesh that have
    rows of their own, with the heads split `tensor` times."""

    cfg: ModelConfig
    dtype: str
    prompts: int
    samples: int
    width: int
    prompt_width: int
    parts: int = 1
    tensor: int = 1
    cache: str = "auto"  # or int8

    def size(self, rows: int = 0) -> Size:
        """The largest table, with `rows` completions at a time over all parts (0: all)."""
        return first_size(self.prompts, self.samples, self.width, self.parts, rows)

    def cache_bytes(self, size: Size) -> int:
        """Keys and values of a table on each device: those of a prompt once a place."""
        wide, H = jnp.dtype(self.dtype).itemsize, self.cfg.head_dim
        head = H + wide if self.cache == "int8" else H * wide  # with its scale
        tokens = size.places * (self.prompt_width + size.rows * size.slots)
        return tokens * 2 * self.cfg.num_layers * self.cfg.num_kv_heads * head // self.tensor

    def peak_bytes(self, size: Size) -> int:
        """On each device, beside the weights: the cache; a layer of the one that it grows from, or what reading prompts
        takes; and the logits."""
        grown_from = self.cache_bytes(size) // self.cfg.num_layers
        logits = _LOGITS * size.places * size.rows * self.cfg.vocab_size * 4 // self.tensor
        return self.cache_bytes(size) + max(grown_from, self._prefill_bytes(size)) + logits

    def _prefill_bytes(self, size: Size) -> int:
        """Activations of the prompts that are read at a time: gate and up, and four of the model's width. Ahead of time
        for an H200 this is 2 to 7 % above what the compiler asks for (1.5B, 8,192 and 16,384 tokens)."""
        prompts = size.places // -(-self.samples // size.rows)  # each stands at so many places
        tokens = min(prompts, prompts_at_a_time(self.prompt_width)) * self.prompt_width
        token = 2 * self.cfg.intermediate_size // self.tensor + 4 * self.cfg.hidden_size
        return tokens * token * jnp.dtype(self.dtype).itemsize

    def rows_within(self, memory: int) -> int | None:
        """Completions at a time for which `memory` bytes on each device are enough, over all parts; 0: all of them;
        None: not even one prompt's."""
        if self.peak_bytes(self.size()) <= memory:
            return 0
        for prompts in range(-(-self.prompts // self.parts), 0, -1):
            rows = self._rows_of(prompts)
            if self.peak_bytes(self.size(rows)) <= memory:
                return rows
        return None

    def _rows_of(self, prompts: int) -> int:
        """Rows of a table with so many prompts on each part, when others wait."""
        one = self.size(1)  # of a single prompt
        return one.places * one.rows * self.parts * prompts
