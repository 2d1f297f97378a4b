"""Settings of every verb that opens a model, and of a run's folder and length."""

from typing import Literal

from pydantic import Field, field_validator

from grpo_jax.config.base import Settings
from grpo_jax.config.fields import Count, Name, Positive
from grpo_jax.sharding.mesh_spec import parse_mesh


class ModelSettings(Settings):
    """Model and machine."""

    model: Name = "demo"
    """A local folder or a hub id in Hugging Face format; `demo` makes a tiny random model of its own."""
    seed: int = Field(0, ge=0, lt=2**32)
    """Every random number is a function of this seed, so the same settings give the same run."""
    adapter: Name | None = None
    """A folder or hub id of a LoRA adapter in PEFT's format on top of the model: train and sft go on with it, with its
    own rank, alpha and modules; other verbs merge it."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """The type that is computed in; auto: bfloat16 on accelerators, float32 on CPU."""
    attention: Literal["auto", "xla", "cudnn", "splash"] = "auto"
    """The kernel of whole rows (training, scoring, prompts): cudnn on CUDA, splash on TPU, or xla; auto: by the
    device, xla in float32."""
    mesh: str | None = None
    """How the devices are arranged, e.g. data=1,fsdp=8,tensor=1; none: a mesh that fits them."""
    compilation_cache: Name | None = None
    """A folder where compiled programs are kept, so that the next start is quick; none: JAX's own setting."""

    @field_validator("mesh")
    @classmethod
    def _mesh_parses(cls, text: str | None) -> str | None:
        parse_mesh(text)
        return text


class RunSettings(Settings):
    """Run."""

    output_dir: Name | None = "runs/grpo"
    """The run's folder, local or cloud (gs://...); the same command resumes there; none: write nothing."""
    max_steps: Positive = 200
    """Steps of training; a step is one rollout (sft: one batch)."""
    save_steps: Count = 50
    """A checkpoint every so many steps; 0: only after the last step."""
    save_total_limit: Count = 3
    """The newest checkpoints that are kept; 0: all of them."""
