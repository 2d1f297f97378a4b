"""Settings -> samplers: how tokens are sampled, and what ends a completion."""

from collections.abc import Sequence
from enum import IntEnum
from typing import Any

from grpo_jax.config import GRPOConfig, SFTConfig
from grpo_jax.config.sampling import SamplingSettings
from grpo_jax.errors import UserError
from grpo_jax.rollout.sampler import ContinuousBatchingSampler
from grpo_jax.rollout.sampling import SamplingParams
from grpo_jax.rollout.stopping import Stop
from grpo_jax.setup.policy import Policy


class RandomStream(IntEnum):
    """What a sampler is for: samplers of one seed never share random numbers across these."""

    TRAINING = 0
    EVALUATION = 1
    REJECTION = 2


def make_sampler(
    config: SamplingSettings | SFTConfig,
    policy: Policy,
    *,
    num_generations: int,
    seed: int,
    sampling: SamplingParams | None = None,
    max_completion_length: int | None = None,
    random_stream: RandomStream = RandomStream.TRAINING,
    segment: int = 0,
    rows: int = 0,
) -> ContinuousBatchingSampler:
    """A sampler of the policy's model on its mesh. Stop strings, and unless given `sampling` and the length, are those
    of `config`; the other arguments are those of `ContinuousBatchingSampler`."""
    if sampling is None:
        assert isinstance(config, SamplingSettings)
        sampling = sampling_params(config, policy)
    return ContinuousBatchingSampler(
        policy.cfg,
        policy.vocabulary,
        sampling,
        num_generations=num_generations,
        max_completion_length=max_completion_length or config.max_completion_length,
        mesh=policy.mesh,
        seed=seed,
        random_stream=int(random_stream),
        segment=segment,
        rows=rows,
        stop=stop_of(config, policy) if isinstance(config, SamplingSettings) else None,
        cache_dtype=policy.rollout_cache,
        attention=policy.attention,
    )


def sampling_params(config: SamplingSettings, policy: Policy) -> SamplingParams:
    """The sampling parameters in the settings. UserError for `banned_tokens` that the tokenizer does not have."""
    return SamplingParams(
        config.temperature,
        top_k=config.top_k,
        top_p=config.top_p,
        min_p=config.min_p,
        repetition_penalty=config.repetition_penalty,
        banned=_banned(config, policy),
        min_tokens=config.min_tokens,
    )


def greedy_params(config: SamplingSettings, policy: Policy) -> SamplingParams:
    """Greedy decoding, still with `repetition_penalty`, `min_tokens` and without `banned_tokens`."""
    return SamplingParams(
        0.0,
        repetition_penalty=config.repetition_penalty,
        banned=_banned(config, policy),
        min_tokens=config.min_tokens,
    )


def eval_sampling_params(config: GRPOConfig, policy: Policy) -> SamplingParams:
    """The sampling parameters of a training's evaluation: the settings `eval_...`, with the training's
    `repetition_penalty`, `banned_tokens` and `min_tokens`."""
    return SamplingParams(
        config.eval_temperature,
        top_k=config.eval_top_k,
        top_p=config.eval_top_p,
        min_p=config.eval_min_p,
        repetition_penalty=config.repetition_penalty,
        banned=_banned(config, policy),
        min_tokens=config.min_tokens,
    )


def stop_of(config: SamplingSettings, policy: Policy) -> Stop | None:
    """The stop strings in the settings; None if there are none."""
    if not config.stop_strings:
        return None
    return Stop(tuple(config.stop_strings), lambda ids: decode_text(policy.tokenizer, ids, special=True))


def decode_text(tokenizer: Any, ids: Sequence[int], *, special: bool = False) -> str:
    """The text of token ids, without any clean-up; `special`: with special tokens."""
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
