"""What an evaluation says: figures, and a table of them."""

from typing import Any

from grpo_jax.evaluation.evaluator import Evaluation
from grpo_jax.evaluation.statistics import avg_at_n, pass_at_k, powers_of_two, standard_error


def figures_of(result: Evaluation) -> dict[str, float]:
    """The summary, with avg@n and pass@k for k = 1, 2, 4, ... n where there are several samples."""
    n = result.successes.shape[1]
    summary = result.summary()
    if n == 1:
        return summary
    figures = {f"avg@{n}": avg_at_n(result.successes)}
    figures |= {f"pass@{k}": pass_at_k(result.successes, k) for k in powers_of_two(n)}
    for name, values in figures.items():
        summary |= {name: float(values.mean()), f"{name}_stderr": standard_error(values)}
    return summary


def show(results: dict[str, Any]) -> None:
    """Print the table."""
    from rich.console import Console
    from rich.table import Table

    ways = [name for name in ("greedy", "sampled") if name in results]
    table = Table("", *ways, title=f"{results['model']} on {results['task']} ({results['split']})")
    names = {name: None for way in ways for name in results[way] if not name.endswith("_stderr")}
    for name in names:
        table.add_row(name, *(_cell(results[way], name) for way in ways))
    Console().print(table)


def _cell(figures: dict[str, float], name: str) -> str:
    if name not in figures:
        return ""
    error = figures.get(f"{name}_stderr")
    return f"{figures[name]:.4g}" + ("" if error is None else f" ± {error:.2g}")
