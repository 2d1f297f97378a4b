"""Settings -> the folder of a run, new or resumed."""

import json
from collections.abc import Mapping

from grpo_jax.config import GRPOConfig, SFTConfig
from grpo_jax.models.safetensors_io import sampled_digest
from grpo_jax.models.transformer import abstract_params
from grpo_jax.runs.folder import model_fingerprint
from grpo_jax.runs.run import Run
from grpo_jax.setup.policy import Policy
from grpo_jax.setup.tokenizer import keep_tokenizer
from grpo_jax.sharding import hosts


def open_run(
    config: GRPOConfig | SFTConfig, policy: Policy, reward_models: Mapping[str, str] | None = None
) -> Run:
    """Start or resume the run with these settings, this model, and reward models with the fingerprints `reward_models`.
    UserError when its folder holds another run."""
    fingerprint = {**fingerprint_of(policy), **(reward_models or {})}
    return Run(
        config.model_dump(mode="json"),
        fingerprint,
        is_writer=hosts.is_writer(),
        prepare=lambda run: keep_tokenizer(run, policy),
    )


def fingerprint_of(policy: Policy) -> dict[str, str]:
    """Identifies the policy's model: its configuration, tensors and a sample of its weights."""
    identity = json.loads((policy.folder / "config.json").read_text(encoding="utf-8"))
    fingerprint = model_fingerprint(identity, abstract_params(policy.cfg))
    return fingerprint | {"weights": sampled_digest(policy.folder)}
