"""A loaded PyTorch model as the starting model: its weights, its adapters and its tokenizer are written to a folder."""

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from grpo_jax.errors import UserError

NAMELESS = "a model given from Python"


@dataclass(frozen=True)
class WrittenModel:
    """Where a model was written; the folder is deleted with this object.

    folder: the model in Hugging Face format.
    adapter: folder of its LoRA adapter; None for a model without.
    name: what config.yaml calls it: the folder or hub id that it was loaded from.
    """

    home: tempfile.TemporaryDirectory[str]
    name: str
    adapter: Path | None

    @property
    def folder(self) -> Path:
        return Path(self.home.name) / "model"


def is_torch_model(given: Any) -> bool:
    """Whether it is a model of transformers or of PEFT. Imports neither."""
    return is_from(given, "torch", "Module") and callable(getattr(given, "save_pretrained", None))


def write_torch_model(model: Any, tokenizer: Any = None) -> WrittenModel:
    """Write a model of transformers, or a PeftModel with a LoRA adapter, to a temporary folder.

    Without a tokenizer, that of the place which the model was loaded from is written beside it.

    Raises:
        UserError: there is no tokenizer, or the model is quantised.
    """
    base = model.get_base_model() if _is_peft(model) else model
    if getattr(base.config, "quantization_config", None) is not None:
        raise UserError(
            f"model: a quantised {type(base).__name__}; give its name or folder, and quantization_config beside it"
        )
    name = getattr(base, "name_or_path", "") or getattr(base.config, "_name_or_path", "")
    home = tempfile.TemporaryDirectory(prefix="grpo-jax-model-")
    written = WrittenModel(home, name or NAMELESS, _write_adapter(model, Path(home.name)))
    base.save_pretrained(written.folder, state_dict=_weights(base))
    if tokenizer is None:
        _tokenizer_of(name).save_pretrained(written.folder)
    return written


def _is_peft(model: Any) -> bool:
    return is_from(model, "peft", "PeftModel")


def is_from(given: Any, package: str, name: str) -> bool:
    """Whether it is an instance of `package`'s class `name`; the package need not be installed."""
    bases = type(given).__mro__
    return any(base.__name__ == name and base.__module__.split(".")[0] == package for base in bases)


def _weights(base: Any) -> dict[str, Any]:
    """The model's own tensors, by the names that they have without adapters."""
    tensors = {name.replace(".base_layer.", "."): tensor for name, tensor in base.state_dict().items()}
    return {name: tensor for name, tensor in tensors.items() if ".lora_" not in name}


def _write_adapter(model: Any, home: Path) -> Path | None:
    if not _is_peft(model):
        return None
    active = model.active_adapter
    model.save_pretrained(home / "adapter", selected_adapters=[active])
    return home / "adapter" if active == "default" else home / "adapter" / active


def _tokenizer_of(name: str) -> Any:
    from transformers import AutoTokenizer

    if not name:
        raise UserError("processing_class: must be given, as the model was loaded from nowhere")
    try:
        return AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError) as fault:
        raise UserError(
            f"processing_class: must be given, as {name} has no tokenizer ({str(fault).splitlines()[0]:.100})"
        ) from None
