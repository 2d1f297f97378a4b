"""Schedules against a device that is a few lines of NumPy: hundreds of them without a compilation."""

from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings, strategies

from grpo_jax.rollout import budget, row_table
from grpo_jax.rollout import scheduler as module
from grpo_jax.rollout.output_buffer import OutputBuffer
from grpo_jax.rollout.scheduler import Scheduler
from grpo_jax.rollout.state import SampledTokens, TableSize

TOKENS = 97


def token(uid, sample, position):
    """The token that the device samples."""
    return (np.asarray(uid, np.int64) * 31 + sample * 7 + position * 13) % TOKENS


class Device:
    """Programs on rows that are (uid, sample, length, limit), with a ring for each row; shard by shard.

    The ring holds, slot by slot, the position whose keys stand there: a step checks that each row finds all of its
    own. Rows end when they draw a token below `share` of all.
    """

    def __init__(self, shards, count, enders):
        self.shards, self.count, self.enders = shards, count, enders
        self.shapes, self.most_rows, self.steps = set(), 0, 0

    def empty_state(self, size, width, params):
        rows = self.shards, size.places, size.rows
        self.most_rows = max(self.most_rows, int(np.prod(rows)))
        return SimpleNamespace(
            uid=np.zeros(rows, np.uint32),
            sample=np.zeros(rows, int),
            length=np.zeros(rows, int),
            limit=np.zeros(rows, int),
            done=np.zeros(rows, bool),
            slot=np.zeros(self.shards, int),
            ring=np.full((*rows, size.slots), -1),
        )

    def prefill(self, params, key, state, batch):
        D, S, g = state.uid.shape
        places, limits = batch.places.reshape(D, -1), batch.limits.reshape(D, -1, g)
        times = batch.places.shape[1]
        samples = np.arange(times * g).reshape(times, g)
        tokens = np.zeros((*limits.shape, 1), int)
        sampled = SimpleNamespace(length=np.zeros(limits.shape, int), done=np.zeros(limits.shape, bool))
        for d in range(D):
            for i, place in enumerate(places[d]):
                uid = batch.uids.reshape(D, -1)[d, i // times]
                first = token(uid, samples[i % times], 0)
                live = limits[d, i] > 0
                tokens[d, i, :, 0], sampled.length[d, i] = first, live
                sampled.done[d, i] = live & (first < self.enders)
                if place < S:
                    here = d, place
                    assert not ((state.limit[here] > state.length[here]) & ~state.done[here]).any(), "evicted"
                    state.uid[here], state.sample[here], state.limit[here] = (
                        uid,
                        samples[i % times],
                        limits[d, i],
                    )
                    state.length[here], state.done[here] = sampled.length[d, i], sampled.done[d, i]
        return state, SampledTokens(
            tokens.reshape(-1, g, 1),
            np.zeros((D * limits.shape[1], g, 1), np.float32),
            sampled.length.reshape(-1, g),
            sampled.done.reshape(-1, g),
        )

    def decode(self, params, state):
        D, S, g = state.uid.shape
        slots = state.ring.shape[3]
        self.shapes.add((S, g, slots))
        tokens = np.zeros((D, S, g, self.count), int)
        for d in range(D):
            for n in range(self.count):
                live = ~state.done[d] & (state.length[d] < state.limit[d])
                if not live.any():
                    break
                self.steps += 1
                state.ring[d, ..., state.slot[d]] = state.length[d] - 1
                ages = (state.slot[d] - np.arange(slots)) % slots
                for s, r in zip(*np.nonzero(live)):
                    seen = state.ring[d, s, r][ages < state.length[d, s, r]]
                    assert sorted(seen) == list(range(state.length[d, s, r])), "keys are lost"
                sampled = token(state.uid[d], state.sample[d], state.length[d])
                tokens[d, ..., n] = sampled
                state.length[d] += live
                state.done[d] |= live & (sampled < self.enders)
                state.slot[d] = (state.slot[d] + 1) % slots
        rows = D * S, g
        return state, SampledTokens(
            tokens.reshape(*rows, -1),
            np.zeros((*rows, self.count), np.float32),
            state.length.reshape(rows).copy(),
            state.done.reshape(rows).copy(),
        )

    def compact(self, state, slots, places, rows):
        D, S, g = state.uid.shape
        rows = rows.reshape(D, -1, rows.shape[-1])
        before = {
            (d, u, s)
            for d, p, r in zip(*np.nonzero(~state.done & (state.length < state.limit)))
            for u, s in [(state.uid[d, p, r], state.sample[d, p, r])]
        }
        shard = np.arange(D)[:, None, None]
        of_rows = lambda x: x.reshape(D, S * g, *x.shape[3:])[shard, rows]
        old, kept = state.ring.shape[3], min(state.ring.shape[3], slots)
        ring = of_rows(state.ring)
        if old != slots:
            turned = np.full((*rows.shape, slots), -1)
            for d in range(D):
                turned[d, ..., :kept] = ring[d][..., (np.arange(kept) + state.slot[d] - kept) % old]
            ring, state.slot = turned, np.full(D, kept % slots)
        made = SimpleNamespace(
            **{name: of_rows(getattr(state, name)) for name in ("uid", "sample", "length", "done")},
            limit=np.where(rows >= 0, of_rows(state.limit), 0),
            slot=state.slot,
            ring=ring,
        )
        after = list(zip(*np.nonzero(~made.done & (made.length < made.limit))))
        assert before == {(d, made.uid[d, p, r], made.sample[d, p, r]) for d, p, r in after}
        assert len(before) == len(after), "a row twice"
        prompts = state.uid[shard[..., 0], places.reshape(D, -1), 0]
        for d, p, r in after:
            assert prompts[d, p] == made.uid[d, p, r], "a row beside another prompt"
        return made


@pytest.fixture(autouse=True)
def _on_the_host(monkeypatch):
    monkeypatch.setattr(row_table, "_MIN_SLOTS", 4)
    monkeypatch.setattr(row_table, "_MIN_GROWTH", 8)
    monkeypatch.setattr(budget, "_PREFILL_TOKENS", 12)
    monkeypatch.setattr(module.hosts, "put", lambda x, sharding: np.asarray(x))
    monkeypatch.setattr(module.hosts, "get", np.asarray)
    monkeypatch.setattr(module, "by_rows", lambda mesh: None)
    monkeypatch.setattr(module, "row_shards", lambda mesh: mesh.shards)


def run(P, G, width, count, rows, shards, enders, rng, ahead=1):
    limits = np.minimum(rng.geometric(rng.uniform(0.05, 0.9), (P, G)), width).astype(np.int32)
    limits[rng.random((P, G)) < 0.05] = 0
    uids = rng.integers(0, 2**32, P, dtype=np.uint32)
    device, output = Device(shards, count, enders), OutputBuffer(limits, width, -1)
    mesh = SimpleNamespace(
        shards=shards, size=1 if ahead else 2, devices=np.array([SimpleNamespace(platform="cpu")])
    )
    prompts = SimpleNamespace(tokens=np.zeros((P, 3), np.int32), lengths=np.full(P, 3), uids=uids)
    scheduler = Scheduler(
        device, None, key=None, prompts=prompts, prompt_keys=None, output=output, rows=rows, mesh=mesh
    )
    reported = list(scheduler.run())
    return device, output, limits, uids, reported


@settings(max_examples=400, deadline=None)
@given(
    strategies.integers(1, 13),
    strategies.sampled_from([1, 2, 3, 4, 5, 8]),
    strategies.integers(1, 40),
    strategies.integers(1, 17),
    strategies.integers(0, 40),
    strategies.sampled_from([1, 2, 4]),
    strategies.integers(0, 1),
    strategies.integers(0, 2**32 - 1),
)
def test_no_schedule_loses_or_changes_a_token(P, G, width, count, rows, shards, ahead, seed):
    rng = np.random.default_rng(seed)
    enders = int(rng.integers(0, 30))
    device, output, limits, uids, reported = run(P, G, width, count, rows, shards, enders, rng, ahead)
    positions = np.arange(width)
    for p in range(P):
        for s in range(G):
            sampled = token(uids[p], s, positions)
            ends = np.flatnonzero(sampled < enders)
            n = min(int(ends[0]) + 1 if len(ends) else width, limits[p, s])
            assert output.lengths[p, s] == n
            assert output.tokens[p, s].tolist() == [*sampled[:n], *[-1] * (width - n)]
            assert output.finished[p, s] == (n > 0 and sampled[n - 1] < enders)
    assert sorted(reported) == list(range(P))
    g = -(-G // 4)
    one_prompt = -(-G // g) * g  # of which a shard cannot have less
    everything = -(-P // shards) * G
    assert device.most_rows <= (max(rows, one_prompt * shards) if rows else everything * shards)


@settings(max_examples=30, deadline=None)
@given(strategies.integers(0, 2**32 - 1))
def test_compilations_do_not_grow_with_the_number_of_rollouts(seed):
    """Whatever the lengths, sizes are few, however many rollouts there were: powers of two but for a long ring."""
    rng, shapes = np.random.default_rng(seed), set()
    for _ in range(12):
        device, *_ = run(8, 8, 64, 8, 24, 1, int(rng.integers(0, 20)), rng)
        shapes |= device.shapes
        assert len(device.shapes) <= 16, "on the way from the largest table to the smallest"
    assert len(shapes) <= row_table.max_table_sizes(TableSize(12, 2, 4), 64)


@pytest.mark.parametrize("width", [1, 3, 100, 128, 700, 4096, 5000])
def test_a_ring_has_few_more_slots_than_tokens(width, monkeypatch):
    monkeypatch.undo()  # the sizes that run
    slots = [row_table.ring_slots(tokens, width) for tokens in range(1, width + 1)]
    assert all(tokens <= s <= width for tokens, s in enumerate(slots, 1))
    assert all(
        s <= max(128, 2 * tokens if tokens <= 512 else tokens + 256, 1.25 * tokens)
        for tokens, s in enumerate(slots, 1)
    )
    assert row_table.ring_sizes(width) == sorted(set(slots))
    assert len(row_table.ring_sizes(4096)) == 13
