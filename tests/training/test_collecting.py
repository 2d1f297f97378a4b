"""Collecting: no group with spread is lost, used twice, or kept past a step; and a resumed run is the same one."""

import dataclasses
import gc
import json
import threading
import weakref
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.experimental import multihost_utils

from grpo_jax.data.curriculum.sampler import CurriculumSampler
from grpo_jax.data.prompts import Prompts
from grpo_jax.learner.advantages import Advantages
from grpo_jax.rewards.functions.overlong import soft_overlong
from grpo_jax.rollout.programs import Rollout
from grpo_jax.runs import run
from grpo_jax.runs.run import Stopwatch
from grpo_jax.scoring.scorer import Scorer
from grpo_jax.training.advantages import GroupAdvantages
from grpo_jax.training.collector import Collector, DynamicCollector, with_spread
from grpo_jax.training.metrics import step_metrics
from grpo_jax.training.run_state import RunState

WIDTH = 7  # of a completion, in tokens
NAN = float("nan")
# How two functions score a group's completions, and whether the sum of both differs within it.
KINDS = {
    "rising": (lambda g: (g, 0.25), True),
    "two of them known": (lambda g: (NAN if g > 1 else g, NAN), True),
    "all equal": (lambda g: (0.1, 0.7), False),
    "equal in sum": (lambda g: (g, -g), False),
    "equal where known": (lambda g: (NAN if g else 1.0, NAN if g else 2.0), False),
    "none known": (lambda g: (NAN, NAN), False),
}


class Characters:
    """A tokenizer: a token a character one way, numbers the other."""

    def __call__(self, texts, **_):
        return {"input_ids": [[ord(letter) for letter in text] for text in texts]}

    def batch_decode(self, ids, skip_special_tokens):
        return [" ".join(map(str, row)) for row in ids]


class FakeSampler:
    """Completions that say for which prompt, with which weights, and in which step they were drawn."""

    def __init__(self, G):
        self.num_generations, self.max_completion_length, self.calls = G, WIDTH, []

    def __call__(self, params, prompts, step, *, on_group, on_progress):
        uids = prompts.uids
        self.calls.append((step, uids.tolist()))
        drawn = [self.draw(int(uid), int(params), step) for uid in uids]
        rollout = Rollout.of_policy(*(np.stack(part) for part in zip(*drawn)))
        rollout = dataclasses.replace(rollout, action_mask=self.mask(rollout))
        for p in reversed(range(len(uids))):  # the last is complete first
            on_group(p, [row[:n].tolist() for row, n in zip(rollout.tokens[p], rollout.lengths[p])])
        return rollout

    def mask(self, rollout):
        """Of completions in which an environment wrote the token after the first three."""
        return rollout.action_mask & (np.arange(WIDTH) != 3)

    def draw(self, uid, weights, step):
        rng = np.random.default_rng([uid, weights, step])
        lengths = rng.integers(3, WIDTH + 1, self.num_generations).astype(np.int32)
        inside = np.arange(WIDTH) < lengths[:, None]
        tokens = np.where(inside, rng.integers(1, 99, (self.num_generations, WIDTH)), 0).astype(np.int32)
        tokens[:, :3] = uid, weights, step
        logprobs = np.where(inside, -rng.exponential(size=(self.num_generations, WIDTH)), 0.0).astype(
            np.float32
        )
        return tokens, logprobs, lengths, lengths < WIDTH


class FakePool:
    """A reward of each kind for prompt after prompt, and a log of what it saw."""

    names, models = ("first", "second"), {}

    def __init__(self, kinds, G):
        self.kinds, self.G, self.states, self.messages = kinds, G, [], {}

    def score(self, prompts, completions, columns, completion_ids, trainer_state=None):
        self.states.append(trainer_state)
        saying = [KINDS[self.kinds[ids[0] % len(self.kinds)]][0] for ids in completion_ids]
        values = np.array([say(row % self.G) for row, say in enumerate(saying)]).reshape(-1, 2)
        logged = [self.logged(ids) for ids in completion_ids]
        lost = dict.fromkeys(self.names, 0)
        return SimpleNamespace(
            values=values,
            errors=lost | {"first": len(prompts) // self.G},
            timeouts=lost,
            nans=lost,
            extras={} if all(value is None for value in logged) else {"tokens": logged},
            metrics={"rows": float(len(prompts))},
        )

    def idle(self, lacks):
        return frozenset()

    def stream(self, rows, trainer_state=None):
        return FakeStream(self, trainer_state)

    @staticmethod
    def logged(ids):
        return None if ids[0] % 3 == 0 else ids[:]


class FakeStream:
    """Scores at the end what came before."""

    def __init__(self, pool, trainer_state):
        self.pool, self.trainer_state, self.ids = pool, trainer_state, {}

    def add(self, first, prompts, completions, columns, completion_ids, idle):
        self.ids |= dict(enumerate(completion_ids, first))

    def finish(self):
        ids = [self.ids[row] for row in sorted(self.ids)]
        return self.pool.score(ids, None, {}, ids, self.trainer_state)

    def cancel(self):
        pass


@dataclasses.dataclass(frozen=True)
class World:
    """A run's data and settings."""

    kinds: tuple = ("rising",)
    rows: int = 5
    P: int = 2
    G: int = 3
    budget: int = 3
    overlong: tuple | None = None

    def prompts(self):
        rows = [{"prompt": f"{i:0{28 if i % 4 == 3 else 1}}", "answer": i} for i in range(self.rows)]
        return Prompts(rows, Characters(), max_prompt_length=30, pad_id=1)

    def curriculum(self):
        return CurriculumSampler(self.prompts(), seed=3)

    def indices(self, first, count):
        """Of draws `first` .. `first + count - 1`."""
        curriculum = self.curriculum()
        return curriculum.draw(curriculum.begin(), first + count)[0][first:]

    def collector(self, dynamic=True):
        scorer = Scorer(FakePool(self.kinds, self.G), None, Characters(), self.overlong)
        given = self.curriculum(), FakeSampler(self.G), scorer, self.P
        return DynamicCollector(*given, self.budget) if dynamic else Collector(*given)

    def has_spread(self, indices):
        uids = self.prompts().at(indices).uids if len(indices) else []
        return np.array([KINDS[self.kinds[uid % len(self.kinds)]][1] for uid in uids], bool)


worlds = st.builds(
    World,
    kinds=st.lists(st.sampled_from(sorted(KINDS)), min_size=1, max_size=9).map(tuple),
    rows=st.integers(1, 9),
    P=st.integers(1, 4),
    G=st.integers(2, 3),
    budget=st.integers(1, 4),
    overlong=st.sampled_from([None, (WIDTH, 4)]),
)


def start(collector):
    return RunState(collector.curriculum.begin())


def through_json(state):
    """As a checkpoint gives it back."""
    return RunState.from_json(json.loads(json.dumps(state.to_json())))


def steps_of(world, count, state=None, first=0, collector=None):
    """[(trained on, sampled, run state as a checkpoint keeps it)] of steps `first` .. `count` - 1."""
    collector = collector or world.collector()
    state, taken = state or start(collector), []
    for step in range(first, count):
        trained, sampled, state = collector(np.int32(step + 10), step, Stopwatch(), state)
        taken.append((trained, sampled, json.dumps(state.to_json())))
    return taken


def carried(saved):
    return (json.loads(saved)["carried"] or {"tickets": []})["tickets"]


# ---- which groups ----


@given(world=worlds, count=st.integers(1, 7))
@settings(max_examples=60, deadline=None)
def test_every_group_with_spread_is_trained_on_once_and_in_order(world, count):
    taken = steps_of(world, count)
    indices = np.concatenate([trained.indices for trained, _, _ in taken])
    everything = np.array(world.indices(0, json.loads(taken[-1][2])["course"]["total"]))
    useful = indices[world.has_spread(indices)].tolist() + carried(taken[-1][2])
    assert useful == everything[world.has_spread(everything)].tolist()
    assert [len(trained) for trained, _, _ in taken] == [world.P] * count


@given(world=worlds, count=st.integers(1, 7))
@settings(max_examples=60, deadline=None)
def test_a_step_stops_sampling_once_it_has_enough_or_its_budget_is_spent(world, count):
    before = []
    for trained, sampled, saved in steps_of(world, count):
        rounds, rest = divmod(len(sampled), world.P)
        assert rest == 0
        assert 1 <= rounds <= world.budget
        useful = world.has_spread(sampled.indices).reshape(rounds, world.P).sum(1)
        assert len(before) + useful[:-1].sum() < world.P, "the rollout before the last was enough"
        enough = len(before) + useful.sum() >= world.P
        assert enough or rounds == world.budget
        idle = trained.indices[~world.has_spread(trained.indices)]
        of_step = sampled.indices[~world.has_spread(sampled.indices)]
        assert idle.tolist() == of_step[: len(idle)].tolist(), "what fills a step is of this step, in order"
        assert not (enough and len(idle))
        before = carried(saved)
        assert len(before) < world.P


@given(world=worlds, count=st.integers(1, 7))
@settings(max_examples=60, deadline=None)
def test_a_group_is_at_most_one_step_old_and_then_off_policy(world, count):
    for step, (trained, sampled, _) in enumerate(steps_of(world, count)):
        age = step - trained.rollout.tokens[:, 0, 2]
        assert age.tolist() == (~trained.on_policy).astype(int).tolist()
        assert trained.rollout.tokens[:, 0, 1].tolist() == (10 + step - age).tolist(), (
            "the weights that sampled"
        )
        assert sampled.on_policy.all()
        assert (sampled.rollout.tokens[:, :, 2] == step).all()


@given(world=worlds, count=st.integers(1, 6))
@settings(max_examples=40, deadline=None)
def test_all_parts_of_a_group_belong_together(world, count):
    """Everything about a group is what sampling and scoring it alone would have said, bit by bit."""
    sampler, pool, decode = FakeSampler(world.G), FakePool(world.kinds, world.G), Characters().batch_decode
    for trained, sampled, _ in steps_of(world, count):
        for groups in (trained, sampled):
            assert_same(groups.batch, world.prompts().at(groups.indices))
            for i, uid in enumerate(groups.batch.uids):
                alone = groups.take(np.array([i]))
                weights, step = groups.rollout.tokens[i, 0, 1:3]
                drawn = sampler.draw(int(uid), int(weights), int(step))
                whole = Rollout.of_policy(*(part[None] for part in drawn))
                assert_same(alone.rollout, dataclasses.replace(whole, action_mask=sampler.mask(whole)))
                ids = [row[:n].tolist() for row, n in zip(drawn[0], drawn[2])]
                said = pool.score(ids, None, {}, ids)
                assert_same(alone.scored.values[0], said.values.astype(np.float32))
                shaping = soft_overlong(drawn[2], *world.overlong or (0, 0)).astype(np.float32)
                assert_same(alone.scored.rewards[0], alone.scored.base[0] + shaping)
                assert (alone.on_policy, alone.indices) == (groups.on_policy[i], groups.indices[i])
                assert alone.scored.completions == decode(ids, True)
                logged = alone.scored.extras.get("tokens", [None] * world.G)
                assert logged == [pool.logged(row) for row in ids]
        kinds = with_spread(trained.scored.base)
        assert kinds.tolist() == world.has_spread(trained.indices).tolist()


def test_groups_of_different_widths_are_joined_as_if_batched_together():
    """Prompts have 1 or 28 tokens: rollouts of a step come 16 and 30 wide."""
    world = World(kinds=("rising", "all equal", "all equal"), rows=9, P=2, budget=4)
    taken = steps_of(world, 9)
    assert {trained.batch.tokens.shape[1] for trained, _, _ in taken} == {16, 30}
    for trained, _, _ in taken:
        assert_same(trained.batch, world.prompts().at(trained.indices))


@pytest.mark.parametrize("kind", ["all equal", "none known", "equal where known"])
def test_groups_without_spread_fill_the_step_and_a_warning_is_printed_once(kind, capsys):
    world = World(kinds=(kind,), budget=2)
    taken = steps_of(world, 3)
    for step, (trained, sampled, saved) in enumerate(taken):
        assert trained.indices.tolist() == world.indices(4 * step, 2)
        assert sampled.scored.metrics["dynamic_sampling/groups_short"] == 2
        assert carried(saved) == []
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1, "one warning"
    assert "2 rollouts gave 0 of the 2 groups" in said[0]
    assert "max_rollouts_per_step" in said[0]


def test_no_warning_is_printed_if_the_budget_is_enough(capsys):
    steps_of(World(kinds=("all equal", "rising"), rows=6), 4)
    assert capsys.readouterr().err == ""


def test_overlong_penalties_do_not_count_as_spread():
    world = World(kinds=("all equal",), overlong=(WIDTH, 4), budget=3)
    trained, sampled, _ = steps_of(world, 1)[0]
    assert with_spread(trained.scored.rewards).any(), "its completions differ in length"
    assert sampled.scored.metrics["dynamic_sampling/groups_with_spread"] == 0
    assert sampled.scored.metrics["dynamic_sampling/rollouts"] == 3


def test_dynamic_sampling_metrics_are_those_of_their_step():
    world = World(kinds=("rising", "all equal", "rising", "rising"), rows=4, P=3, budget=2)
    for (trained, sampled, saved), expected in zip(steps_of(world, 3), [(2, 6), (1, 3), (1, 3)]):
        figures = {
            name.removeprefix("dynamic_sampling/"): value
            for name, value in sampled.scored.metrics.items()
            if name.startswith("dynamic_sampling/")
        }
        assert figures == {
            "rollouts": expected[0],
            "groups_sampled": expected[1],
            "groups_with_spread": world.has_spread(sampled.indices).sum(),
            "groups_carried": len(carried(saved)),
            "groups_short": 0,
        }
        assert sampled.scored.metrics["rows"] == 9.0, "a figure of the rewards is the mean over rollouts"
        assert sampled.scored.failures == {"rewards/first/errors": len(sampled)}
        assert trained.scored.failures == {}, "counted where they came up, and not again"
        json.dumps(sampled.scored.metrics)


# ---- what stays behind ----


@given(world=worlds, cut=st.integers(1, 5), count=st.integers(2, 7))
@settings(max_examples=60, deadline=None)
def test_a_resumed_run_trains_on_the_same_groups(world, cut, count):
    whole = steps_of(world, count)
    head = steps_of(world, min(cut, count))
    tail = steps_of(world, count, state=RunState.from_json(json.loads(head[-1][2])), first=len(head))
    for one, other in zip(whole, head + tail, strict=True):
        assert_same(one[0], other[0])
        assert_same(one[1], other[1])
        assert one[2] == other[2]


def test_values_keep_their_bits_on_the_way_through_a_checkpoint():
    """Bits that decimals would lose, or a zero without its sign."""
    odd = np.array([-0.0, 1e-45, -1.1754942e-38, 0.1, -3.4e38, -1 / 3, NAN], np.float32)
    collector = World(kinds=("rising", "rising", "all equal"), rows=9, P=3, G=2).collector()
    draw = collector.sampler.draw

    def oddly(*given):
        tokens, _, lengths, finished = draw(*given)
        return tokens, np.stack([odd, odd[::-1]]), lengths, finished

    collector.sampler.draw = oddly
    olds, state = [], start(collector)
    for step in range(6):
        trained, _, state = collector(np.int32(step), step, Stopwatch(), through_json(state))
        olds += list(trained.rollout.logprobs[~trained.on_policy])
    assert olds
    for logprobs in olds:
        assert logprobs.tobytes() == np.stack([odd, odd[::-1]]).tobytes()


def test_a_step_that_fails_leaves_the_run_state_as_it_was():
    world = World(kinds=("rising", "all equal", "all equal"), rows=9, P=3, budget=4)
    collector = world.collector()
    *_, state = collector(np.int32(0), 0, Stopwatch(), start(collector))
    before = json.dumps(state.to_json())
    sampler, rounds = collector.sampler, []
    draws = sampler.draw

    def breaks(*given):
        rounds.append(given)
        if len(rounds) == world.P + 1:  # in the second rollout
            raise RuntimeError("out of memory")
        return draws(*given)

    sampler.draw = breaks
    with pytest.raises(RuntimeError):
        collector(np.int32(1), 1, Stopwatch(), state)
    assert json.dumps(state.to_json()) == before


class Weights:
    def __int__(self):
        return 1


@pytest.mark.parametrize("dynamic", [False, True])
def test_the_rollouts_weights_are_freed_after_it(dynamic):
    collector, weights = World(kinds=("rising", "all equal")).collector(dynamic), Weights()
    *kept, _ = collector(weights, 0, Stopwatch(), start(collector))
    gone = weakref.ref(weights)
    del weights
    gc.collect()
    assert gone() is None
    assert all(isinstance(leaf, np.ndarray) for groups in kept for leaf in jax.tree.leaves(groups.rollout))


# ---- without dynamic sampling ----


def test_a_step_without_dynamic_sampling_trains_on_its_one_rollout():
    world = World(kinds=("all equal", "rising"), P=4)
    collector = world.collector(dynamic=False)
    state = first = start(collector).replace(num_tokens=1)
    for step in range(3):
        trained, sampled, state = collector(np.int32(step), step, Stopwatch(), state)
        assert trained is sampled
        assert_same(trained.batch, world.prompts().at(world.indices(4 * step, 4)))
        assert trained.on_policy.all()
        assert trained.indices.tolist() == world.indices(4 * step, 4)
        assert trained.scored.failures == {"rewards/first/errors": 4}
    assert [step for step, _ in collector.sampler.calls] == [0, 1, 2]
    assert state.curriculum.total == 12
    assert state == first.replace(curriculum=state.curriculum)


def test_figures_count_only_tokens_that_the_policy_chose():
    """Of a rollout with an environment's tokens in it: the tokens of a run, lengths, and the mean divergence."""
    collector = World(P=4).collector(dynamic=False)
    clock = Stopwatch()
    _, sampled, state = collector(np.int32(0), 0, clock, start(collector))
    foreign = int((sampled.rollout.lengths > 3).sum())  # the fourth token of each completion
    chosen = int(sampled.rollout.lengths.sum()) - foreign
    assert foreign > 0
    assert sampled.num_tokens == chosen + 3 * int(sampled.batch.lengths.sum())
    learner = SimpleNamespace(compilations=dict, divergence=lambda _, __: 2.0 * sampled.rollout.action_mask)
    stage = SimpleNamespace(scorer=collector.scorer, sampler=SimpleNamespace(compilations=0), learner=learner)
    components = SimpleNamespace(
        stages=[stage], learner=learner, curriculum=collector.curriculum, reflection=None, schedule=None
    )
    metrics = step_metrics(components, 0, sampled, state, clock=clock, seconds=1.0, done=1)
    assert metrics["completions/mean_length"] == pytest.approx(chosen / 12)
    in_reward = SimpleNamespace(beta=0.5, kl_in="reward", overlong_buffer=0)
    _, metrics = GroupAdvantages(in_reward, Advantages("reinforce_plus_plus"), learner)(sampled)
    assert metrics == {"kl": pytest.approx(2.0)}


@pytest.mark.parametrize("dynamic", [False, True])
def test_the_trainers_state_reaches_the_rewards(dynamic):
    collector = World().collector(dynamic)
    collector(np.int32(0), 0, Stopwatch(), start(collector), "the state")
    assert collector.scorer.pool.states == ["the state"]


# ---- the stopwatch, and scoring ----


def test_the_stopwatch_adds_up_the_rollouts_of_a_step(monkeypatch):
    now = iter([0.0, 1.0, 3.0, 10.0, 15.0, 20.0, 21.0])
    monkeypatch.setattr(run.time, "perf_counter", lambda: next(now))
    clock = Stopwatch()
    for stage in ("rollout", "rollout", "reward"):
        with clock(stage):
            pass
    assert clock.times == {"time/rollout": 2.0 + 5.0, "time/reward": 1.0}


def test_the_overlong_penalty_is_part_of_the_rewards():
    world = World(kinds=("rising", "none known"), overlong=(WIDTH, 4), rows=6, P=6)
    collector = world.collector(dynamic=False)
    groups, *_ = collector(np.int32(0), 0, Stopwatch(), start(collector))
    shaping = -np.clip((groups.rollout.lengths - (WIDTH - 4)) / 4, 0, 1)
    expected = np.nansum(groups.scored.values, -1) + shaping
    expected[np.isnan(groups.scored.values).all(-1)] = np.nan
    assert np.isnan(expected).any(), "an unknown reward stays unknown"
    np.testing.assert_allclose(groups.scored.rewards, expected, rtol=1e-6)
    assert groups.scored.metrics["rewards/overlong/mean"] == pytest.approx(shaping.mean())
    assert groups.scored.rewards.dtype == groups.scored.base.dtype == np.float32


@pytest.mark.parametrize("processes", [2, 3, 5])
def test_all_hosts_have_the_same_groups_rewards_and_metrics(processes, monkeypatch):
    """Each host scores its share (of 5 hosts one has none); all must decide by the same bits."""
    world = World(kinds=tuple(KINDS), rows=8, P=4, budget=2)
    alone = steps_of(world, 4)
    here, everyone = threading.local(), [None] * processes
    meeting = threading.Barrier(processes, timeout=60)

    def allgather(value):
        everyone[here.index] = value
        meeting.wait()
        found = jax.tree.map(lambda *x: np.stack(x), *everyone)
        meeting.wait()
        return found

    monkeypatch.setattr(multihost_utils, "process_allgather", allgather)
    monkeypatch.setattr(jax, "process_count", lambda: processes)
    monkeypatch.setattr(jax, "process_index", lambda: here.index)
    ends = [None] * processes

    def process(index):
        here.index = index
        ends[index] = steps_of(world, 4)

    threads = [threading.Thread(target=process, args=(i,)) for i in range(processes)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    for end in ends:
        for one, other in zip(alone, end, strict=True):
            assert_same(one[0], other[0])
            assert one[2] == other[2], "the run state"
            assert one[1].scored.failures == other[1].scored.failures
            shares = (
                np.diff([4 * i // processes for i in range(processes + 1)]) * 3
            )  # rows of each host, 12 in all
            assert other[1].scored.metrics["rows"] == pytest.approx((shares**2).sum() / 12), (
                "weighted by rows"
            )


def assert_same(one, other):
    """Equal in every field, arrays bit by bit."""
    if dataclasses.is_dataclass(one):
        for field in dataclasses.fields(one):
            assert_same(getattr(one, field.name), getattr(other, field.name))
    elif isinstance(one, np.ndarray):
        assert (one.dtype, one.shape, one.tobytes()) == (other.dtype, other.shape, other.tobytes())
    else:
        assert one == other
