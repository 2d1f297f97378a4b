"""Settings -> which samples `reject` keeps."""

from collections.abc import Sequence

from grpo_jax.config.reject import RejectConfig
from grpo_jax.data.sft.rejection import Standards
from grpo_jax.errors import UserError, nearest


def standards_of(config: RejectConfig, names: Sequence[str]) -> Standards:
    """The standards in the settings, with rewards of these `names`. UserError for a threshold of any other reward."""
    thresholds = config.thresholds or {names[0]: 1.0}
    if unknown := next((name for name in thresholds if name not in names), None):
        raise UserError(
            f"thresholds: {unknown}{nearest(unknown, names)} is none of the rewards, {', '.join(names)}; add it to them"
        )
    return Standards(thresholds, config.keep_per_prompt, config.keep_tokens, config.dedup_normalized)
