"""The compiled programs of a rollout: all of it in one program, or in segments between which rows come and go.

Each shard of the mesh that has rows of its own (`ROWS`) decodes without any exchange with the others; only `tensor` is
left to the compiler. So a shard stops when its own rows have ended, and compaction moves nothing between shards.
"""

from collections.abc import Callable
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as Spec

from grpo_jax.models.config import ModelConfig
from grpo_jax.models.transformer import Params, for_decoding
from grpo_jax.program import Program
from grpo_jax.rollout.compaction import compact, move_layer, move_rows
from grpo_jax.rollout.decoding import PrefillBatch, decode, prefill
from grpo_jax.rollout.protocol import Rollout
from grpo_jax.rollout.sampling import SamplingParams
from grpo_jax.rollout.state import Decoder, DecodeState, TableSize, Vocabulary, empty_state
from grpo_jax.sharding.mesh import ROWS, by_rows, on_cpu

__all__ = ["Programs", "Rollout", "Vocabulary", "make_generate"]

REPLICATED, BY_ROW = Spec(), Spec(ROWS)  # how arrays are split over the shards


def make_generate(
    cfg: ModelConfig,
    vocabulary: Vocabulary,
    sampling: SamplingParams,
    num_generations: int,
    max_completion_length: int,
    mesh: Mesh,
    cache_dtype: str = "auto",
) -> Program:
    """The program (params, tokens [P,Tp], lengths [P], uids [P], step key) -> Rollout of `num_generations` completions
    for each prompt, all in one dispatch. It compiles once for each (P, Tp)."""
    decoder = Decoder(cfg, vocabulary, sampling, on_cpu=on_cpu(mesh), cache_dtype=cache_dtype)
    function = partial(_generate, decoder, num_generations, max_completion_length)
    takes = REPLICATED, BY_ROW, BY_ROW, BY_ROW, REPLICATED
    return Program("rollout", _per_shard(mesh, function, takes, BY_ROW), out_shardings=by_rows(mesh))


def _generate(
    decoder: Decoder,
    num_generations: int,
    max_completion_length: int,
    params: Params,
    tokens: Array,
    lengths: Array,
    uids: Array,
    key: Array,
) -> Rollout:
    m, prompt_width = tokens.shape
    places = jnp.arange(m, dtype=jnp.int32)[:, None]
    limits = jnp.full((m, 1, num_generations), max_completion_length, jnp.int32)
    batch = PrefillBatch(tokens=tokens, lengths=lengths, uids=uids, places=places, limits=limits)
    if not isinstance(params["layers"], tuple):
        params = for_decoding(params, decoder.on_cpu)
    size = TableSize(m, num_generations, max_completion_length)
    state = empty_state(decoder, size, prompt_width, _dtype(params))
    state, first = prefill(decoder, params, key, state, batch)
    if max_completion_length == 1:
        return Rollout.of_policy(first.tokens, first.logprobs, first.lengths, first.finished)
    _, rest = decode(decoder, max_completion_length - 1, params, state)
    join = lambda a, b: jnp.concatenate([a, b], axis=-1)
    return Rollout.of_policy(
        join(first.tokens, rest.tokens), join(first.logprobs, rest.logprobs), rest.lengths, rest.finished
    )


@cache
def decoding_program(mesh: Mesh) -> Program:
    """The program (params as stacked layers) -> params in the form that the programs here read."""
    return Program("for_decoding", partial(for_decoding, on_cpu=on_cpu(mesh)))


class Programs:
    """The programs of a rollout in segments of `count` tokens. Each compiles once for each shape of its arrays."""

    def __init__(self, decoder: Decoder, count: int, mesh: Mesh):
        self.count, self._decoder, self._mesh = count, decoder, mesh
        self._empty_states: dict[tuple, Program] = {}
        self._moves: dict[tuple, Program] = {}
        # (params, step key, state, PrefillBatch) -> (state, SampledTokens of one token); the state is donated
        self.prefill = self._program(
            "prefill", partial(prefill, decoder), (REPLICATED, REPLICATED, BY_ROW, BY_ROW), donate_argnums=2
        )
        # (params, state) -> (state, SampledTokens of `count` tokens); the state is donated
        self.decode = self._program(
            "decode", partial(decode, decoder, count), (REPLICATED, BY_ROW), donate_argnums=1
        )

    def empty_state(self, size: TableSize, prompt_width: int, params: Params) -> DecodeState:
        """An empty table of that size on each shard of the mesh."""
        key = (size, prompt_width, _dtype(params))
        if key not in self._empty_states:
            self._empty_states[key] = Program("empty_state", partial(self.trace_empty_state, *key))
        return self._empty_states[key]()

    def trace_empty_state(self, size: TableSize, prompt_width: int, dtype: jnp.dtype) -> DecodeState:
        """The function that `empty_state` compiles."""
        return _per_shard(self._mesh, partial(empty_state, self._decoder, size, prompt_width, dtype), ())()

    def compact(self, state: DecodeState, slots: int, places: Array, rows: Array) -> DecodeState:
        """`state`, which is used up, with places [D*S'], rows [D*S',g'] and `slots` slots. The numbers of places and
        rows are those within a shard."""
        old = state.cache.slots
        rows_program = self._move_program("compact_rows", partial(move_rows, old, slots), (old, slots), 3)
        layer_program = self._move_program("compact_layer", partial(move_layer, slots), (slots,), 4)
        return compact(rows_program, layer_program, state, places, rows)

    @property
    def compilations(self) -> int:
        """Compilations of all programs together."""
        programs = self.prefill, self.decode, *self._empty_states.values(), *self._moves.values()
        return sum(program.compilations for program in programs)

    def _move_program(self, name: str, function: Callable, slots: tuple[int, ...], arguments: int) -> Program:
        key = name, *slots
        if key not in self._moves:
            self._moves[key] = self._program(name, function, (BY_ROW,) * arguments)
        return self._moves[key]

    def _program(self, name: str, function: Callable, takes: Any, **jit_options: Any) -> Program:
        return Program(name, _per_shard(self._mesh, function, takes), **jit_options)


def _per_shard(mesh: Mesh, function: Callable, takes: Any, gives: Any = BY_ROW) -> Callable:
    """`function` on each shard's own rows. An axis of several devices that is not in `ROWS` is left to the compiler;
    one of a single device is not, because cuDNN's attention allows no automatic axis and there is nothing to split."""
    manual = {axis for axis in mesh.axis_names if axis in ROWS or mesh.shape[axis] == 1}
    return jax.shard_map(
        function, mesh=mesh, in_specs=takes, out_specs=gives, axis_names=manual, check_vma=False
    )


def _dtype(params: Params) -> jnp.dtype:
    return params["norm"]["scale"].dtype
