"""The sampler as the verbs use it: host arrays in, a rollout on the host out.

Long completions are drawn in segments. While a segment runs, the host reads the one before: rows that have ended
leave, what is left moves into a smaller rectangle of powers of two, and the cache grows by powers of two, so that
early tokens do not attend over places that are still empty. Nothing of this changes what is drawn.
"""

from collections import deque
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax import Array
from jax.sharding import Mesh

from grpo_jax.models.config import ModelConfig
from grpo_jax.models.qwen import Params
from grpo_jax.rollout.decoding import Decoder, Decoding, Drawn, Vocabulary
from grpo_jax.rollout.generate import Rollout, Segments
from grpo_jax.rollout.sampling import Sampling
from grpo_jax.sharding import hosts
from grpo_jax.sharding.mesh import by_rows, row_shards

_FEWEST = 128  # places of the cache at first: fewer are not worth a compilation


class Sampler:
    """Draws `samples` completions of up to `width` tokens for each prompt, `segment` tokens at a time (0: all).

    `purpose` separates streams of random numbers of one seed: training and evaluation never share any.
    """

    def __init__(
        self,
        cfg: ModelConfig,
        vocabulary: Vocabulary,
        how: Sampling,
        *,
        samples: int,
        width: int,
        mesh: Mesh,
        seed: int,
        purpose: int = 0,
        segment: int = 0,
    ):
        self.samples, self.width, self.pad_id = samples, width, vocabulary.pad_id
        self.segment = min(segment or width, width)
        self.mesh, self.rows = mesh, by_rows(mesh)
        slots = _slots(self.segment, width) if segment else width
        decoder = Decoder(cfg, vocabulary, how, width)
        self.programs = Segments(decoder, samples, max(self.segment, 1), slots, mesh)
        self.key = jax.random.fold_in(jax.random.key(seed), purpose)

    def __call__(
        self, params: Params, tokens: np.ndarray, lengths: np.ndarray, uids: np.ndarray, step: int
    ) -> Rollout:
        """A rollout, NumPy arrays whole on every host, for prompts [P,Tp] int32 (right-padded) of `lengths` [P],
        known by `uids` [P] uint32.

        `params` are in the rollout's dtype and layout. Every process must call it.
        """
        put = lambda x, dtype: hosts.put(np.asarray(x, dtype), self.rows)
        prompts = put(tokens, np.int32), put(lengths, np.int32), put(uids, np.uint32)
        state, first = self.programs.begin(params, *prompts, self.step_key(step))
        collected = _Collected(len(lengths), self.samples, self.width, self.pad_id)
        collected.add(first, _Place.of_all(len(lengths), self.samples), 0)
        self._draw(params, state, collected)
        return collected.rollout

    def step_key(self, step: int) -> Array:
        """The key from which all of a step's random numbers come."""
        return jax.random.fold_in(self.key, step)

    @property
    def compilations(self) -> int:
        """How many programs were compiled."""
        return self.programs.compilations

    def _draw(self, params: Params, state: Decoding, collected: "_Collected") -> None:
        """The tokens after the first. A segment is read when the next one has been sent to the devices."""
        P, G = state.last.shape
        pending: deque[tuple[Drawn, _Place, int]] = deque()
        place, drawn = _Place.of_all(P, G), 1
        while drawn < self.width and not collected.finished.all():
            state, place = self._arranged(state, place, drawn, collected.finished)
            state, part = self.programs.extend(params, state)
            pending.append((part, place, drawn))
            drawn += self.segment
            if len(pending) > self._ahead:
                collected.add(*pending.popleft())
        for part in pending:
            collected.add(*part)

    def _arranged(
        self, state: Decoding, place: "_Place", drawn: int, finished: np.ndarray
    ) -> tuple[Decoding, "_Place"]:
        """The state with room for the next segment, and without rows that have ended when that makes it half as
        large."""
        slots = state.cache.own_k.shape[4]
        needed = slots if drawn + self.segment <= slots + 1 else _slots(drawn + self.segment, self.width)
        smaller = place.without(finished, row_shards(self.mesh))
        if needed == slots and smaller is None:
            return state, place
        prompts, samples, place = smaller or place.as_it_is()
        whole = self.programs.rearrange(needed)
        return whole(state, prompts, samples), place

    @property
    def _ahead(self) -> int:
        """Segments on the devices that are not read yet. Virtual CPU devices must not have two programs with
        collectives under way: they wait for one another."""
        virtual = self.mesh.size > 1 and self.mesh.devices.flat[0].platform == "cpu"
        return 0 if virtual else 1


@dataclass(frozen=True)
class _Place:
    """Which rows of the rollout the rows of a state are."""

    prompts: np.ndarray  # [P'] int
    samples: np.ndarray  # [P',G'] int

    @staticmethod
    def of_all(prompts: int, samples: int) -> "_Place":
        return _Place(np.arange(prompts), np.tile(np.arange(samples), (prompts, 1)))

    def as_it_is(self) -> "tuple[np.ndarray, np.ndarray, _Place]":
        """As `without`, leaving out nothing."""
        P, G = self.samples.shape
        return np.arange(P), np.tile(np.arange(G), (P, 1)), self

    def without(self, finished: np.ndarray, shards: int) -> "tuple[np.ndarray, np.ndarray, _Place] | None":
        """(prompts [P''], samples [P'',G''] of this place to keep, the place they make), when `finished` [P,G] says
        that half of this place, or more, is not needed. Sizes are powers of two, prompts over all `shards`."""
        ended = finished[self.prompts[:, None], self.samples]  # [P',G']
        alive = (~ended).sum(1)
        P = _power(max(int((alive > 0).sum()), 1), len(alive), least=shards)
        G = _power(max(int(alive.max()), 1), ended.shape[1])
        if ended.size < 2 * P * G:
            return None
        prompts = np.sort(np.argsort(alive == 0, kind="stable")[:P])
        samples = np.sort(np.argsort(ended[prompts], axis=1, kind="stable")[:, :G], axis=1)
        kept = _Place(self.prompts[prompts], np.take_along_axis(self.samples[prompts], samples, axis=1))
        return prompts, samples, kept


class _Collected:
    """The rollout on the host, as far as it is read."""

    def __init__(self, P: int, G: int, width: int, pad_id: int):
        self.tokens, self.logprobs = (
            np.full((P, G, width), pad_id, np.int32),
            np.zeros((P, G, width), np.float32),
        )
        self.lengths, self.finished = np.zeros((P, G), np.int32), np.zeros((P, G), bool)

    def add(self, part: Drawn, place: _Place, first: int) -> None:
        """Write what was drawn from position `first` on."""
        rows = place.prompts[:, None], place.samples
        tokens, logprobs = hosts.get(part.tokens), hosts.get(part.logprobs)
        count = min(tokens.shape[-1], self.tokens.shape[-1] - first)
        self.tokens[(*rows, slice(first, first + count))] = tokens[..., :count]
        self.logprobs[(*rows, slice(first, first + count))] = logprobs[..., :count]
        self.lengths[rows], self.finished[rows] = hosts.get(part.lengths), hosts.get(part.finished)

    @property
    def rollout(self) -> Rollout:
        arrays: Any = self.tokens, self.logprobs, self.lengths, self.finished
        return Rollout(*arrays)


def _slots(tokens: int, width: int) -> int:
    """Places of the cache that `tokens` tokens need: a power of two, and not more than the whole width."""
    return min(max(1 << (tokens - 1).bit_length(), _FEWEST), width)


def _power(count: int, most: int, least: int = 1) -> int:
    """The smallest of least, 2 least, 4 least, ..., `most` that is not below `count`."""
    size = least
    while size < count:
        size *= 2
    return min(size, most)
