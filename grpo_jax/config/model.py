"""Settings of the model and the devices, and of a run's folder and length."""

from typing import Literal

from pydantic import Field, field_validator

from grpo_jax.config.base import Settings
from grpo_jax.config.fields import Count, Name, Positive
from grpo_jax.sharding.mesh_spec import parse_mesh


class ModelSettings(Settings):
    """Model and machine."""

    model: Name = "demo"
    """A local folder or a hub id in Hugging Face format; `demo` is a tiny model with random weights."""
    seed: int = Field(0, ge=0, lt=2**32)
    """Seed of all random numbers: the same settings give the same run."""
    adapter: Name | None = None
    """A folder or hub id of a LoRA adapter in PEFT format. train and sft continue it with its rank, alpha and
    modules; other commands merge it into the model."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Type of the computation; auto: bfloat16 on accelerators, float32 on CPU."""
    attention: Literal["auto", "xla", "cudnn", "splash"] = "auto"
    """Attention kernel for training, scoring and prefill: cudnn on CUDA, splash on TPU, or xla; auto: by the device,
    and xla in float32."""
    mesh: str | None = None
    """The device mesh, e.g. data=1,fsdp=8,tensor=1; none: chosen to fit the model."""
    compilation_cache: Name | None = None
    """Folder in which compiled programs are kept for the next start; none: JAX's own setting."""
    quiet: bool = False
    """Do not say what is happening: no line for loading, compiling, sampling and so on, and no first sample."""

    @field_validator("mesh")
    @classmethod
    def _mesh_parses(cls, text: str | None) -> str | None:
        parse_mesh(text)
        return text


class RunSettings(Settings):
    """Run."""

    output_dir: Name | None = "runs/grpo"
    """The run folder, local or cloud (gs://...); the same command resumes the run; none: write nothing."""
    max_steps: Positive = 200
    """Number of training steps, one rollout each (sft: one batch)."""
    save_steps: Count = 50
    """Save a checkpoint every so many steps; 0: only after the last step."""
    save_total_limit: Count = 3
    """Number of checkpoints to keep, the newest; 0: all."""
