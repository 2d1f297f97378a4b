"""Checks across settings. Each returns one sentence `field = value: why; how to fix it`, or None."""

from typing import Any

from grpo_jax.errors import UserError, nearest


def first(*problems: str | None) -> None:
    """Raise ValueError for the first problem, if any; pydantic collects it."""
    for text in filter(None, problems):
        raise ValueError(text)


def changed(c: Any, name: str) -> bool:
    """Whether a setting differs from its default."""
    return getattr(c, name) != type(c).model_fields[name].get_default(call_default_factory=True)


def length(c: Any) -> str | None:
    """The training's length is given once. A run's config.yaml always states max_steps."""
    if c.num_train_epochs is not None and "max_steps" in c.model_fields_set:
        return (
            f"num_train_epochs = {c.num_train_epochs}: max_steps is {c.max_steps} already; keep one of them "
            "(max_steps = -1 takes the other back)"
        )
    return None


def layout(c: Any) -> str | None:
    """A layout that exists, which says where the prompt is."""
    from grpo_jax.data.layouts import PLAIN, named

    if c.layout is None or c.layout == PLAIN:
        return None
    try:
        named(c.layout)
    except UserError as fault:
        return str(fault)
    if changed(c, "prompt_column"):
        return f"layout = {c.layout!r}: prompt_column = {c.prompt_column!r} says otherwise; leave one of them out"
    return None


def column_names(given: dict[str, Any]) -> str | None:
    """Names of columns by names of columns."""
    for name, column in given.items():
        if not isinstance(column, str) or not column:
            return f"columns = {given}: {name} must be the name of a column, and is {column!r}; write {{name: column}}"
    return None


def template_variables(given: Any) -> str | None:
    """Template variables must not decide whether the assistant's turn is opened."""
    if taken := sorted({"tokenize", "add_generation_prompt", "continue_final_message"} & given.keys()):
        return f"chat_template_kwargs = {given}: {taken[0]} follows from the prompt; leave it out"
    return None


def warmup(c: Any) -> str | None:
    """The warm-up is given once, and ends within the run."""
    if c.warmup_steps and c.warmup_ratio:
        return f"warmup_ratio = {c.warmup_ratio}: warmup_steps is {c.warmup_steps} already; keep one of them"
    if getattr(c, "num_train_epochs", None) is None and c.warmup_steps > c.max_steps:
        return f"warmup_steps = {c.warmup_steps}: longer than the run; use at most max_steps, {c.max_steps}"
    return None


SCHEDULE_OPTIONS = {
    "constant": (),
    "linear": (),
    "cosine": ("num_cycles",),
    "cosine_with_restarts": ("num_cycles",),
    "cosine_with_min_lr": ("num_cycles", "min_lr", "min_lr_rate"),
    "polynomial": ("lr_end", "power"),
    "inverse_sqrt": ("timescale",),
    "warmup_stable_decay": ("num_decay_steps", "min_lr_ratio", "decay_type", "num_cycles"),
}
"""lr_scheduler_type -> its lr_scheduler_kwargs."""


def schedule(c: Any) -> str | None:
    """The options are those of the schedule, and none that it needs is missing."""
    given, known = c.lr_scheduler_kwargs or {}, SCHEDULE_OPTIONS[c.lr_scheduler_type]
    for name, value in given.items():
        if name not in known:
            choice = f"it has {', '.join(known)}{nearest(name, known)}" if known else "it has none"
            return f"lr_scheduler_kwargs: {name} is no option of {c.lr_scheduler_type}; {choice}"
        if name == "decay_type" and value not in ("cosine", "linear", "1-sqrt"):
            return f"lr_scheduler_kwargs: decay_type = {value!r}: use cosine, linear or 1-sqrt"
        if name != "decay_type" and (not isinstance(value, int | float) or value < 0):
            return f"lr_scheduler_kwargs: {name} = {value!r}: must be a number, at least 0"
    if c.lr_scheduler_type == "warmup_stable_decay" and not given.get("num_decay_steps"):
        return (
            "lr_scheduler_kwargs: warmup_stable_decay needs num_decay_steps, the updates over which it falls"
        )
    return None


def batch(c: Any) -> str | None:
    """Rows that are trained on divide into mini-batches, mini-batches into micro-batches."""
    if c.gradient_samples > c.num_generations:
        return (
            f"gradient_samples = {c.gradient_samples}: a group has num_generations = {c.num_generations}; "
            "use fewer, or 0 for all of them"
        )
    by = "gradient_samples" if c.gradient_samples else "num_generations"
    rows = c.prompts_per_step * getattr(c, by)
    if rows % c.num_minibatches:
        size = f"{rows} rows (prompts_per_step {c.prompts_per_step} x {by} {getattr(c, by)})"
        near = divisors(rows, c.num_minibatches)
        return f"num_minibatches = {c.num_minibatches}: {size} do not divide by it; use {near}"
    if c.auto_micro_batch and c.micro_batch_size:
        return f"micro_batch_size = {c.micro_batch_size}: auto_micro_batch chooses it; leave one of them out"
    return micro_batch(c, rows // c.num_minibatches)


def micro_batch(c: Any, rows: int) -> str | None:
    """The `rows` of a mini-batch divide into micro-batches."""
    if c.micro_batch_size and rows % c.micro_batch_size:
        near = divisors(rows, c.micro_batch_size)
        return f"micro_batch_size = {c.micro_batch_size}: {rows} rows do not divide by it; use {near}"
    return None


def divisors(total: int, wish: int) -> str:
    """Text with the divisors of `total` closest to `wish`, which is not one itself."""
    below = next(n for n in range(min(wish, total), 0, -1) if total % n == 0)
    above = next((n for n in range(wish, total + 1) if total % n == 0), None)
    return f"{below} or {above}" if above else str(below)


def weights(c: Any) -> str | None:
    """One weight per reward, not all 0. The trainer counts functions that are passed to it."""
    if c.reward_weights is None:
        return None
    if "rewards" in c.model_fields_set and len(c.reward_weights) != len(c.rewards):
        return f"reward_weights = {c.reward_weights}: give one for each of the rewards {c.rewards}, in order"
    if not any(c.reward_weights):
        return f"reward_weights = {c.reward_weights}: every reward would be 0; give one a weight"
    return None


def evaluation(c: Any) -> str | None:
    """Periodic evaluation needs prompts; top_p, top_k and min_p need a temperature."""
    if c.eval_steps and not c.eval_prompts:
        return f"eval_steps = {c.eval_steps}: eval_prompts is 0, so nothing is evaluated; set one of them"
    idle = [name for name in ("eval_top_p", "eval_top_k", "eval_min_p") if changed(c, name)]
    if idle and c.eval_temperature == 0:
        return f"{idle[0]} = {getattr(c, idle[0])}: eval_temperature is 0, which is greedy; set it above 0"
    return None


def distinct_samples(c: Any, samples: str = "samples", temperature: str = "temperature") -> str | None:
    """Greedy samples are identical, so only one makes sense."""
    count = getattr(c, samples)
    if count > 1 and getattr(c, temperature) == 0:
        return f"{samples} = {count}: greedy samples are all the same; set {temperature} above 0"
    return None


def shortest(c: Any, longest: str = "max_completion_length") -> str | None:
    """The least length of a completion is within the limit."""
    most = getattr(c, longest)
    if most is not None and c.min_tokens > most:
        return f"min_tokens = {c.min_tokens}: completions have at most {longest} = {most} tokens; use at most that"
    return None


def stop_strings(strings: list[str]) -> str | None:
    """No U+FFFD in stop strings: it stands for bytes that later tokens may complete to other text."""
    if broken := [text for text in strings if "\ufffd" in text]:
        return f"stop_strings = {broken}: U+FFFD is no text; leave it out"
    return None


def requests(c: Any) -> str | None:
    """There is a prompt, and `assistant_prefix` has a turn to begin."""
    if c.prompt is None and c.prompts is None:
        return "prompt: must be given, or prompts, a file of them"
    if c.prompt is not None and c.prompts is not None:
        return f"prompts = {c.prompts!r}: prompt is {c.prompt!r} already; keep one of them"
    if c.prefill is not None and not c.chat:
        return f"prefill = {c.prefill!r}: without chat there is no assistant's turn; put it into the prompt"
    return None


def exploration(c: Any) -> str | None:
    """Training needs completions that can differ."""
    if c.temperature == 0:
        return "temperature = 0: greedy completions of a prompt are all the same; use e.g. 1.0"
    return None


LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def adapters(c: Any) -> list[str | None]:
    """The adapter settings are consistent."""
    return [
        _adapters_wanted(c, "lora_r") if c.adapter else None,
        _adapters_wanted(c, "base_weights") if not (c.lora_r or c.adapter or c.adapters_may_follow) else None,
        _adapters_wanted(c, "lora_dropout") if not (c.lora_r or c.adapter or c.adapters_may_follow) else None,
        _modules(c.lora_target_modules),
        _rollout_of_a_quantised_base(c),
    ]


def _adapters_wanted(c: Any, name: str) -> str | None:
    if not changed(c, name):
        return None
    why = {
        "lora_r": f"the adapter {c.adapter} has a rank of its own; leave one of them out",
        "lora_dropout": "only adapters have dropout; set lora_r to train them",
        "base_weights": "weights that are trained are not quantised; set lora_r to train adapters beside them",
    }
    return f"{name} = {getattr(c, name)}: {why[name]}"


def _modules(names: list[str]) -> str | None:
    unknown = next((name for name in names if name not in LINEAR), None)
    if unknown is None or names == ["all-linear"]:
        return None
    if unknown in ("lm_head", "embed_tokens"):
        return (
            f"lora_target_modules = {names}: {unknown} has no adapter here; leave it out, or set lora_r to 0 to train "
            "all weights, those of embedding and head too"
        )
    near = nearest(unknown, [*LINEAR, "all-linear"])
    return f"lora_target_modules = {names}: no linear layer {unknown!r}{near}; choose of {', '.join(LINEAR)}"


def _rollout_of_a_quantised_base(c: Any) -> str | None:
    if c.base_weights == "auto" or getattr(c, "rollout_weights", "auto") == "auto":
        return None
    return (
        f"rollout_weights = {c.rollout_weights}: with base_weights = {c.base_weights} what is sampled from is "
        "quantised already; leave it out"
    )
