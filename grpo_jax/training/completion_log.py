"""The completions that a run keeps, all of some steps as tables, some of all steps as text; and the one it shows."""

import numpy as np

from grpo_jax.config import GRPOConfig
from grpo_jax.runs import samples
from grpo_jax.runs.completions import write_completions
from grpo_jax.runs.folder import RunFolder
from grpo_jax.runs.progress import sample_panel
from grpo_jax.runs.run import Run
from grpo_jax.runs.status import current
from grpo_jax.training.assembly import Components
from grpo_jax.training.collector import Groups
from grpo_jax.training.reflection import Reflection

SHOWN_OF_PROMPT, SHOWN_OF_COMPLETION = 400, 1600
"""Characters of the sample that is shown in the first step."""


def keep_completions(
    components: Components, run: Run, done: int, groups: Groups, advantages: np.ndarray
) -> None:
    """Write what the settings ask for of the completions that step `done` was trained on."""
    config, names = components.config, components.stages[0].scorer.pool.names
    if keeps_tables(config, done):
        save_completions(run.folder, done, groups, advantages, names, components.reflection)
    if keeps_samples(config):
        write_samples(components, run, done, groups)


def keeps_tables(config: GRPOConfig, done: int) -> bool:
    """Whether all completions of step `done` are written: of every `log_completions_steps`-th, and of the first, where
    a wrong prompt or reward is looked for."""
    every = config.log_completions_steps
    return every > 0 and (done == 1 or done % every == 0)


def keeps_samples(config: GRPOConfig) -> bool:
    """Whether the run has text files of samples."""
    return config.completion_samples > 0 or config.success_samples > 0


def show_first_sample(
    components: Components, run: Run, step: int, groups: Groups, advantages: np.ndarray
) -> None:
    """In step 1, print the completion of the first prompt that has the highest reward, before anything is learned: so
    that a wrong prompt or reward is seen at once. advantages: [P,G] or [P,G,Tc]."""
    if step != 1 or current().quiet:
        return
    scored, G = groups.scored, groups.scored.base.shape[1]
    best = int(np.nan_to_num(scored.base[0], nan=-np.inf).argmax())
    names = components.stages[0].scorer.pool.names
    sample = {
        "prompt": shortened(groups.batch.texts[0], SHOWN_OF_PROMPT),
        "completion": shortened(scored.completions[best], SHOWN_OF_COMPLETION),
        **{name: float(value) for name, value in zip(names, scored.values[0, best])},
        "advantage": float(advantages.reshape(*scored.base.shape, -1)[0, best, 0]),
    }
    title = f"Step 1: of the {G} completions of its first prompt, the one with the highest reward"
    sample_panel(title, [sample], console=run.progress.console)


def shortened(text: str, length: int) -> str:
    """`text` without its middle where it has more than `length` characters: templates put the question last."""
    if len(text) <= length:
        return text
    kept = length // 2
    return f"{text[:kept]} [... {len(text) - 2 * kept:,} characters ...] {text[-kept:]}"


def write_samples(components: Components, run: Run, done: int, groups: Groups) -> None:
    """Some of the completions, and some of those that succeeded, at the end of the text files."""
    config, scored = components.config, groups.scored
    rows, won = scored.rewards.size, scored.successes.ravel() == 1
    some = samples.chosen(config.seed, done, rows, config.completion_samples, 0)
    successes = won & samples.chosen(config.seed, done, rows, config.success_samples, 1)
    for name, which in ((samples.ALL, some), (samples.SUCCESSES, successes)):
        run.samples.append(
            name, [_entry(components, done, groups, row) for row in np.flatnonzero(which).tolist()]
        )


def _entry(components: Components, done: int, groups: Groups, row: int) -> str:
    """A sample with the prompt as the model saw it, a prefilled <think> included."""
    scored, (p, sample) = groups.scored, divmod(row, groups.scored.rewards.shape[1])
    title = f"step {done}, prompt {groups.indices[p]}, sample {sample}, reward {scored.base[p, sample]:.4g}"
    if components.reflection:
        title += (
            f", reflection: {', '.join(components.reflection.categories(scored.completions[row])) or 'none'}"
        )
    return samples.entry(title, groups.batch.texts[p], scored.completions[row])


def save_completions(
    folder: RunFolder,
    done: int,
    groups: Groups,
    advantages: np.ndarray,
    names: list[str],
    reflection: Reflection | None,
) -> None:
    """The completions that a step was trained on as a parquet file, a row each, with the reflection in them. Where
    tokens have advantages of their own, [P,G,Tc], a row shows that of its first token."""
    rollout, scored = groups.rollout, groups.scored
    _, G, width = rollout.tokens.shape
    values = scored.values.reshape(-1, len(names))
    write_completions(
        folder,
        done,
        prompts=[text for text in groups.batch.texts for _ in range(G)],
        completions=scored.completions,
        rewards={name: values[:, i] for i, name in enumerate(names)},
        advantages=advantages.reshape(len(values), -1)[:, 0],
        token_ids=rollout.tokens.reshape(-1, width),
        logprobs=rollout.logprobs.reshape(-1, width),
        lengths=rollout.lengths.ravel(),
        action_mask=rollout.action_mask.reshape(-1, width),
        finished=rollout.finished.ravel(),
        extras={**scored.extras, **_reflected(scored.completions, reflection)},
    )


def _reflected(texts: list[str], reflection: Reflection | None) -> dict[str, list[list[str]]]:
    return {"reflection": [reflection.categories(text) for text in texts]} if reflection else {}
