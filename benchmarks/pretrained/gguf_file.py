"""Reads a GGUF file of a qwen2 or llama model: its values, and its tensors under the names of a Hugging Face folder.

A llama model becomes a qwen2 with zero biases, which computes the same.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from grpo_jax.errors import UserError

ARCHITECTURES = ("qwen2", "llama")
NAMES = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def require_gguf() -> None:
    """Raises UserError if the package `gguf` is absent."""
    try:
        import gguf  # noqa: F401
    except ImportError as error:
        raise UserError("converting a GGUF file needs the package gguf: pip install gguf") from error


class GGUF:
    """An open GGUF file."""

    def __init__(self, path: Path):
        """Raises UserError if the package `gguf` is absent, or the file is not a whole one of a model known here."""
        require_gguf()
        from gguf import GGUFReader

        self.path = path
        try:
            self._reader = GGUFReader(path)
        except (ValueError, IndexError, KeyError, OSError) as error:
            raise UserError(f"{path} is not a whole GGUF file ({error}); fetch it again") from error
        self.architecture = self["general.architecture"]
        if self.architecture not in ARCHITECTURES:
            raise UserError(
                f"{path}: the architecture {self.architecture!r} is not among {', '.join(ARCHITECTURES)}"
            )

    def __getitem__(self, name: str) -> Any:
        """The value of a field. Raises UserError if there is none."""
        if name not in self._reader.fields:
            raise UserError(f"{self.path} has no field {name!r}")
        return self._reader.fields[name].contents()

    def shape(self, name: str) -> Any:
        """The value of a field of the architecture's own."""
        return self[f"{self.architecture}.{name}"]

    @property
    def parameters(self) -> int:
        return sum(int(tensor.n_elements) for tensor in self._reader.tensors)

    def tensors(self) -> Iterator[tuple[str, np.ndarray]]:
        """(name in a Hugging Face folder, bfloat16 [outputs, inputs] or [outputs]) one after another."""
        from gguf import dequantize

        for tensor in self._reader.tensors:
            values = dequantize(tensor.data, tensor.tensor_type)
            yield self._renamed(tensor.name), self._ordered(tensor.name, values).astype(ml_dtypes.bfloat16)
        if self.architecture == "llama":
            yield from self._zero_biases()

    def _renamed(self, name: str) -> str:
        match = re.fullmatch(r"blk\.(\d+)\.(\w+)\.(weight|bias)", name)
        if name in NAMES:
            return NAMES[name]
        if match is None or match[2] not in LAYER_NAMES:
            raise UserError(f"{self.path}: the tensor {name!r} has no place in a qwen2 model")
        return f"model.layers.{match[1]}.{LAYER_NAMES[match[2]]}.{match[3]}"

    def _ordered(self, name: str, values: np.ndarray) -> np.ndarray:
        """The rows of llama's queries and keys as Hugging Face has them.

        A rotary pair of a head of width H is (i, i + H/2) there; GGUF files of llama models have it side by side."""
        kind = name.split(".")[-2]
        if self.architecture != "llama" or kind not in ("attn_q", "attn_k"):
            return values
        heads = self.shape("attention.head_count" if kind == "attn_q" else "attention.head_count_kv")
        pairs = values.reshape(heads, -1, 2, *values.shape[1:])
        return pairs.swapaxes(1, 2).reshape(values.shape)

    def _zero_biases(self) -> Iterator[tuple[str, np.ndarray]]:
        heads, kv_heads = self.shape("attention.head_count"), self.shape("attention.head_count_kv")
        width = self.shape("embedding_length") // heads
        for layer in range(self.shape("block_count")):
            for letter, count in (("q", heads), ("k", kv_heads), ("v", kv_heads)):
                name = f"model.layers.{layer}.self_attn.{letter}_proj.bias"
                yield name, np.zeros(count * width, ml_dtypes.bfloat16)
