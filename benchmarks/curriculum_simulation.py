"""The share of groups that can teach under uniform draws, history resampling and dynamic sampling, where it is known
how likely each prompt is solved. No model: completions are coins, so the figures are of the drawing alone.

    python benchmarks/curriculum_simulation.py > benchmarks/curriculum.json

Prompts have success rates from Beta distributions: even, mostly too easy, mostly too hard; about half of the groups of
8 have no spread in each, as SRPO found mid-run. Rates stay, or a prompt's log-odds rise by `gain` each time that its
group has spread. The curriculum sampler and the rule of what can teach are the product's own.
"""

import argparse
import json

import numpy as np

from grpo_jax.data.curriculum.pass_rate_filter import PassRateFilter
from grpo_jax.data.curriculum.sampler import CurriculumSampler
from grpo_jax.data.prompts import Prompts
from grpo_jax.training.collector import with_spread

WAYS = {
    "uniform": (),
    "history resampling": (PassRateFilter(high=1.0),),
    "history resampling, again after 4 epochs": (PassRateFilter(high=1.0, retry=4),),
    "pass rate between 0 and 1, again after 4 epochs": (PassRateFilter(0.0, 1.0, retry=4),),
}


MIXES = {"even": (0.35, 0.35), "mostly easy": (1.2, 0.2), "mostly hard": (0.25, 1.0)}
SETTINGS = {"prompts": 2000, "steps": 400, "P": 64, "G": 8, "gain": 0.15, "max_rollouts": 4, "seed": 0}
WHAT = ("groups sampled with spread", "groups trained with spread", "rollouts a step", "prompts left out")


class Characters:
    def __call__(self, texts, **_):
        return {"input_ids": [[1] for _ in texts]}


def simulate(given, filters, dynamic):
    """(share of sampled groups with spread, share of trained groups with it, rollouts a step), by tenth of the run."""
    rng = np.random.default_rng(given.seed)
    rates = rng.beta(given.a, given.b, given.prompts).clip(1e-6, 1 - 1e-6)
    odds = np.log(rates) - np.log1p(-rates)
    prompts = Prompts([{"prompt": str(i)} for i in range(given.prompts)], Characters(), max_prompt_length=4)
    curriculum = CurriculumSampler(prompts, filters=filters, seed=given.seed)
    at, rows, carried = curriculum.begin(), [], 0
    for step in range(given.steps):
        sampled = useful = rounds = 0
        indices, wins = [], []
        while rounds < (given.max_rollouts if dynamic else 1) and (rounds == 0 or carried + useful < given.P):
            drawn, at = curriculum.draw(at, given.P)
            row = np.array(drawn) % given.prompts
            won = (rng.random((given.P, given.G)) < 1 / (1 + np.exp(-odds[row]))[:, None]).astype(np.float32)
            spread = with_spread(won)
            if given.learn:
                odds[row[spread]] += given.gain
            indices, wins = [*indices, *drawn], [*wins, won]
            sampled, useful, rounds = sampled + given.P, useful + int(spread.sum()), rounds + 1
        ready = carried + useful if dynamic else useful
        trained = min(ready, given.P)
        carried = min(max(ready - given.P, 0), given.P - 1) if dynamic else 0
        at = curriculum.learn(at, step + 1, indices, np.concatenate(wins), (0.0, 0.0))
        rows.append((useful / sampled, trained / given.P, rounds, curriculum.pool(at)[1] / given.prompts))
    return np.array(rows)


def figures(given, filters, dynamic):
    """{what: [its mean over the first tenth of the steps, over the last]}."""
    found, tenth = simulate(given, filters, dynamic), max(given.steps // 10, 1)
    ends = zip(found[:tenth].mean(0), found[-tenth:].mean(0))
    return {what: [round(float(x), 3) for x in pair] for what, pair in zip(WHAT, ends)}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, default in SETTINGS.items():
        parser.add_argument(f"--{name}", type=type(default), default=default)
    given = parser.parse_args()
    settings, results = dict(vars(given)), {}
    for mix, (given.a, given.b) in MIXES.items():
        for given.learn in (False, True):
            case = f"{mix}, {'growing easier' if given.learn else 'rates stay'}"
            results[case] = {
                way + (" + dynamic sampling" if dynamic else ""): figures(given, filters, dynamic)
                for way, filters in WAYS.items()
                for dynamic in (False, True)
            }
    print(json.dumps({"settings": settings, "mixes": MIXES, "results": results}, indent=1))


if __name__ == "__main__":
    main()
