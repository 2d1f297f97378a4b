"""Teacher forcing: the log-probs of given completions, without ever holding logits [B,T,V]."""

from dataclasses import KW_ONLY, dataclass

import jax
import jax.numpy as jnp
from jax import Array

from grpo_jax.models.attention import shared_prompt, whole_rows
from grpo_jax.models.config import ModelConfig
from grpo_jax.models.kernels import Kernel
from grpo_jax.models.remat import Remat
from grpo_jax.models.transformer import Params, cast, head_logits, hidden_states
from grpo_jax.sharding.constraints import over_rows, rows_split
from grpo_jax.sharding.memory import fetched


@dataclass(frozen=True)
class LogprobSettings:
    """How log-probs are computed; the sampler uses the same temperature and the same `num_tokens`."""

    temperature: float = 1.0
    _: KW_ONLY
    num_tokens: int | None = None  # tokenizer ids; later rows of the vocabulary are padding
    dtype: str = "float32"  # compute dtype; log-probs are always float32
    chunk: int = 1024  # tokens per device whose logits exist at the same time; at least one per row
    remat: Remat = "full"
    entropy: bool = False
    attention: Kernel = "auto"
    group: int = 1  # consecutive rows with the same prompt, which is computed once for all of them


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Rows:
    """Right-padded rows [prompt | completion | pad]: a plain causal mask is exact on them. Or sequences of several such
    rows each, packed: then `segments` and `before` say which token belongs to which."""

    tokens: Array  # [B,T] int32
    prompt_lengths: Array  # [B] int32
    completions: Array  # [B,Tc] int32
    mask: Array  # [B,Tc] float32, 1 for tokens that the policy chose
    _: KW_ONLY
    segments: Array | None = None  # [B,T] int32, the same number for the tokens of a row
    before: Array | None = None  # [B,Tc] int32, where in `tokens` each completion token's predecessor stands


def make_rows(prompts: Array, prompt_lengths: Array, completions: Array, mask: Array) -> Rows:
    """Rows from prompts [B,Tp] padded on the right and completions [B,Tc]: each row closes its own gap."""
    width = prompts.shape[1] + completions.shape[1]
    offsets = (
        jnp.arange(width) - prompt_lengths[:, None]
    )  # completion position of each place, negative in the prompt
    from_prompt = jnp.pad(prompts, [(0, 0), (0, completions.shape[1])])
    from_completion = jnp.take_along_axis(completions, jnp.clip(offsets, 0, completions.shape[1] - 1), axis=1)
    # Past the end the last position repeats; causally no real token sees it.
    return Rows(jnp.where(offsets < 0, from_prompt, from_completion), prompt_lengths, completions, mask)


def completion_logprobs(
    cfg: ModelConfig, params: Params, rows: Rows, logprob_settings: LogprobSettings
) -> tuple[Array, Array | None]:
    """Log-probs [B,Tc] float32 of the completions and, when asked for, the entropies [B,Tc]. 0 where masked.

    The computation runs in `logprob_settings.dtype`. The head is cast inside each chunk, so that the chunks' gradients
    of it add up in the parameters' own dtype: a sum of many in bfloat16 would be wrong by percents.
    """
    params = {name: part if name == "layers" else fetched(part) for name, part in params.items()}
    compute_dtype = jnp.dtype(logprob_settings.dtype)
    compute = cast(params, compute_dtype)
    head: Params = {name: params[name] for name in ("embed", "head") if name in params}
    hidden = (_by_group if logprob_settings.group > 1 else _by_row)(cfg, compute, rows, logprob_settings)

    def score(chunk: tuple[Array, Array]) -> tuple[Array, Array | None]:
        logits = (
            head_logits(cfg, cast(head, compute_dtype), chunk[0], logprob_settings.num_tokens)
            / logprob_settings.temperature
        )
        return _score(logits, chunk[1], logprob_settings.entropy)

    logprobs, entropy = _in_chunks(score, hidden, rows.completions, logprob_settings.chunk)
    seen = lambda x: jnp.where(
        rows.mask > 0, x, 0.0
    )  # a padding id may itself be outside the vocabulary: -inf
    return seen(logprobs), None if entropy is None else seen(entropy)


def _by_row(cfg: ModelConfig, params: Params, rows: Rows, logprob_settings: LogprobSettings) -> Array:
    """Hidden states [B,Tc,D] of each completion token's predecessor."""
    positions = jnp.broadcast_to(jnp.arange(rows.tokens.shape[1]), rows.tokens.shape)
    if rows.segments is not None:
        positions = restarted(positions, rows.segments)
    attend = whole_rows(logprob_settings.attention, rows.segments)
    hidden, _ = hidden_states(
        cfg, params, over_rows(rows.tokens), positions, attend, remat=logprob_settings.remat
    )
    before = rows.before
    if before is None:
        before = rows.prompt_lengths[:, None] - 1 + jnp.arange(rows.completions.shape[1])
    return jnp.take_along_axis(hidden, before[..., None], axis=1)


def restarted(positions: Array, segments: Array) -> Array:
    """Positions [B,T] that begin at 0 with every segment of `segments` [B,T]."""
    begins = jnp.diff(segments, axis=1, prepend=segments[:, :1]) != 0
    return positions - jax.lax.cummax(jnp.where(begins, positions, 0), axis=1)


def _by_group(cfg: ModelConfig, params: Params, rows: Rows, logprob_settings: LogprobSettings) -> Array:
    """The same, from rows [prompt | completion 1 | ... | completion g] of Tp + g Tc tokens in place of g (Tp + Tc)."""
    (B, Tc), Tp, g = (
        rows.completions.shape,
        rows.tokens.shape[1] - rows.completions.shape[1],
        logprob_settings.group,
    )
    lengths = rows.prompt_lengths[::g]  # [Q], Q = B / g
    tokens = jnp.concatenate([rows.tokens[::g, :Tp], rows.completions.reshape(-1, g * Tc)], axis=1)
    own = jnp.tile(jnp.arange(Tc), g) + lengths[:, None]
    positions = jnp.concatenate([jnp.broadcast_to(jnp.arange(Tp), (B // g, Tp)), own], axis=1)
    attend = shared_prompt(Tp, g, lengths, logprob_settings.attention)
    hidden, _ = hidden_states(cfg, params, over_rows(tokens), positions, attend, remat=logprob_settings.remat)
    last = jnp.take_along_axis(hidden, lengths[:, None, None] - 1, axis=1)[:, None]  # [Q,1,1,D]
    after = hidden[:, Tp:].reshape(B // g, g, Tc, -1)
    first = jnp.broadcast_to(last, (B // g, g, 1, last.shape[-1]))
    return over_rows(jnp.concatenate([first, after[:, :, :-1]], axis=2).reshape(B, Tc, -1))


def _score(logits: Array, tokens: Array, entropy: bool) -> tuple[Array, Array | None]:
    """Log-probs of `tokens` [B,t] and entropies under softmax(logits [B,t,V])."""
    normaliser = jax.nn.logsumexp(logits, axis=-1)
    logprobs = jnp.take_along_axis(logits, tokens[..., None], axis=-1)[..., 0] - normaliser
    if not entropy:
        return logprobs, None
    finite = jnp.where(
        jnp.isfinite(logits), logits, 0.0
    )  # padded ids have probability 0, and 0 * -inf is NaN
    return logprobs, normaliser - (jax.nn.softmax(logits) * finite).sum(-1)


def _in_chunks(score, hidden: Array, tokens: Array, chunk: int) -> tuple[Array, Array | None]:
    """Apply `score` to `chunk` tokens a device at a time, recomputing logits in the backward pass.

    Chunks run along time, so that each holds every row and the rows stay where the mesh has them.
    """
    B, T, D = hidden.shape
    width = min(max(chunk * rows_split() // B, 1), T)
    padding = -T % width
    hidden = jnp.pad(hidden, [(0, 0), (0, padding), (0, 0)]).reshape(B, -1, width, D).swapaxes(0, 1)
    tokens = jnp.pad(tokens, [(0, 0), (0, padding)]).reshape(B, -1, width).swapaxes(0, 1)
    chunks = jax.lax.map(jax.checkpoint(score), (hidden, tokens))
    return jax.tree.map(lambda x: x.swapaxes(0, 1).reshape(B, -1)[:, :T], chunks)
