"""A GGUF file as a model folder in Hugging Face format."""

import json
from pathlib import Path
from typing import Any

from pretrained.gguf_file import GGUF
from pretrained.progress import bytes_of, megabytes, progress
from pretrained.tokenizer import make_tokenizer


def convert(source: Path, folder: Path, *, tied: bool, generation: dict[str, Any]) -> None:
    """Write config.json, model.safetensors (bfloat16), the tokenizer and generation_config.json into `folder`.

    `tied`: whether the published model's head is its embedding; `generation`: the content of generation_config.json.
    Raises UserError if the file is not a whole GGUF file of a qwen2 or llama model.
    """
    from safetensors.numpy import save_file

    with progress(f"reading {source.name}"):
        gguf = GGUF(source)
        config, tokenizer = config_of(gguf, tied), make_tokenizer(gguf)
    folder.mkdir(exist_ok=True)
    tensors = _weights(gguf, tied)
    with progress("writing model.safetensors", lambda: megabytes(bytes_of(folder, "model.safetensors"))):
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    _write_json(folder / "config.json", config)
    _write_json(folder / "generation_config.json", generation)
    tokenizer.save_pretrained(folder)


def config_of(gguf: GGUF, tied: bool) -> dict[str, Any]:
    """The content of config.json, in the words of the published Qwen2.5 models."""
    length = gguf.shape("context_length")
    return {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "attention_dropout": 0.0,
        "eos_token_id": gguf["tokenizer.ggml.eos_token_id"],
        "hidden_act": "silu",
        "hidden_size": gguf.shape("embedding_length"),
        "initializer_range": 0.02,
        "intermediate_size": gguf.shape("feed_forward_length"),
        "max_position_embeddings": length,
        "max_window_layers": gguf.shape("block_count"),
        "num_attention_heads": gguf.shape("attention.head_count"),
        "num_hidden_layers": gguf.shape("block_count"),
        "num_key_value_heads": gguf.shape("attention.head_count_kv"),
        "rms_norm_eps": round(
            gguf.shape("attention.layer_norm_rms_epsilon"), 9
        ),  # 1e-6 was stored in float32
        "rope_theta": gguf.shape("rope.freq_base"),
        "sliding_window": length,
        "tie_word_embeddings": tied,
        "torch_dtype": "bfloat16",
        "use_cache": True,
        "use_sliding_window": False,
        "vocab_size": len(gguf["tokenizer.ggml.tokens"]),
    }


def _weights(gguf: GGUF, tied: bool) -> dict[str, Any]:
    tensors: dict[str, Any] = {}
    total = 2 * gguf.parameters
    done = lambda: (
        f"{megabytes(sum(tensor.nbytes for tensor in list(tensors.values())))} of {megabytes(total)}"
    )
    with progress("dequantising", done):
        for name, values in gguf.tensors():
            tensors[name] = values
    if tied and "lm_head.weight" in tensors:  # two copies of one matrix; the head has more bits
        tensors["model.embed_tokens.weight"] = tensors.pop("lm_head.weight")
    return tensors


def _write_json(file: Path, content: dict[str, Any]) -> None:
    file.write_text(json.dumps(content, indent=2) + "\n")
