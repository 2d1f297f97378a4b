"""What TRL's scripts read from the command line beside the settings: the data set's name and the model's."""

from dataclasses import dataclass, field
from typing import Any

from grpo_jax.errors import UserError


@dataclass
class ScriptArguments:
    """The data set of a script, which loads it itself."""

    dataset_name: str | None = field(default=None, metadata={"help": "Path or hub id of the data set."})
    dataset_config: str | None = field(
        default=None, metadata={"help": "Which of the data set's configurations."}
    )
    dataset_train_split: str = field(default="train", metadata={"help": "The split to train on."})
    dataset_test_split: str = field(default="test", metadata={"help": "The split to evaluate on."})
    dataset_streaming: bool = field(
        default=False, metadata={"help": "Whether the script reads the data set as a stream."}
    )
    ignore_bias_buffers: bool = field(default=False, metadata={"help": "No effect here."})


@dataclass
class ModelConfig:
    """The model of a script, and its adapters.

    Raises:
        UserError: both 4 and 8 bits are asked for.
    """

    model_name_or_path: str | None = field(default=None, metadata={"help": "Folder or hub id of the model."})
    model_revision: str = field(
        default="main", metadata={"help": "Revision of the model on the hub; only main is offered."}
    )
    dtype: str | None = field(
        default="float32", metadata={"help": "Type of the weights, for model_init_kwargs."}
    )
    attn_implementation: str | None = field(
        default=None, metadata={"help": "No effect here: the setting attention says how."}
    )
    use_peft: bool = field(default=False, metadata={"help": "Train LoRA adapters."})
    lora_r: int = field(default=16, metadata={"help": "Rank of the adapters."})
    lora_alpha: int = field(default=32, metadata={"help": "Scale of the adapters, times the rank."})
    lora_dropout: float = field(
        default=0.05, metadata={"help": "Share of the adapters' inputs that an update leaves out."}
    )
    lora_target_modules: list[str] | None = field(
        default=None, metadata={"help": "Names of the matrices with adapters."}
    )
    lora_target_parameters: list[str] | None = field(default=None, metadata={"help": "Not offered here."})
    lora_modules_to_save: list[str] | None = field(default=None, metadata={"help": "Not offered here."})
    lora_task_type: str = field(default="CAUSAL_LM", metadata={"help": "The task; there is one."})
    use_rslora: bool = field(default=False, metadata={"help": "Divide the scale by the root of the rank."})
    use_dora: bool = field(default=False, metadata={"help": "Not offered here."})
    load_in_8bit: bool = field(
        default=False, metadata={"help": "Keep the weights below the adapters in int8."}
    )
    load_in_4bit: bool = field(
        default=False, metadata={"help": "Keep the weights below the adapters in nf4."}
    )
    bnb_4bit_quant_type: str = field(default="nf4", metadata={"help": "Form of 4 bits; there is one."})
    use_bnb_nested_quant: bool = field(default=False, metadata={"help": "No effect here."})
    bnb_4bit_quant_storage: str | None = field(default=None, metadata={"help": "No effect here."})

    def __post_init__(self) -> None:
        if self.load_in_8bit and self.load_in_4bit:
            raise UserError("load_in_8bit = True: load_in_4bit is True, too; keep one of them")
        if isinstance(self.lora_target_modules, list) and len(self.lora_target_modules) == 1:
            self.lora_target_modules = self.lora_target_modules[0]  # type: ignore[assignment]  # all-linear is no list


def get_peft_config(model_args: ModelConfig) -> Any:
    """The adapters as `GRPOTrainer` takes them: PEFT's LoraConfig, or where PEFT is not installed a dict of its fields;
    None without adapters."""
    if not model_args.use_peft:
        return None
    fields: dict[str, Any] = {
        "task_type": model_args.lora_task_type,
        "r": model_args.lora_r,
        "target_modules": model_args.lora_target_modules,
        "lora_alpha": model_args.lora_alpha,
        "lora_dropout": model_args.lora_dropout,
        "use_rslora": model_args.use_rslora,
        "use_dora": model_args.use_dora,
        "modules_to_save": model_args.lora_modules_to_save,
    }
    if model_args.lora_target_parameters is not None:  # which older versions of PEFT do not know
        fields["target_parameters"] = model_args.lora_target_parameters
    try:
        from peft import LoraConfig
    except ImportError:
        return fields
    return LoraConfig(**fields)


def get_quantization_config(model_args: ModelConfig) -> dict[str, bool] | None:
    """The form of the weights below the adapters, as `GRPOTrainer` takes it; None for their own."""
    if model_args.load_in_4bit and model_args.bnb_4bit_quant_type != "nf4":
        raise UserError(
            f"bnb_4bit_quant_type = {model_args.bnb_4bit_quant_type}: 4 bits have one form here; write nf4"
        )
    chosen = [name for name in ("load_in_4bit", "load_in_8bit") if getattr(model_args, name)]
    return {chosen[0]: True} if chosen else None
