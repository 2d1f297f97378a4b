"""Reports of an evaluation: figures, counts for each problem, and a table."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from grpo_jax.evaluation.evaluator import Evaluation
from grpo_jax.evaluation.statistics import (
    avg_at_n,
    majority_at_n,
    pass_at_k,
    powers_of_two,
    standard_error,
)

Figures = dict[str, Any]


def figures_of(result: Evaluation, ks: Sequence[int] | None = None) -> dict[str, float]:
    """The summary, and avg@N and pass@k (for k = 1, 2, 4, ... N) if there are several samples."""
    return result.summary() | with_errors(_sampled(result.successes, ks))


def scored_figures(result: Evaluation, scorings: Sequence[str], votes: bool, ks: Sequence[int]) -> Figures:
    """The figures of a task: for each scoring, the reward function of that name; then those that all share."""
    summary = {
        name: value for name, value in result.summary().items() if not name.startswith(("success", "reward"))
    }
    return (
        {name: _scored(result, name, votes, ks) for name in scorings} | summary | _rewards(result, scorings)
    )


def _scored(result: Evaluation, name: str, votes: bool, ks: Sequence[int]) -> dict[str, float]:
    successes = successes_of(result, name)
    N = successes.shape[1]
    found = [vote is not None for vote in result.extras.get(f"{name}/vote", [])]
    problems = _sampled(successes, ks) or {"success": avg_at_n(successes)}
    if votes and N > 1:
        problems[f"maj@{N}"] = majority_at_n(_by_problem(result.extras[f"{name}/vote"], N), successes)
    return with_errors(problems) | {"answered": float(np.mean(found)) if found else 0.0}


def successes_of(result: Evaluation, name: str) -> np.ndarray:
    """[P,N] bool: whether the reward function of this name gave at least 1; a fault counts as a failure."""
    return result.values[..., result.names.index(name)] >= 1


def with_errors(problems: Mapping[str, np.ndarray]) -> dict[str, float]:
    """The mean of each figure over its problems [P], and its standard error."""
    figures: dict[str, float] = {}
    for name, values in problems.items():
        figures |= {name: float(values.mean()), f"{name}_stderr": standard_error(values)}
    return figures


def _sampled(successes: np.ndarray, ks: Sequence[int] | None) -> dict[str, np.ndarray]:
    """avg@N and pass@k of each problem; nothing for a single sample."""
    N = successes.shape[1]
    if N == 1:
        return {}
    return {f"avg@{N}": avg_at_n(successes)} | {
        f"pass@{k}": pass_at_k(successes, k) for k in ks or powers_of_two(N)
    }


def _rewards(result: Evaluation, scorings: Sequence[str]) -> dict[str, float]:
    """The means of the reward functions that are not scorings, and the rows lost to faults of any."""
    others = [name for name in result.names if name not in scorings]
    means = {}
    for name in others:
        values = result.values[..., result.names.index(name)]
        means[f"rewards/{name}/mean"] = (
            float(np.nanmean(values)) if not np.isnan(values).all() else float("nan")
        )
    return means | dict(result.failures)


def _by_problem(column: Sequence[Any], N: int) -> list[Sequence[Any]]:
    return [column[start : start + N] for start in range(0, len(column), N)]


def problems_of(result: Evaluation, scorings: Sequence[str]) -> dict[str, Any]:
    """The number of successes among each problem's N samples, by scoring, for comparison with other evaluations."""
    counts = {name: successes_of(result, name) for name in scorings} or {"success": result.successes}
    return {
        "rows": result.uids.tolist(),
        "samples": result.successes.shape[1],
        **{name: successes.sum(1).tolist() for name, successes in counts.items()},
    }


# ---- the table ----

MODES = ("greedy", "sampled")


def show(results: Mapping[str, Any]) -> None:
    """Print a table with a column for each mode (greedy, sampled) and scoring."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    columns = _columns(results)
    title = f"{results['model']} on {results['task']} ({results['split']})"
    table = Table("", *columns, title=title, box=box.SIMPLE_HEAD, padding=(0, 1), pad_edge=False)
    names = {name: None for figures in columns.values() for name in figures if not name.endswith("_stderr")}
    for name in names:
        table.add_row(name, *(_cell(figures, name) for figures in columns.values()))
    Console().print(table)


def _columns(results: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Title -> figures; those that the scorings share are repeated in each."""
    columns: dict[str, Mapping[str, Any]] = {}
    for mode in (mode for mode in MODES if mode in results):
        shared = {name: value for name, value in results[mode].items() if not isinstance(value, Mapping)}
        scorings = {name: value for name, value in results[mode].items() if isinstance(value, Mapping)}
        for name, figures in scorings.items():
            columns[f"{mode}\n{name}"] = {**figures, **shared}
        if not scorings:
            columns[mode] = shared
    return columns


def _cell(figures: Mapping[str, float], name: str) -> str:
    if name not in figures:
        return ""
    error = figures.get(f"{name}_stderr")
    return f"{figures[name]:.4g}" + ("" if error is None else f" ± {error:.2g}")
