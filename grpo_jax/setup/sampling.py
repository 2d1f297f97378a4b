"""Settings -> how completions are drawn, and what ends them."""

from collections.abc import Sequence
from typing import Any

from grpo_jax.config import GRPOConfig
from grpo_jax.config.sampling import SamplingSettings
from grpo_jax.errors import UserError
from grpo_jax.rollout.sampling import SamplingParams
from grpo_jax.rollout.stopping import Stop
from grpo_jax.setup.policy import Policy


def sampling_of(config: SamplingSettings, policy: Policy) -> SamplingParams:
    """How the settings have completions drawn. UserError for `banned_tokens` that the tokenizer does not have."""
    filters = config.temperature, config.top_k, config.top_p, config.min_p
    return SamplingParams(*filters, banned=_banned(config, policy), min_tokens=config.min_tokens)


def evaluation_of(config: SamplingSettings, policy: Policy, temperature: float) -> SamplingParams:
    """At a temperature without filters; what a completion may be is still as the settings say."""
    return SamplingParams(temperature, banned=_banned(config, policy), min_tokens=config.min_tokens)


def held_out_of(config: GRPOConfig, policy: Policy) -> SamplingParams:
    """How a training's held-out prompts are answered: by settings of their own, `eval_...`; what a completion may be
    is as the training has it."""
    filters = config.eval_temperature, config.eval_top_k, config.eval_top_p, config.eval_min_p
    return SamplingParams(*filters, banned=_banned(config, policy), min_tokens=config.min_tokens)


def stop_of(config: SamplingSettings, policy: Policy) -> Stop | None:
    """What ends completions besides the end of sequence."""
    if not config.stop_strings:
        return None
    return Stop(tuple(config.stop_strings), lambda ids: decoded(policy.tokenizer, ids, special=True))


def decoded(tokenizer: Any, ids: Sequence[int], *, special: bool = False) -> str:
    """The text of tokens, as it is; special tokens have theirs only where `special` says so."""
    text = tokenizer.decode(list(ids), skip_special_tokens=not special, clean_up_tokenization_spaces=False)
    return str(text)


def _banned(config: SamplingSettings, policy: Policy) -> tuple[int, ...]:
    """The ids of `banned_tokens`, in order."""
    ids = {_token_id(token, policy) for token in config.banned_tokens or ()}
    never = ids | set(policy.vocabulary.eos_ids if config.min_tokens else ())
    if len(never) >= policy.vocabulary.num_tokens:
        raise UserError(f"banned_tokens: all {len(ids)} tokens are banned; leave some")
    return tuple(sorted(ids))


def _token_id(token: int | str, policy: Policy) -> int:
    if isinstance(token, int):
        if 0 <= token < policy.vocabulary.num_tokens:
            return token
        last = policy.vocabulary.num_tokens - 1
        raise UserError(f"banned_tokens = {token}: no such id; the tokenizer has 0 to {last}")
    ids = policy.tokenizer(token, add_special_tokens=False)["input_ids"]
    if ids in ([], [policy.tokenizer.unk_token_id]) and token != policy.tokenizer.unk_token:
        raise UserError(
            f"banned_tokens = {token!r}: unknown to this tokenizer; give one of its tokens, or an id"
        )
    if len(ids) != 1:
        raise UserError(
            f"banned_tokens = {token!r}: {len(ids)} tokens of this tokenizer, and only single ones can be banned; "
            f"give those, or ids (its own are {list(ids)})"
        )
    return int(ids[0])
