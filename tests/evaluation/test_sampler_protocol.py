"""Anything that implements the Sampler protocol can be evaluated: another backend, or one of several turns."""

from types import SimpleNamespace

import numpy as np

from grpo_jax.data.prompts import Prompts
from grpo_jax.evaluation.evaluator import Evaluator
from grpo_jax.rewards import RewardPool
from grpo_jax.rollout.protocol import Rollout, Sampler
from grpo_jax.scoring.scorer import Scorer


class Echo:
    """A sampler that repeats each prompt's first token once for the first completion, twice for the second, where an
    environment wrote the second time."""

    num_generations, max_completion_length, rows, compilations = 2, 2, 0, 0

    def __call__(
        self,
        params,
        prompts,
        step,
        *,
        limits=None,
        seeds=None,
        on_group=None,
        on_tokens=None,
        on_progress=None,
    ):
        lengths = np.tile(np.array([1, 2], np.int32), (len(prompts.uids), 1))
        tokens = np.where(np.arange(2) < lengths[..., None], prompts.tokens[:, :1, None], 0).astype(np.int32)
        for p, rows in enumerate(tokens):
            on_group(p, [rows[0, :1].tolist(), rows[1].tolist()])
        chosen = np.broadcast_to(np.arange(2) < 1, tokens.shape)
        return Rollout(
            tokens, np.zeros(tokens.shape, np.float32), lengths, np.ones(lengths.shape, bool), chosen
        )


def two_letters(completions, **columns):
    return [float(len(text) == 2) for text in completions]


def test_any_sampler_of_the_protocol_can_be_evaluated(tiny_model, mesh_1):
    from grpo_jax.models import hf

    sampler: Sampler = Echo()
    tokenizer = hf.load_tokenizer(tiny_model)
    prompts = Prompts([{"prompt": text} for text in ("abc", "cab", "bca")], tokenizer, max_prompt_length=9)
    with RewardPool([two_letters], workers=1) as pool:
        scorer = Scorer(pool, None, tokenizer)
        policy = SimpleNamespace(mesh=mesh_1)
        found = Evaluator(policy, prompts, scorer, sampler, prompts_per_step=2)(params=None)
    assert found.completions == ["a", "aa", "c", "cc", "b", "bb"]
    assert found.rewards.tolist() == [[0.0, 1.0]] * 3
    assert found.summary()["success"] == 0.5
    assert found.summary()["length"] == 1, "tokens that the policy chose"
