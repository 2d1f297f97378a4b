"""The plan of a run, in words, before its first step: what a step is made of, and what each device will hold."""

from grpo_jax.config import GRPOConfig
from grpo_jax.config.objective_checks import warnings_of
from grpo_jax.errors import plural
from grpo_jax.learner.losses import CLIPPED
from grpo_jax.models.lora import TARGETS
from grpo_jax.plans.report import ALWAYS, sized
from grpo_jax.rollout.row_table import max_table_sizes
from grpo_jax.runs.progress import plain
from grpo_jax.setup import memory_budget
from grpo_jax.setup.learner import schedule_of
from grpo_jax.sharding import hosts
from grpo_jax.training.assembly import Components


def show_plan(components: Components, sizes: str | None = None) -> None:
    """Print the plan on stdout, and warnings about the settings on stderr. `sizes`: what TRL's batch sizes have
    become."""
    if not hosts.is_writer():
        return
    from rich.console import Console
    from rich.table import Table

    table = Table.grid(padding=(0, 2))
    for title, text in (({"sizes": sizes} if sizes else {}) | plan_of(components)).items():
        table.add_row(f"  {title}", plain(text))
    Console().print("The plan of this run", table, sep="\n")
    for sentence in warnings_of(components.config):
        Console(stderr=True).print(plain(f"note: {sentence}"), soft_wrap=True)


def plan_of(components: Components) -> dict[str, str]:
    """Title -> text."""
    config = components.config
    return {
        "data": _data(components),
        "rewards": _rewards(components),
        "rollout": _rollout(components),
        "update": _update(components),
        "passes": _passes(components),
        "loss": _loss(config),
        "training": _training(components),
        "checkpoints": _checkpoints(config),
        "evaluation": _evaluation(components),
        "devices": _devices(components),
        "memory": _memory(components),
    }


def _data(components: Components) -> str:
    prompts, steps = components.prompts, components.config.max_steps
    each = components.config.prompts_per_step
    left_out = f" ({prompts.dropped:,} longer than max_prompt_length left out)" if prompts.dropped else ""
    least = "at least " if components.config.dynamic_sampling else ""
    take = "takes" if steps == 1 else "take"
    return (
        f"{_count(len(prompts), 'prompt')}{left_out}; {_count(steps, 'step')} of {each} "
        f"{take} {least}{_count(steps * each, 'prompt')}, {_passes_over(steps * each / len(prompts))} the data"
    )


def _passes_over(times: float) -> str:
    return f"{times:.3g} {'pass' if times == 1 else 'passes'} over"


def _rewards(components: Components) -> str:
    """The terms of the reward."""
    c, names, weights = (
        components.config,
        components.stages[0].scorer.pool.names,
        components.stages[0].scorer.weights,
    )
    text = " + ".join(name if weight == 1 else f"{weight:g} x {name}" for name, weight in zip(names, weights))
    if c.overlong_buffer:
        text += f" - a punishment of up to 1 for the last {c.overlong_buffer} tokens before the limit"
    if c.beta and c.kl_in == "reward":
        text += f" - {c.beta:g} x divergence from the reference model"
    return text


def _rollout(components: Components) -> str:
    c = components.config
    rows = c.prompts_per_step * c.num_generations
    times = c.max_rollouts_per_step if c.dynamic_sampling else 1
    more = f", and again until {c.prompts_per_step} groups have rewards that differ ({times} times at most)"
    return (
        f"{_count(c.prompts_per_step, 'prompt')} x {c.num_generations} completions = {rows:,} rows a step"
        f"{more if c.dynamic_sampling else ''}; a row has up to {c.max_prompt_length} prompt and "
        f"{c.max_completion_length} completion tokens: at most {times * rows * c.max_completion_length:,} tokens "
        f"are sampled a step{_at_a_time(components)}"
    )


def _at_a_time(components: Components) -> str:
    """How many completions wait for others, and how many programs are compiled."""
    c, rows = components.config, components.stages[0].sampler.rows
    if not c.rollout_segment:
        return ", in one piece"
    size = memory_budget.training_demand(c, components.policy).size(rows)
    waits = f"; memory has room for {rows:,} rows at a time, the others wait" if rows else ""
    most = max_table_sizes(size, c.max_completion_length)
    return f"{waits}; segments of {c.rollout_segment} tokens, {most} sizes of programs at most"


def _update(components: Components) -> str:
    c, passes, parts = components.config, components.learner.passes, components.learner.micro_batches
    sampled, rows = c.prompts_per_step * c.num_generations, passes.rows(c.prompts_per_step, c.num_generations)
    mini = rows // c.num_minibatches
    some = f"{rows:,} rows" + (f" (of the {sampled:,} sampled)" if rows < sampled else "")
    text = f"{_count(passes.updates, 'update')} of the weights a step"
    if passes.updates > 1:
        text += f": {_count(c.num_iterations, 'pass', 'passes')} over {some} in "
        text += f"{_count(c.num_minibatches, 'mini-batch', 'mini-batches')} of {mini:,}"
    else:
        text += f", from {some}"
    if parts > 1:
        text += f", computed {mini // parts:,} rows at a time ({parts} micro-batches)"
    skips = "; micro-batches whose rows all have advantage 0 are left out"
    return text + (skips if components.learner.skips else "")


def _passes(components: Components) -> str:
    """The passes over the model in a step, besides the sampling."""
    c, passes, parts = components.config, components.learner.passes, []
    times = "" if c.num_iterations == 1 else f" {c.num_iterations} times"
    if c.beta > 0:
        parts.append("once for the reference's log-probs")
    if passes.updates > 1:
        parts.append("once for the old log-probs")
    if c.top_entropy_quantile < 1 and components.learner.micro_batches > 1:
        parts.append(f"for the entropies{times}")
    parts.append(f"forward and backward{times}")
    scorer = components.stages[0].scorer
    others = "".join(
        f"; once through {scorer.pool.names[column]}, a reward model" for column in scorer.models
    )
    return f"beside the sampling, each row goes through the model {', '.join(parts)}{others}"


def _loss(c: GRPOConfig) -> str:
    text = f"{c.loss_type}, beta {c.beta:g} ({'a' if c.beta else 'no'} reference model)"
    first = c.num_iterations * c.num_minibatches == 1 and not c.dynamic_sampling
    if first and c.loss_type in CLIPPED and c.beta == 0 and c.entropy_coef == 0:
        text += (
            "; with one update a step the ratio is 1, and so the loss says nothing about progress (it may well stay "
            "near 0): look at reward and grad_norm"
        )
    return text


def _training(components: Components) -> str:
    c, updates = components.config, components.learner.passes.updates
    length = f"{_count(c.max_steps, 'step')}, {_count(c.max_steps * updates, 'update')}{_trained(components)}"
    if components.schedule is None:
        return f"{length}; the optimizer given"
    falls = (
        f"{c.lr_scheduler_type} to 0" if c.lr_scheduler_type in ("linear", "cosine") else c.lr_scheduler_type
    )
    warmup = schedule_of(c).warmup
    after = f" after {_count(warmup, 'step')} of warm-up" if warmup else ", no warm-up"
    name = {"adamw": "AdamW", "sgd": "SGD"}.get(c.optim, c.optim.capitalize())
    return f"{length}; {name}, learning rate {c.learning_rate:g}, {falls}{after}"


def _checkpoints(c: GRPOConfig) -> str:
    if not c.output_dir:
        return "none, and nothing is written: output_dir is none"
    often = 0 < c.save_steps < c.max_steps
    every = f"every {_count(c.save_steps, 'step')} and " if often else ""
    return f"{every}after the last step, in {c.output_dir}"


def _evaluation(components: Components) -> str:
    c = components.config
    if components.evaluator is None:
        return "none (no held-out prompts)"
    manner = "greedy" if c.eval_temperature == 0 else f"at temperature {c.eval_temperature:g}"
    filters = (("top-p", c.eval_top_p, 1), ("top-k", c.eval_top_k, 0), ("min-p", c.eval_min_p, 0))
    manner += "".join(f", {name} {value:g}" for name, value, all_of_them in filters if value != all_of_them)
    if c.eval_max_completion_length:
        manner += f", up to {c.eval_max_completion_length} tokens"
    sets = [domain.name for domain in components.evaluator.prompts.domains if domain.name]
    among = f" ({', '.join(sets)})" if sets else ""
    every = f", and every {_count(c.eval_steps, 'step')}" if 0 < c.eval_steps < c.max_steps else ""
    return (
        f"{_count(len(components.evaluator.prompts), 'held-out prompt')}{among} x "
        f"{_count(c.eval_samples, 'completion')}, {manner}: before and after the training{every}"
    )


def _devices(components: Components) -> str:
    mesh = components.policy.mesh
    shape = ",".join(f"{axis}={size}" for axis, size in mesh.shape.items())
    kind = mesh.devices.flat[0].device_kind
    return f"{mesh.size} x {kind} (mesh {shape}), computing in {components.policy.dtype}{_int8(components)}"


def _trained(components: Components) -> str:
    """The weights that are trained, unless all are."""
    lora, c = components.policy.lora, components.config
    if lora is None:
        return ""
    beside = "the frozen weights" if c.base_weights == "auto" else f"frozen weights in {c.base_weights}"
    which = "all linear layers" if lora.targets == TARGETS else ", ".join(lora.targets)
    return f"; LoRA of rank {lora.rank}, times {lora.scale:g}, on {which}, beside {beside}"


def _int8(components: Components) -> str:
    """The parts of the sampling that have another dtype."""
    c = components.config
    weights = ", sampling from int8 weights" if c.rollout_weights == "int8" else ""
    return weights + (", keys and values in int8 while sampling" if c.rollout_cache == "int8" else "")


def _memory(components: Components) -> str:
    held = bytes_held(components)
    copy = "copy of the weights"
    moments = {
        "always": {name: held[name] for name in ALWAYS if name in held},
        "in a rollout, also": {copy: held[copy], "cache": held["cache"]},
        "in an update, also": {"gradients": held["gradients"]},
        "evaluating, also": {copy: held[copy], "cache": held["evaluation cache"]},
    }
    if components.evaluator is None:
        del moments["evaluating, also"]
    lines = [
        f"{moment:18}  {', '.join(f'{name} {sized(size)}' for name, size in parts.items() if size)}"
        for moment, parts in moments.items()
    ]
    return "\n".join(["on each device, and activations on top:", *lines])


def bytes_held(components: Components) -> dict[str, int]:
    """Bytes on each device by purpose. They are not all held at the same time."""
    c, policy, state = components.config, components.policy, components.learner.abstract_state
    models, evaluator = components.stages[0].scorer.model_bytes, components.evaluator
    always = memory_budget.held_always(c, policy, state, models)
    cache = lambda demand, sampler: demand.cache_bytes(demand.size(sampler.rows))
    return {
        **always,
        "gradients": always.get("weights", always.get("adapters", 0)),
        "copy of the weights": memory_budget.copy_bytes(policy),
        "cache": cache(memory_budget.training_demand(c, policy), components.stages[0].sampler),
        "evaluation cache": cache(evaluator.demand, evaluator.sampler) if evaluator else 0,
    }


def _count(n: int, one: str, many: str | None = None) -> str:
    return f"{n:,} {plural(n, one, many)}"
