"""The compiled programs of a rollout: the whole in one dispatch, or piece by piece with rows that come and go.

Each part of the mesh that has rows of its own (`ROWS`) decodes by itself, without a word to the others; only `tensor`
is left to the compiler. So a part stops when its own rows have ended, and rearranging moves nothing between parts.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as Spec

from grpo_jax.models.config import ModelConfig
from grpo_jax.models.qwen import Params, for_decoding
from grpo_jax.program import Program
from grpo_jax.rollout.compaction import move_layer, move_rows, rearranged
from grpo_jax.rollout.decoding import Newcomers, admit, extend
from grpo_jax.rollout.sampling import Sampling
from grpo_jax.rollout.state import Decoder, Decoding, Size, Vocabulary, blank
from grpo_jax.sharding.mesh import ROWS, by_rows, on_cpu

__all__ = ["Programs", "Rollout", "Vocabulary", "make_generate"]

WHOLE, OWN = Spec(), Spec(ROWS)  # how arrays are split over the parts


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Rollout:
    """P prompts with G completions each. The end-of-sequence token is an action: it is stored, counted and scored."""

    tokens: Array  # [P,G,Tc] int32, pad_id after the end
    logprobs: Array  # [P,G,Tc] float32 under the full softmax at the sampling temperature, 0 after the end
    lengths: Array  # [P,G] int32, end-of-sequence included
    finished: Array  # [P,G] bool, False where the length limit cut the completion
    action_mask: Array  # [P,G,Tc] bool, True for tokens that the policy chose: what it is trained on

    @staticmethod
    def of_policy(tokens: Any, logprobs: Any, lengths: Any, finished: Any) -> "Rollout":
        """A rollout whose tokens were all chosen by the policy. NumPy arrays, or traced ones."""
        numpy = np if isinstance(lengths, np.ndarray) else jnp
        mask = numpy.arange(tokens.shape[-1]) < lengths[..., None]
        return Rollout(tokens, logprobs, lengths, finished, mask)


def make_generate(
    cfg: ModelConfig,
    vocabulary: Vocabulary,
    how: Sampling,
    samples: int,
    width: int,
    mesh: Mesh,
    cache_form: str = "auto",
) -> Program:
    """The program (params, tokens [P,Tp], lengths [P], uids [P], step key) -> Rollout of `samples` completions a
    prompt, each up to `width` tokens. It compiles once for each (P, Tp). `cache_form`: as of `Decoder`."""
    whole = partial(_generate, Decoder(cfg, vocabulary, how, on_cpu(mesh), cache_form), samples, width)
    return Program(
        "rollout", _by_part(mesh, whole, (WHOLE, OWN, OWN, OWN, WHOLE), OWN), out_shardings=by_rows(mesh)
    )


def _generate(
    of: Decoder,
    samples: int,
    width: int,
    params: Params,
    tokens: Array,
    lengths: Array,
    uids: Array,
    key: Array,
) -> Rollout:
    m, prompt_width = tokens.shape
    places = jnp.arange(m, dtype=jnp.int32)[:, None]
    new = Newcomers(tokens, lengths, uids, places, jnp.full((m, 1, samples), width, jnp.int32))
    if not isinstance(params["layers"], tuple):
        params = for_decoding(params, of.on_cpu)
    state = blank(of, Size(m, samples, width), prompt_width, _dtype(params))
    state, first = admit(of, params, key, state, new)
    if width == 1:
        return Rollout.of_policy(first.tokens, first.logprobs, first.lengths, first.finished)
    _, rest = extend(of, width - 1, params, state)
    join = lambda a, b: jnp.concatenate([a, b], axis=-1)
    return Rollout.of_policy(
        join(first.tokens, rest.tokens), join(first.logprobs, rest.logprobs), rest.lengths, rest.finished
    )


@cache
def decoding_program(mesh: Mesh) -> Program:
    """The program (params as stacked layers) -> params as programs that draw tokens read them."""
    return Program("for_decoding", partial(for_decoding, on_cpu=on_cpu(mesh)))


class Programs:
    """The programs of a rollout in segments of `count` tokens. Each compiles once for each shape of its arrays."""

    def __init__(self, of: Decoder, count: int, mesh: Mesh):
        self.count, self._of, self._mesh = count, of, mesh
        self._blank: dict[tuple, Program] = {}
        self._moves: dict[tuple, Program] = {}
        part = partial(_by_part, mesh)
        # (params, step key, state, Newcomers) -> (state, Drawn of one token); the state is donated
        self.admit = Program(
            "admit", part(partial(admit, of), (WHOLE, WHOLE, OWN, OWN), OWN), donate_argnums=2
        )
        # (params, state) -> (state, Drawn of `count` tokens); the state is donated
        self.extend = Program("extend", part(partial(extend, of, count), (WHOLE, OWN), OWN), donate_argnums=1)

    def blank(self, size: Size, prompt_width: int, params: Params) -> Decoding:
        """An empty table of that size on each part of the mesh."""
        key = (size, prompt_width, _dtype(params))
        if key not in self._blank:
            self._blank[key] = Program("blank", partial(self.empty, *key))
        return self._blank[key]()

    def empty(self, size: Size, prompt_width: int, dtype: jnp.dtype) -> Decoding:
        """What `blank` computes."""
        return _by_part(self._mesh, partial(blank, self._of, size, prompt_width, dtype), (), OWN)()

    def rearranged(self, state: Decoding, slots: int, places: Array, rows: Array) -> Decoding:
        """`state`, which is used up, at places [D*S'] with rows [D*S',g'] and `slots` slots. Numbers of places and rows
        are those within a part."""
        old = state.cache.slots
        return rearranged(self._rows_moved(old, slots), self._layer_moved(slots), state, places, rows)

    @property
    def compilations(self) -> int:
        """Of all programs."""
        programs = self.admit, self.extend, *self._blank.values(), *self._moves.values()
        return sum(program.compilations for program in programs)

    def _rows_moved(self, old: int, new: int) -> Program:
        return self._move(partial(move_rows, old, new), "rearrange", (old, new), 3)

    def _layer_moved(self, new: int) -> Program:
        return self._move(partial(move_layer, new), "rearrange_layer", (new,), 4)

    def _move(self, function: Callable, name: str, slots: tuple[int, ...], arguments: int) -> Program:
        key = name, *slots
        if key not in self._moves:
            self._moves[key] = Program(name, _by_part(self._mesh, function, (OWN,) * arguments, OWN))
        return self._moves[key]


def _by_part(mesh: Mesh, function: Callable, takes: Any, gives: Any) -> Callable:
    """`function` on each part's own rows. An axis with more than one place that is not of `ROWS` stays the compiler's;
    one with a single place has nothing for it to do, and cuDNN's attention wants none left."""
    own = {axis for axis in mesh.axis_names if axis in ROWS or mesh.shape[axis] == 1}
    return jax.shard_map(
        function, mesh=mesh, in_specs=takes, out_specs=gives, axis_names=own, check_vma=False
    )


def _dtype(params: Params) -> jnp.dtype:
    return params["norm"]["scale"].dtype
