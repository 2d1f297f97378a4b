"""Settings -> prompts, tokenised for a policy."""

from collections.abc import Mapping, Sequence
from typing import Any

from grpo_jax.config.prompts import PromptSettings
from grpo_jax.data.prompts import Prompts
from grpo_jax.runs.status import phase
from grpo_jax.setup.policy import Policy

Rows = Sequence[dict[str, Any]]


def make_prompts(
    config: PromptSettings, policy: Policy, rows: Rows | Mapping[str, Rows], **changes: Any
) -> Prompts:
    """The prompts of `rows`, or of several data sets by name, as the settings word them.

    Args:
        changes: prompt settings in place of the config's.

    Raises:
        UserError: no rows, a row without a usable prompt, or a data set whose prompts are all too long.
    """
    settings = {name: getattr(config, name) for name in PromptSettings.model_fields} | changes
    with phase("reading the prompts"):
        return Prompts(rows, policy.tokenizer, pad_id=policy.vocabulary.pad_id, **settings)
