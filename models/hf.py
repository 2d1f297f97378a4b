"""Reads and writes Hugging Face models without torch: the public names of this folder in one place.

    folder = resolve_model("Qwen/Qwen2.5-0.5B-Instruct")
    cfg    = load_config(folder)
    params = load_params(folder, cfg, shardings)
    save_model("out", cfg, params, source=folder)     # the tensors' bits as they came, where nothing trained

The parts: `hf_config` (config.json), `families` (what differs between them), `safetensors_io` (the file format),
`names` (the table between their tensors and ours), `load`, `export`, `hub` (folders, hub ids, tokenizers).
"""

from grpo_jax.models.config import PUBLISHED, ModelConfig, YarnConfig
from grpo_jax.models.export import save_model
from grpo_jax.models.hf_config import load_config, load_eos_ids, load_pad_id
from grpo_jax.models.hub import check_tokenizer, load_tokenizer, resolve_model
from grpo_jax.models.load import load_params

__all__ = [
    "PUBLISHED",
    "ModelConfig",
    "YarnConfig",
    "check_tokenizer",
    "load_config",
    "load_eos_ids",
    "load_pad_id",
    "load_params",
    "load_tokenizer",
    "resolve_model",
    "save_model",
]
