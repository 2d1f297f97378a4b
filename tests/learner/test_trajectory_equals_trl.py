"""Weights after several optimizer steps equal those of TRL's real trainer: same model folder, same completions, same
rewards; each with its own forward pass, loss, optimizer and schedule."""

import dataclasses
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from grpo_jax.learner.advantages import group_advantages
from grpo_jax.learner.batches import Passes
from grpo_jax.learner.entropy import EntropyBonus
from grpo_jax.learner.learner import Learner
from grpo_jax.learner.logprobs import LogprobSettings
from grpo_jax.learner.objective import GRPO
from grpo_jax.learner.optimizer import make_optimizer
from grpo_jax.learner.schedules import Schedule
from grpo_jax.models.hf import load_config, load_params, save_model

torch = pytest.importorskip("torch")
trl = pytest.importorskip("trl")
pytestmark = pytest.mark.usefixtures("one_device")

P, G, TP, TC, PAD, EOS = 2, 4, 7, 10, 0, 2
RATE, TEMPERATURE, DECAY = 2e-3, 0.9, 0.01

# Adam divides a gradient by its own size: with TRL's 1e-8 an element whose gradient is rounding noise moves by the
# whole rate, in a direction that depends on the processor. This epsilon leaves such elements where they are.
EPSILON = 1e-5


@dataclasses.dataclass(frozen=True)
class Rollout:
    """What one generation step gives, the same for both."""

    prompts: list[list[int]]  # P
    completions: list[list[list[int]]]  # P, G
    logprobs: list[list[list[float]]]  # as if recorded by a sampler
    rewards: np.ndarray  # [P,G]
    masks: list[list[list[int]]]  # 0 where an environment wrote the token, and not the policy


def rollouts(count, environment=False):
    """Completions of all lengths from one token on, cut ones among them; one group has equal rewards. With
    `environment`, an environment wrote some of their tokens, first and last ones among them."""
    rng = np.random.default_rng(0)
    made = []
    for step in range(count):
        lengths = rng.integers(1, TC + 1, (P, G))
        lengths[0, 0], lengths[0, 1] = TC, 1
        tokens = [
            [[*map(int, rng.integers(3, 98, n - 1)), EOS if n < TC else 5] for n in row] for row in lengths
        ]
        rewards = rng.integers(0, 3, (P, G)) / 2
        rewards[0] = [1.0, 0.0, 0.5, 1.0]
        if step == 1:
            rewards[1] = 0.5
        logprobs = [[list(rng.normal(-4, 0.1, n)) for n in row] for row in lengths]
        prompts = [list(map(int, rng.integers(3, 98, n))) for n in rng.integers(1, TP + 1, P)]
        masks = [[mask_of(rng, n) if environment else [1] * n for n in row] for row in lengths]
        made.append(Rollout(prompts, tokens, logprobs, rewards, masks))
    return made


def mask_of(rng, length):
    """Of a completion, with at least one token of the policy."""
    mask = (rng.random(length) < 0.6).astype(int)
    mask[rng.integers(length)] = 1
    return mask.tolist()


def padded(rows, width, value=0):
    out = np.full((len(rows), width), value)
    for row, values in zip(out, rows):
        row[: len(values)] = values
    return out


def groups_of(rollout: Rollout) -> SimpleNamespace:
    """As the learner takes them."""
    flat = lambda nested: [x for row in nested for x in row]
    of_rows = lambda nested, dtype: padded(flat(nested), TC).astype(dtype).reshape(P, G, TC)
    logprobs = np.zeros((P * G, TC), np.float32)
    for row, values in zip(logprobs, flat(rollout.logprobs)):
        row[: len(values)] = values
    completions = SimpleNamespace(
        tokens=of_rows(rollout.completions, np.int32),
        logprobs=logprobs.reshape(P, G, TC),
        lengths=np.array([[len(x) for x in row] for row in rollout.completions], np.int32),
        finished=np.array([[x[-1] == EOS for x in row] for row in rollout.completions]),
        action_mask=of_rows(rollout.masks, bool),
    )
    prompts = SimpleNamespace(
        tokens=padded(rollout.prompts, TP, PAD).astype(np.int32),
        lengths=np.array([len(x) for x in rollout.prompts], np.int32),
    )
    return SimpleNamespace(batch=prompts, rollout=completions)


def ours(folder, out, objective, passes, steps, mesh, environment=False):
    """(weights as TRL names them, the metrics of each rollout) after `steps` rollouts."""
    cfg = load_config(folder)
    total = steps * passes.updates
    optimizer = make_optimizer(Schedule(RATE, "linear", 1, total), epsilon=EPSILON, weight_decay=DECAY)
    learner = Learner(
        cfg=cfg,
        objective=objective,
        logprob_settings=LogprobSettings(TEMPERATURE, chunk=64),
        optimizer=optimizer,
        passes=passes,
        shape=(P, G),
        mesh=mesh,
    )
    params = load_params(folder, cfg, learner.shardings.params)
    if objective.beta:
        learner.set_reference(params)
    state, history = learner.init(params), []
    for rollout in rollouts(steps, environment):
        state, metrics = learner(state, groups_of(rollout), group_advantages(rollout.rewards))
        history.append(metrics)
    save_model(out, cfg, jax.tree.map(np.asarray, state.params), folder)
    return dict(weights_of(out)), history


def weights_of(folder):
    from safetensors.numpy import load_file

    return load_file(folder / "model.safetensors")


def theirs(folder, out, objective, passes, steps, accumulation, environment=False):
    """The same of TRL's trainer: (weights, what it logged of each optimizer step)."""
    from datasets import Dataset

    plan = rollouts(steps, environment)
    rows = [{"prompt": f"{step} {p}"} for step in range(steps) for p in range(P)]

    def of(prompt):
        step, p = map(int, prompt.split())
        return plan[step], p

    def rollout_func(prompts, trainer):
        which = {}  # completions already given to this prompt
        output = {"prompt_ids": [], "completion_ids": [], "logprobs": [], "given": [], "env_mask": []}
        for prompt in prompts:
            rollout, p = of(prompt)
            i = which[prompt] = which.get(prompt, -1) + 1
            output["prompt_ids"].append(rollout.prompts[p])
            output["completion_ids"].append(rollout.completions[p][i])
            output["logprobs"].append(rollout.logprobs[p][i])
            output["env_mask"].append(rollout.masks[p][i])
            output["given"].append(float(rollout.rewards[p, i]))
        assert which == dict.fromkeys(prompts, G - 1)
        return output

    bonus = objective.bonus
    config = trl.GRPOConfig(
        output_dir=str(out),
        loss_type=objective.loss_type,
        importance_sampling_level=objective.level,
        epsilon=objective.epsilon_low,
        epsilon_high=objective.epsilon_high,
        beta=objective.beta,
        use_bias_correction_kl=objective.use_bias_correction_kl,
        entropy_coef=bonus.coef,
        use_adaptive_entropy=bonus.adaptive,
        entropy_target=bonus.target,
        entropy_coef_delta=bonus.step,
        off_policy_mask_threshold=objective.off_policy_threshold,
        num_iterations=passes.num_iterations,
        mask_truncated_completions=passes.mask_truncated,
        num_generations=G,
        max_completion_length=TC,
        temperature=TEMPERATURE,
        per_device_train_batch_size=P * G // accumulation,
        gradient_accumulation_steps=accumulation,
        max_steps=steps * passes.num_iterations,
        learning_rate=RATE,
        adam_epsilon=EPSILON,
        warmup_steps=1,
        weight_decay=DECAY,
        shuffle_dataset=False,
        gradient_checkpointing="none",
        bf16=False,
        use_cpu=True,
        logging_steps=1,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
    )
    trainer = trl.GRPOTrainer(
        model=str(folder),
        reward_funcs=lambda given, **_: given,
        args=config,
        train_dataset=Dataset.from_list(rows),
        rollout_func=rollout_func,
    )
    assert trainer.model.dtype == torch.float32
    trainer.train()
    state = {name: x.detach().numpy() for name, x in trainer.model.state_dict().items()}
    return state, [log for log in trainer.state.log_history if "grad_norm" in log]


CASES = {
    "default": (GRPO(max_length=TC), Passes(micro_batch_size=4), 2),
    "environment_tokens": (
        GRPO(beta=0.1, max_length=TC),
        Passes(num_iterations=2, length_buckets=2, micro_batch_size=4),
        1,
    ),
    "environment_tokens_sequence_level": (
        GRPO(
            "grpo",
            0.05,
            0.1,
            level="sequence",
            bonus=EntropyBonus(0.1, adaptive=True, target=3.5, step=0.02),
            off_policy_threshold=0.5,
        ),
        Passes(num_iterations=2, mask_truncated=True),
        1,
    ),
}
"""Model, optimizer, schedule and passes in as few runs as hold them; each loss is in test_objectives_equal_trl.py."""


@pytest.mark.parametrize("case", CASES)
def test_weights_and_metrics_follow_trls(tiny_model, tmp_path, mesh_1, case):
    """Every tensor moves by thousandths, and is within millionths of TRL's; so is what both log on the way."""
    objective, passes, accumulation = CASES[case]
    environment = case.startswith("environment_tokens")
    steps = 3
    found, history = ours(tiny_model, tmp_path / "ours", objective, passes, steps, mesh_1, environment)
    wanted, logs = theirs(
        tiny_model, tmp_path / "theirs", objective, passes, steps, accumulation, environment
    )
    for name, before in weights_of(tiny_model).items():
        moved, apart = np.abs(wanted[name] - before).max(), np.abs(found[name] - wanted[name]).max()
        assert moved > 1e-3, name
        assert apart < min(1e-4, 1e-3 * moved), name
    assert len(logs) == steps * passes.num_iterations
    for i, metrics in enumerate(history):
        of_rollout = logs[i * passes.num_iterations : (i + 1) * passes.num_iterations]
        assert_metrics_equal(metrics, of_rollout, accumulation)
    if passes.num_iterations > 1 and "clip_ratio/region_mean" in metrics:
        assert max(metrics["clip_ratio/region_mean"] for metrics in history) > 0.01


def assert_metrics_equal(found, logs, accumulation):
    """Ours are of a rollout, TRL's of each of its updates; over micro-batches TRL means means."""
    names = {"loss", "grad_norm"} if accumulation > 1 else set(found) & set(logs[0])
    assert accumulation > 1 or names >= {"loss", "grad_norm"} | {
        x for x in logs[0] if x in ("kl",) or "clip_r" in x
    }
    for name in names:
        values = [log[name] for log in logs]
        wanted = {"min": min, "max": max}.get(name[-3:], np.mean)(values)
        wanted = values[-1] if name == "entropy_coef" else wanted
        assert found[name] == pytest.approx(wanted, rel=1e-5, abs=2e-6), name
