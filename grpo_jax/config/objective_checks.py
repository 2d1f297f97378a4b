"""Checks of the objective's settings. Each returns one sentence `field = value: why; how to fix it`, or None.

No setting may be without effect: one that acts only with another is refused without it, unless it is at its default.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from grpo_jax.config.checks import changed

CLIPPED = ("grpo", "bnpo", "dr_grpo", "dapo", "luspo")

# What a setting needs to have an effect: its fields, the condition, and the sentence.
NEEDS: list[tuple[tuple[str, ...], Callable[[Any], bool], str]] = [
    (("epsilon", "delta"), lambda c: c.loss_type in CLIPPED, "loss_type {c.loss_type} does not clip"),
    (
        ("epsilon_high",),
        lambda c: c.loss_type in (*CLIPPED, "cispo"),
        "loss_type {c.loss_type} does not clip",
    ),
    (
        ("sapo_temperature_pos", "sapo_temperature_neg"),
        lambda c: c.loss_type == "sapo",
        "loss_type is {c.loss_type}, not sapo",
    ),
    (
        ("vespo_k_pos", "vespo_lambda_pos", "vespo_k_neg", "vespo_lambda_neg"),
        lambda c: c.loss_type == "vespo",
        "loss_type is {c.loss_type}, not vespo",
    ),
    (
        ("importance_sampling_level",),
        lambda c: c.loss_type not in ("vespo", "reinforce"),
        "loss_type {c.loss_type} has no such ratio",
    ),
    (("kl_estimator", "kl_in", "use_bias_correction_kl"), lambda c: c.beta > 0, "beta is 0"),
    (
        ("ref_model_mixup_alpha", "ref_model_sync_steps"),
        lambda c: c.sync_ref_model,
        "sync_ref_model is off",
    ),
    (
        ("use_bias_correction_kl",),
        lambda c: c.kl_in == "loss",
        "kl_in is reward, where no gradient passes through it",
    ),
    (
        ("entropy_coef_min", "entropy_coef_max", "entropy_coef_delta", "entropy_target"),
        lambda c: c.use_adaptive_entropy,
        "use_adaptive_entropy is off",
    ),
    (
        ("sampler_correction_min", "sampler_correction_max"),
        lambda c: c.sampler_correction != "none",
        "sampler_correction is none",
    ),
    (
        ("adam_beta1", "adam_beta2"),
        lambda c: c.optim in ("adamw", "lion", "muon"),
        "optim {c.optim} does not use it",
    ),
    (("adam_epsilon",), lambda c: c.optim in ("adamw", "muon"), "optim {c.optim} does not use it"),
    (("adam_moments",), lambda c: c.optim != "sgd", "optim sgd keeps no moments"),
    (("max_rollouts_per_step",), lambda c: c.dynamic_sampling, "dynamic_sampling is off"),
]


def corrected(values: Mapping[str, Any]) -> Mapping[str, Any]:
    """`values`, with the importance-sampling correction that an int8 sampler needs unless they name one."""
    if "int8" not in (values.get("rollout_weights"), values.get("rollout_cache")):
        return values
    return {"sampler_correction": "token_truncate", **values}


def problems(c: Any) -> Iterator[str | None]:
    """All checks of the objective, in the order in which they are reported."""
    yield from (idle(c), clip(c), cispo(c), reinforce(c), advantages(c), per_function(c))
    yield from (entropy(c), sampler(c), dynamic(c), overlong(c), reference(c))


def reference(c: Any) -> str | None:
    """A reference that follows the policy is a whole model, on the devices, that is used."""
    if not c.sync_ref_model:
        return None
    start = "sync_ref_model = true:"
    if c.beta == 0:
        return f"{start} no divergence is computed; set beta above 0, or leave it out"
    if c.lora_r or c.adapter:
        return f"{start} a mixture of adapters is no mixture of their models; train all weights"
    if c.reference_memory == "host":
        return f"{start} the reference is part of the training state; set reference_memory to device"
    return None


def idle(c: Any) -> str | None:
    """A changed setting has an effect only with another one. Scripts are told of it later (`ScriptConfig`)."""
    found = {} if c.idle_settings_pass else idle_settings(c)
    return next((f"{sentence}; leave it out" for sentence in found.values()), None)


def idle_settings(c: Any) -> dict[str, str]:
    """Changed settings without effect: name -> why."""
    return {
        name: f"{name} = {getattr(c, name)}: no effect, as {why.format(c=c)}"
        for names, holds, why in NEEDS
        for name in names
        if changed(c, name) and not holds(c)
    }


def clip(c: Any) -> str | None:
    """The second bound is above the first."""
    high = 1 + (c.epsilon if c.epsilon_high is None else c.epsilon_high)
    if c.delta is not None and c.delta <= high:
        return f"delta = {c.delta}: must be above 1 + epsilon_high, {high:g}; use e.g. 4"
    return None


def cispo(c: Any) -> str | None:
    """CISPO's bound is epsilon_high itself."""
    if c.loss_type == "cispo" and (c.epsilon_high is None or c.epsilon_high < 1):
        largest = c.epsilon if c.epsilon_high is None else c.epsilon_high
        why = f"cispo takes it as the largest weight, so that all would be held at {largest:g}"
        return f"epsilon_high = {c.epsilon_high}: {why}; write e.g. 5.0"
    return None


def reinforce(c: Any) -> str | None:
    """A loss without a ratio allows one update per rollout: nothing corrects for changed weights."""
    for name in ("num_iterations", "num_minibatches"):
        if c.loss_type == "reinforce" and getattr(c, name) > 1:
            return (
                f"{name} = {getattr(c, name)}: reinforce has no ratio that corrects for later updates of a rollout; "
                "leave it out, or use another loss_type"
            )
    return None


def advantages(c: Any) -> str | None:
    """REINFORCE++ is standardised over all tokens of the batch."""
    if c.advantage_estimator == "reinforce_plus_plus" and c.scale_rewards == "none":
        return (
            "scale_rewards = none: reinforce_plus_plus always divides by the batch's deviation; leave it out"
        )
    return None


def per_function(c: Any) -> str | None:
    """GDPO: each reward function by its own group mean and deviation, their sum by the batch's."""
    if c.multi_objective_aggregation == "sum_then_normalize":
        return None
    needs = {"advantage_estimator": "group", "scale_rewards": "group", "kl_in": "loss"}
    for name, needed in needs.items():
        if getattr(c, name) != needed:
            return (
                f"{name} = {getattr(c, name)}: multi_objective_aggregation normalize_then_sum standardises each "
                f"reward by itself instead; leave one of them out"
            )
    return None


def entropy(c: Any) -> str | None:
    """The coefficient starts within its bounds."""
    if c.use_adaptive_entropy and not c.entropy_coef_min <= c.entropy_coef <= c.entropy_coef_max:
        bounds = f"entropy_coef_min, {c.entropy_coef_min}, and entropy_coef_max, {c.entropy_coef_max}"
        return f"entropy_coef = {c.entropy_coef}: must lie between {bounds}"
    return None


def sampler(c: Any) -> str | None:
    """A correction has bounds, least first; VESPO's are per token. An int8 sampler needs a correction."""
    mode, low, high = c.sampler_correction, c.sampler_correction_min, c.sampler_correction_max
    for field in ("rollout_weights", "rollout_cache"):
        if mode == "none" and getattr(c, field) != "auto":
            return (
                f"sampler_correction = none: with {field} {getattr(c, field)} another model is sampled from than "
                "is trained; leave it out (token_truncate) or choose another"
            )
    if mode == "none":
        return None
    if c.loss_type == "vespo" and mode.startswith("sequence"):
        return f"sampler_correction = {mode}: vespo multiplies those of tokens; use {mode.replace('sequence', 'token')}"
    if low is None and high is None:
        return f"sampler_correction_max = None: {mode} needs a bound; give it or sampler_correction_min"
    if low is not None and high is not None and low >= high:
        return f"sampler_correction_min = {low}: must be below sampler_correction_max, {high}"
    return None


def dynamic(c: Any) -> str | None:
    """Dynamic sampling needs more than one rollout."""
    if c.dynamic_sampling and c.max_rollouts_per_step == 1:
        return "max_rollouts_per_step = 1: dynamic_sampling could never sample on; use 2 or more"
    if c.dynamic_sampling and c.advantage_estimator == "reinforce_plus_plus":
        return (
            "dynamic_sampling = True: reinforce_plus_plus compares with the whole batch, and learns from groups "
            "whose rewards are all equal too; leave it out"
        )
    if c.dynamic_sampling and c.multi_objective_aggregation == "normalize_then_sum":
        return "dynamic_sampling = True: with normalize_then_sum groups whose sums are equal teach too; leave it out"
    return None


def overlong(c: Any) -> str | None:
    """The penalty on overlong completions starts after the first token."""
    if c.overlong_buffer >= c.max_completion_length:
        return f"overlong_buffer = {c.overlong_buffer}: use less than max_completion_length, {c.max_completion_length}"
    return None


# ---- allowed, but rarely intended ----


def warnings_of(c: Any) -> list[str]:
    """Warnings about allowed settings that are rarely intended, printed once when training begins."""
    found = (_kl_without_gradient(c), _sequence_sums(c), _luspo(c), _tiny_deviation(c), _carried(c))
    return [text for text in found if text]


def _kl_without_gradient(c: Any) -> str | None:
    if c.beta and (c.kl_estimator, c.kl_in, c.use_bias_correction_kl) == ("k1", "loss", False):
        return (
            "kl_estimator = k1: in the loss its expected gradient is zero; write kl_estimator: k3, "
            "use_bias_correction_kl: true, or kl_in: reward"
        )
    return None


def _sequence_sums(c: Any) -> str | None:
    if c.importance_sampling_level == "sequence" and c.loss_type in ("bnpo", "dr_grpo", "dapo", "cispo"):
        return (
            f"importance_sampling_level = sequence: with loss_type {c.loss_type} a completion weighs as much as it "
            "has tokens; GSPO is loss_type: grpo"
        )
    return None


def _luspo(c: Any) -> str | None:
    if c.loss_type == "luspo" and c.importance_sampling_level != "sequence":
        return "loss_type = luspo: the published one has importance_sampling_level: sequence"
    return None


def _tiny_deviation(c: Any) -> str | None:
    if c.advantage_estimator == "leave_one_out" and c.scale_rewards == "group" and c.advantage_clip is None:
        return (
            "advantage_estimator = leave_one_out: divided by the deviation of the others, which is often zero, "
            "advantages grow huge; write scale_rewards: none (RLOO), or an advantage_clip"
        )
    return None


def _carried(c: Any) -> str | None:
    if c.dynamic_sampling and c.loss_type == "reinforce":
        return (
            "dynamic_sampling = True: groups left over from the step before were sampled by older weights, and "
            "reinforce has no ratio that corrects for that; any other loss_type has"
        )
    return None
