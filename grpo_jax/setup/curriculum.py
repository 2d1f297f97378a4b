"""Settings -> the curriculum sampler: what is drawn in which stage, and what ends each."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from grpo_jax.config import GRPOConfig
from grpo_jax.config.curriculum import StageSettings
from grpo_jax.data.curriculum.pass_rate_filter import PassRateFilter
from grpo_jax.data.curriculum.sampler import CurriculumSampler
from grpo_jax.data.curriculum.stages import Stage, Trigger
from grpo_jax.data.prompts import Prompts
from grpo_jax.errors import UserError, nearest

RATE = "pass_rate"  # the column that `pass_rate_window` begins with


def curriculum_sampler_of(config: GRPOConfig, prompts: Prompts) -> CurriculumSampler:
    """The curriculum sampler of `prompts`. UserError for a stage without prompts, or a column that no row has."""
    given = config.curriculum or [StageSettings()]
    stages = [_stage(config, prompts, stage, f"curriculum[{i}]") for i, stage in enumerate(given)]
    filters = _filters(config, prompts)
    return CurriculumSampler(prompts, stages, filters, seed=config.seed, shuffle=config.shuffle_dataset)


def _stage(config: GRPOConfig, prompts: Prompts, stage: StageSettings, place: str) -> Stage:
    chosen = _where(prompts, stage.where or {}, place)
    rows = tuple(domain.rows[np.isin(domain.rows, chosen)] for domain in prompts.domains)
    names = [domain.name for domain in prompts.domains]
    mixture = _mixture(config, stage, place, names)
    weights = [float(len(part)) for part in rows] if mixture is None else [mixture.get(n, 0.0) for n in names]
    for name, part, weight in zip(names, rows, weights):
        if weight and not len(part):
            raise UserError(
                f"{place}.where = {stage.where}: no row of '{name}' is left; change it, or the mixture"
            )
    until = Trigger(
        stage.until_step, stage.until_epochs, stage.until_plateau, stage.until_clipped, stage.window
    )
    return Stage(stage.name or "", rows, tuple(weights), until)


def _mixture(
    config: GRPOConfig, stage: StageSettings, place: str, names: list[str]
) -> dict[str, float] | None:
    """A stage's own, or the run's. UserError for a data set that is not there."""
    own = stage.mixture is not None
    given, said = (stage.mixture, f"{place}.mixture") if own else (config.mixture, "mixture")
    if given is not None and names == [""]:
        raise UserError(f"{said} = {given}: dataset is a single one; name several, {{name: data set}}")
    for name in given or {}:
        if name not in names:
            raise UserError(
                f"{said} = {given}: no data set '{name}'{nearest(name, names)} among {', '.join(names)}"
            )
    return given


def _where(prompts: Prompts, where: Mapping[str, Any], place: str) -> np.ndarray:
    """The rows with the values that are asked for. UserError where there are none."""
    rows = np.concatenate([domain.rows for domain in prompts.domains])
    for column, wanted in where.items():
        if column not in prompts.columns:
            raise UserError(f"{place}.where: no column '{column}'; there are {', '.join(prompts.columns)}")
        values = prompts.column(column, rows)
        among = wanted if isinstance(wanted, list) else [wanted]
        kept = rows[np.array([value in among for value in values], bool)]
        if not len(kept):
            found = sorted({str(value) for value in values})[:10]
            raise UserError(f"{place}.where: no row has {column} = {wanted}; there are {', '.join(found)}")
        rows = kept
    return rows


def _filters(config: GRPOConfig, prompts: Prompts) -> list[PassRateFilter]:
    filters = []
    if config.history_resampling:
        filters.append(PassRateFilter(high=1.0, retry=config.pass_rate_retry))
    if config.pass_rate_window:
        low, high = config.pass_rate_window
        filters.append(PassRateFilter(low, high, config.pass_rate_retry, _known_rates(prompts)))
    return filters


def _known_rates(prompts: Prompts) -> dict[int, float]:
    """What the data set says itself. UserError for what is no share."""
    if RATE not in prompts.columns:
        return {}
    rows = np.concatenate([domain.rows for domain in prompts.domains])
    known = {}
    for row, value in zip(rows.tolist(), prompts.column(RATE, rows)):
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
            raise UserError(f"dataset, row {row + 1}: {RATE} = {value!r} must be a share, from 0 to 1")
        if not math.isnan(value):
            known[row] = float(value)
    return known
