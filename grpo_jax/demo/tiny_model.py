"""A tiny model of random weights: Qwen2.5's architecture, and a tokenizer whose symbols are those of the tasks that it
is for. The demo's start is one that was taught a little; see `demo.py`."""

import json
import math
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax

from grpo_jax.data.tasks import tiny_countdown, tiny_knights, tiny_math
from grpo_jax.errors import UserError
from grpo_jax.models.config import SHAPE, ModelConfig
from grpo_jax.models.hf import save_model
from grpo_jax.models.transformer import Params, abstract_params, init

TASKS = {task.NAME: task for task in (tiny_countdown, tiny_knights, tiny_math)}
"""The tasks that can be written in few symbols."""


_PAD, _END = "<pad>", "<|endoftext|>"
_AS_BYTES = {"\n": "\u010a", " ": "\u0120"}  # as byte-level tokenizers write them


def shape_for(names: Sequence[str]) -> ModelConfig:
    """The shape of the model for these tasks: as wide a vocabulary as they need, in steps of 64."""
    symbols = len(symbols_of(names)) + len((_PAD, _END))
    return replace(SHAPE, vocab_size=max(SHAPE.vocab_size, -(-symbols // 64) * 64))


def symbols_of(names: Sequence[str]) -> list[str]:
    """The symbols of these tasks, each once. Those of several tasks are in the tasks' own order, not the caller's."""
    return list(dict.fromkeys(symbol for name in TASKS if name in names for symbol in TASKS[name].SYMBOLS))


def size_of(shape: ModelConfig) -> str:
    """How many parameters, as one writes it."""
    return f"{sum(math.prod(x.shape) for x in jax.tree.leaves(abstract_params(shape))):,}"


def write_blank(folder: Path, names: Sequence[str], seed: int, note: dict[str, Any]) -> None:
    """A whole model folder with random weights. `note` is added to its config.json."""
    shape, tokenizer = shape_for(names), tokenizer_for(names)
    save_model(folder, shape, _random_params(shape, seed))
    tokenizer.save_pretrained(folder)
    ends = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    _update_json(folder / "config.json", ends | note)
    _update_json(folder / "generation_config.json", ends)


def _random_params(shape: ModelConfig, seed: int) -> Params:
    """Matrices with a standard deviation of 0.12: the usual 0.02 is for widths of thousands, and on a width of 64
    it takes several times the steps to learn anything."""
    wider = lambda path, x: x * 6 if path[-1].key in ("kernel", "embedding") else x
    return jax.tree_util.tree_map_with_path(wider, init(shape, jax.random.key(seed)))


def _update_json(file: Path, values: dict[str, Any]) -> None:
    known = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    file.write_text(json.dumps(known | values, indent=2) + "\n", encoding="utf-8")


def tokenizer_for(names: Sequence[str]) -> Any:
    """One token a symbol.

    Built as Qwen2.5's tokenizer is, because transformers opens every model of its type with that: bytes, pairs of
    bytes to merge (none here), and whole words on top.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    symbols = symbols_of(names)
    bytes_used = [_PAD, *(_AS_BYTES.get(symbol, symbol) for symbol in symbols if len(symbol) == 1)]
    tokenizer = Tokenizer(models.BPE(vocab={byte: i for i, byte in enumerate(bytes_used)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_tokens([AddedToken(word, normalized=False) for word in symbols if len(word) > 1])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token=_PAD, eos_token=_END)


_NOTE = "grpo_jax_demo"  # in config.json: from what a start was made


def blank_model(folder: Path, seed: int = 0) -> None:
    """Make `folder`, unless it is there: the demo's model before its cold start, random weights and the tokenizer."""
    if jax.process_count() > 1:
        raise UserError("inputs: demo is made by one process; start one, or give another model")
    if folder.exists():
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".start.") as place:
        note = {_NOTE: {"seed": seed, "steps": 0}}
        write_blank(Path(place) / "start", [tiny_countdown.NAME], seed, note)
        (Path(place) / "start").rename(folder)
