"""Which prompts come next: a function of the sampler's state, which every checkpoint holds.

The draws of a domain are an endless sequence: epoch 0 in its order, epoch 1 in its order, and so on. An epoch's order
is a function of (seed, epoch), less the rows that are not in the stage or are left out of the epoch. Domains take turns
by their weights. Nothing here is random beyond the seed, so a run that starts again draws what it would have drawn.
"""

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, asdict, dataclass, field, replace
from typing import Any

import numpy as np

from grpo_jax.data.curriculum.epoch_order import epoch_order
from grpo_jax.data.curriculum.pass_rate_filter import PassRateFilter, Rates, seen
from grpo_jax.data.curriculum.stages import Stage, Step
from grpo_jax.data.prompts import Prompts


@dataclass(frozen=True)
class SamplerState:
    """How far a curriculum sampler is: JSON values, never changed in place. Lists have an entry for each domain."""

    places: Sequence[Sequence[int]]  # (epoch, how many of it are drawn)
    out: Sequence[Sequence[int]]  # rows that are left out of this epoch
    drawn: Sequence[int]  # prompts since the stage began
    _: KW_ONLY
    total: int = 0  # prompts since the run began
    stage: int = 0
    over: bool = False  # the last stage has ended
    to_redraw: Sequence[int] = ()  # indices that come first: drawn already, and not trained on
    rates: Rates = field(default_factory=dict)
    recent: Sequence[Step] = ()  # the stage's last steps

    def to_json(self) -> dict[str, Any]:
        """As a checkpoint keeps it."""
        saved = asdict(self)
        saved["again"] = saved.pop("to_redraw")  # the key in checkpoints is older than the name
        return saved

    @staticmethod
    def from_json(saved: Mapping[str, Any]) -> "SamplerState":
        """What `to_json` wrote."""
        rest = {name: value for name, value in saved.items() if name != "again"}
        return SamplerState(**rest, to_redraw=saved.get("again", ()))


class CurriculumSampler:
    """Draws sample indices of `prompts`, stage by stage: epoch * (number of rows) + row. It has no state of its own: a
    `SamplerState` goes in and comes out.

    Args:
        stages: in their order; without any, one with all prompts.
        filters: an epoch leaves out the rows that one of them says; none, if it would leave out all.
        shuffle: an order drawn anew each epoch; otherwise the data's own.
    """

    def __init__(
        self,
        prompts: Prompts,
        stages: Sequence[Stage] = (),
        filters: Sequence[PassRateFilter] = (),
        *,
        seed: int = 0,
        shuffle: bool = True,
    ):
        self.prompts, self.filters = prompts, tuple(filters)
        self.stages = tuple(stages) or (whole(prompts),)
        self.seed, self.shuffle = seed, shuffle

    def begin(self) -> SamplerState:
        """The state before the first step."""
        n = len(self.prompts.domains)
        out = [self.left_out(self.stages[0].rows[d], 0, {}) for d in range(n)]
        return SamplerState(places=[(0, 0)] * n, out=out, drawn=[0] * n)

    def draw(self, state: SamplerState, count: int) -> tuple[list[int], SamplerState]:
        """(the next `count` sample indices, the state after them)."""
        draws = _Draws(self, state)
        return [draws.next() for _ in range(count)], draws.end()

    def learn(
        self, state: SamplerState, done: int, indices: Sequence[int], successes: np.ndarray, step: Step
    ) -> SamplerState:
        """The state after a step: what was seen of the prompts, and whether a stage ends.

        Args:
            done: steps of the run, this one included.
            indices: of the n prompts that were answered; successes: float [n,G], 1, 0, or NaN for unknown.
            step: its mean reward, and the share of completions that were cut.
        """
        rates = state.rates
        if self.filters:
            epochs, rows = zip(*(divmod(index, self.prompts.rows) for index in indices))
            rates = seen(rates, rows, epochs, successes)
        stage = self.stages[state.stage]
        known = () if np.isnan(step).any() else (tuple(step),)
        recent = tuple([*state.recent, *known][-2 * stage.until.window :]) if len(self.stages) > 1 else ()
        state = replace(state, rates=rates, recent=recent)
        ends = stage.until.fires(done, sum(state.drawn), stage.prompts, recent)
        return self._next_stage(state) if ends else state

    def pool(self, state: SamplerState) -> tuple[int, int]:
        """(prompts of the stage, how many of them are left out now)."""
        stage = self.stages[state.stage]
        out = sum(len(rows) for rows, weight in zip(state.out, stage.weights) if weight)
        return stage.prompts, out

    def _next_stage(self, state: SamplerState) -> SamplerState:
        """A domain with unchanged rows keeps its position; one with other rows begins a new epoch."""
        if state.stage + 1 == len(self.stages):
            return replace(state, over=True)
        old, new = self.stages[state.stage].rows, self.stages[state.stage + 1].rows
        places, out = list(state.places), list(state.out)
        for d, (before, now) in enumerate(zip(old, new)):
            if not np.array_equal(before, now):
                epoch = places[d][0] + (places[d][1] > 0)
                places[d], out[d] = (epoch, 0), self.left_out(now, epoch, state.rates)
        drawn = [0] * len(places)
        return replace(state, stage=state.stage + 1, places=places, out=out, drawn=drawn, recent=())

    def left_out(self, rows: np.ndarray, epoch: int, rates: Rates) -> list[int]:
        """Those of `rows` that the epoch leaves out; none, if it would leave out all."""
        out = [int(row) for row in rows if any(f.leaves_out(int(row), epoch, rates) for f in self.filters)]
        return out if len(out) < len(rows) else []

    def order(self, stage: int, domain: int, epoch: int, out: Sequence[int]) -> np.ndarray:
        """The rows of an epoch of a domain, one after another."""
        rows = self.prompts.domains[domain].rows
        if self.shuffle:
            rows = rows[epoch_order(self.seed + (domain << 32), epoch, len(rows))]
        taking_part = self.stages[stage].rows[domain]
        if len(taking_part) < len(rows) or len(out):
            rows = rows[np.isin(rows, np.setdiff1d(taking_part, out))]
        return rows


class _Draws:
    """A sampler while it is drawn from."""

    def __init__(self, sampler: CurriculumSampler, state: SamplerState):
        self.sampler, self.state = sampler, state
        self.weights = sampler.stages[state.stage].weights
        self.places, self.out, self.drawn = (
            [list(place) for place in state.places],
            list(state.out),
            list(state.drawn),
        )
        self.to_redraw, self.total = deque(state.to_redraw), state.total
        self.orders: dict[int, np.ndarray] = {}  # of the domains' epochs under way

    def next(self) -> int:
        """The next index."""
        if self.to_redraw:
            return self.to_redraw.popleft()
        domain = self._turn()
        order = self._order(domain)
        epoch, position = self.places[domain]
        self.places[domain][1] += 1
        self.drawn[domain] += 1
        self.total += 1
        return epoch * self.sampler.prompts.rows + int(order[position])

    def end(self) -> SamplerState:
        """The state after these draws."""
        return replace(
            self.state,
            places=[tuple(place) for place in self.places],
            out=self.out,
            drawn=self.drawn,
            total=self.total,
            to_redraw=list(self.to_redraw),
        )

    def _turn(self) -> int:
        """The domain that is furthest behind its share."""
        share = np.array(self.weights) / sum(self.weights)
        return int(np.argmax(share * (sum(self.drawn) + 1) - self.drawn))

    def _order(self, domain: int) -> np.ndarray:
        """The epoch under way, or the next one when it is over."""
        if domain not in self.orders:
            self.orders[domain] = self._rows(domain)
        if self.places[domain][1] >= len(self.orders[domain]):
            epoch = self.places[domain][0] + 1
            rows = self.sampler.stages[self.state.stage].rows[domain]
            self.places[domain] = [epoch, 0]
            self.out[domain] = self.sampler.left_out(rows, epoch, self.state.rates)
            self.orders[domain] = self._rows(domain)
        return self.orders[domain]

    def _rows(self, domain: int) -> np.ndarray:
        return self.sampler.order(self.state.stage, domain, self.places[domain][0], self.out[domain])


def whole(prompts: Prompts) -> Stage:
    """All prompts, the domains in proportion to theirs."""
    rows = tuple(domain.rows for domain in prompts.domains)
    return Stage("", rows, tuple(float(len(part)) for part in rows))
