"""TRL 1.16's own code as an oracle: its methods, unbound, on a stand-in for the trainer.

TRL has no pure loss. `_compute_loss` and `_generate_and_score_completions` need only attributes of the trainer;
the model's part, `_get_per_token_logps_and_entropies`, is replaced by numbers of the test's.
"""

import inspect
import types
from collections import defaultdict

import numpy as np
import pytest
from objective_cases import Case, Outcome

from grpo_jax.learner.objective import GRPO

torch = pytest.importorskip("torch")
trl = pytest.importorskip("trl")
pytest.importorskip("accelerate").PartialState(cpu=True)  # without it TRL's warnings raise

EOS, PAD = 7, 0


class StandIn(types.SimpleNamespace):
    """Attributes, and behind them the methods of a trainer class."""

    def __getattr__(self, name):
        found = inspect.getattr_static(self.trainer, name)
        return found.__func__ if isinstance(found, staticmethod) else types.MethodType(found, self)


def tensor(x):
    """x as a tensor; None stays."""
    return None if x is None else torch.tensor(x)


def _accelerator():
    return types.SimpleNamespace(
        device="cpu",
        num_processes=1,
        process_index=0,
        is_main_process=True,
        sync_gradients=True,
        gather=lambda x: x,
        gather_for_metrics=lambda x: x,
        reduce=lambda x, **_: x,
        pad_across_processes=lambda x, **_: x,
    )


class TRL:
    """TRL's GRPO with the settings of `objective`; keeps TRL's state from one loss to the next."""

    def __init__(self, objective: GRPO, accumulation: int = 1):
        corrects = objective.sampler_mode != "none"
        self.stand_in = StandIn(
            trainer=trl.GRPOTrainer,
            accelerator=_accelerator(),
            model=types.SimpleNamespace(training=True),
            aux_loss_enabled=False,
            loss_type=objective.loss_type,
            importance_sampling_level=objective.level,
            epsilon_low=objective.epsilon_low,
            epsilon_high=objective.epsilon_high,
            beta=objective.beta,
            max_completion_length=objective.max_length,
            off_policy_mask_threshold=objective.off_policy_threshold,
            top_entropy_quantile=objective.top_entropy_quantile,
            use_vllm=corrects,
            vllm_importance_sampling_correction=corrects,
            entropy_coef=objective.bonus.coef,
            use_adaptive_entropy=objective.bonus.adaptive,
            _entropy_bonus_enabled=objective.bonus.coef != 0 or objective.bonus.adaptive,
            _last_world_entropy=float("inf"),
            _entropy_window_stats=None,
            current_gradient_accumulation_steps=accumulation,
            args=types.SimpleNamespace(
                use_bias_correction_kl=objective.use_bias_correction_kl,
                delta=objective.delta,
                sapo_temperature_pos=objective.sapo_temperatures[0],
                sapo_temperature_neg=objective.sapo_temperatures[1],
                vespo_k_pos=objective.vespo_positive[0],
                vespo_lambda_pos=objective.vespo_positive[1],
                vespo_k_neg=objective.vespo_negative[0],
                vespo_lambda_neg=objective.vespo_negative[1],
                entropy_target=objective.bonus.target,
                entropy_coef_delta=objective.bonus.step,
                entropy_coef_min=objective.bonus.lowest,
                entropy_coef_max=objective.bonus.largest,
            ),
        )
        self.objective, self.accumulation = objective, accumulation

    def __call__(self, case: Case) -> Outcome:
        """Loss, gradients and metrics of one optimizer step; row b is in micro-batch b % accumulation."""
        me, n = self.stand_in, self.accumulation
        me._metrics = {"train": defaultdict(list)}
        me.args.steps_per_generation = case.updates * n
        logprobs = torch.tensor(case.logprobs, requires_grad=True)
        entropy = torch.tensor(case.entropy, requires_grad=True)
        inputs, loss = self._inputs(case), 0.0
        for i in range(n):
            part = {k: v[i::n] if v.ndim else v for k, v in inputs.items()}
            me.accelerator.sync_gradients = i == n - 1
            numbers = (logprobs[i::n], entropy[i::n], None)
            me._get_per_token_logps_and_entropies = lambda *_, numbers=numbers, **__: numbers
            loss = loss + me._compute_loss(None, part)
        loss.backward()
        zeros = torch.zeros_like(logprobs)
        grads = [(zeros if x.grad is None else x.grad).numpy() for x in (logprobs, entropy)]
        metrics = {name: values[-1] for name, values in me._metrics["train"].items()}
        return Outcome(float(loss.detach()), *grads, metrics | self.sampling)

    def _inputs(self, case: Case):
        rows, width = case.mask.shape
        inputs = {
            "prompt_ids": torch.zeros(rows, 1, dtype=torch.long),
            "prompt_mask": torch.ones(rows, 1, dtype=torch.long),
            "completion_ids": torch.zeros(rows, width, dtype=torch.long),
            "completion_mask": tensor(case.mask).long(),
            "advantages": tensor(case.advantages),
            "num_items_in_batch": torch.tensor(case.rollout_tokens),
            "old_per_token_logps": tensor(case.old),
            "ref_per_token_logps": tensor(case.ref),
            "sampling_per_token_logps": tensor(case.sampler),
        }
        self.sampling = {}
        if self.stand_in.use_vllm:
            inputs["importance_sampling_ratio"], self.sampling = sampler_correction(case, self.objective)
        return {name: x for name, x in inputs.items() if x is not None}


def sampler_correction(case: Case, objective: GRPO):
    """TRL's `importance_sampling_ratio` and its `sampling/*` metrics for the case."""
    old = case.logprobs if case.old is None else case.old
    output, metrics = generate_and_score(
        trl.GRPOTrainer,
        np.zeros((len(case.mask), 1)),
        2,
        mask=case.mask,
        sampler=case.sampler,
        logprobs={"model": old},
        use_vllm=True,
        vllm_importance_sampling_correction=True,
        vllm_importance_sampling_mode=objective.sampler_mode,
        vllm_importance_sampling_clip_min=objective.sampler_bounds[0],
        vllm_importance_sampling_clip_max=objective.sampler_bounds[1],
    )
    assert np.array_equal(output["completion_mask"].numpy(), case.mask)
    metrics = {name: value for name, value in metrics.items() if name.startswith("sampling/")}
    return output["importance_sampling_ratio"], metrics


def rloo_loss(case: Case, epsilon_low: float, epsilon_high: float) -> Outcome:
    """The loss of TRL's RLOO, which is that of whole completions."""
    logprobs = torch.tensor(case.logprobs, requires_grad=True)
    me = StandIn(
        trainer=trl.RLOOTrainer,
        accelerator=_accelerator(),
        model=types.SimpleNamespace(training=True),
        aux_loss_enabled=False,
        epsilon_low=epsilon_low,
        epsilon_high=epsilon_high,
        _metrics={"train": defaultdict(list)},
        _get_per_token_logps_and_entropies=lambda *_, **__: (logprobs, tensor(case.entropy), None),
    )
    rows, width = case.mask.shape
    mask = tensor(case.mask).long()
    inputs = {
        "prompt_ids": torch.zeros(rows, 1, dtype=torch.long),
        "prompt_mask": torch.ones(rows, 1, dtype=torch.long),
        "completion_ids": torch.zeros(rows, width, dtype=torch.long),
        "completion_mask": mask,
        "advantages": tensor(case.advantages),
        "old_logps": (tensor(case.old) * mask).sum(1),
    }
    loss = me._compute_loss(None, inputs)
    loss.backward()
    metrics = {name: values[-1] for name, values in me._metrics["train"].items()}
    return Outcome(float(loss.detach()), logprobs.grad.numpy(), np.zeros_like(case.logprobs), metrics)


def generate_and_score(
    trainer,
    rewards,
    num_generations,
    *,
    mask=None,
    sampler=None,
    logprobs=None,
    reward_weights=None,
    **settings,
):
    """TRL's `_generate_and_score_completions`: its output and its metrics.

    `rewards` [B,n] are what n reward functions return, None or NaN included; `mask` [B,Tc] 1s from the left, a row
    without any is a completion that was cut and is masked for it; `logprobs` [B,Tc] of "model" and "reference".
    """
    rows, functions = len(rewards), len(rewards[0])
    mask = np.ones((rows, 2)) if mask is None else mask
    logprobs = logprobs or {"model": np.zeros(mask.shape)}
    lengths = mask.sum(1).astype(int)
    width = mask.shape[1]
    tokens = [[5] * (n - 1) + [EOS] if n else [5] * width for n in lengths]
    kept = lambda x, n: [float(value) for value in x[: n or width]]
    recorded = None if sampler is None else [kept(x, n) for x, n in zip(sampler, lengths)]
    score = lambda model, *_, **__: (tensor(logprobs[model if model == "reference" else "model"]), None, None)
    prompts, texts = [[3]] * rows, ["x"] * rows
    generated = (
        (prompts, tokens, texts)
        if trainer is trl.RLOOTrainer
        else (prompts, tokens, None, texts, recorded, {}, None, [])
    )
    me = StandIn(
        trainer=trainer,
        accelerator=_accelerator(),
        model=_Model(),
        ref_model="reference",
        state=types.SimpleNamespace(global_step=0),
        _generate=lambda _: generated,
        _get_per_token_logps_and_entropies=score,
        _tokenizer=types.SimpleNamespace(pad_token_id=PAD),
        eos_token_ids=[EOS],
        environment_factories=None,
        environments=None,
        tools=None,
        pad_to_multiple_of=None,
        mask_truncated_completions=True,
        num_iterations=1,
        num_generations=num_generations,
        reward_funcs=[
            lambda i=i, **_: [None if row[i] is None else row[i] for row in rewards] for i in range(functions)
        ],
        reward_processing_classes=[None] * functions,
        reward_func_names=[f"f{i}" for i in range(functions)],
        reward_weights=torch.tensor(reward_weights or [1.0] * functions, dtype=torch.float32),
        multi_objective_aggregation="sum_then_normalize",
        scale_rewards="group",
        beta=0.0,
        use_vllm=False,
        normalize_advantages=False,
        reward_clip_range=None,
        log_multimodal=False,
        args=types.SimpleNamespace(
            report_to=[],
            per_device_train_batch_size=rows,
            gradient_checkpointing_kwargs=None,
            steps_per_generation=1,
            gradient_accumulation_steps=1,
        ),
        _metrics={"train": defaultdict(list)},
        _logs=defaultdict(list, rewards=defaultdict(list)),
        _pending_extra_logs={},
        _pending_metrics={},
    )
    vars(me).update(settings)
    output = me._generate_and_score_completions([{"prompt": "p"}] * rows)
    return output, {name: values[-1] for name, values in me._metrics["train"].items()}


class _Model:
    training = True
    is_gradient_checkpointing = False
