"""Two models on the same problems: the difference, problem by problem, with the standard error of its mean.

Problems differ more than models do, and both models meet the same ones: the error of the difference of each pair is
smaller than that of two means apart (Miller 2024, arXiv:2411.00640, section 4.2)."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath

from grpo_jax.errors import UserError
from grpo_jax.evaluation.statistics import standard_error

SAME = ("task", "data", "split", "seed")


def read(file: str) -> dict[str, Any]:
    """The results in a JSON file that `eval` has written. UserError for any other."""
    try:
        found = json.loads(epath.Path(file).read_text())
    except (OSError, ValueError) as fault:
        raise UserError(
            f"compare = {file}: cannot be read ({str(fault).splitlines()[0]}); give results of eval"
        ) from None
    if not _is_results(found):
        raise UserError(f"compare = {file}: holds no results of eval; give what --output has written")
    return found


def _is_results(found: Any) -> bool:
    problems = found.get("problems") if isinstance(found, dict) else None
    if not isinstance(problems, dict) or not problems:
        return False
    return all(isinstance(way, dict) and {"rows", "samples"} <= way.keys() for way in problems.values())


def check_rows(file: str, theirs: Mapping[str, Any], rows: Sequence[int]) -> None:
    """UserError unless the same rows of the data set were asked there: said before sampling."""
    for way in theirs["problems"].values():
        if list(way["rows"]) != list(rows):
            raise UserError(f"compare = {file}: other prompts were asked there; set prompts as it was")


def check(file: str, theirs: Mapping[str, Any], ours: Mapping[str, Any], samples: Mapping[str, int]) -> None:
    """UserError unless both are of the same data with the same N (`samples`, by way): said before sampling."""
    for name in SAME:
        if theirs.get(name) != ours.get(name):
            raise UserError(
                f"compare = {file}: its {name} is {theirs.get(name)!r}, here {ours.get(name)!r}; only results on the "
                "same problems compare"
            )
    for way in samples.keys() & theirs["problems"].keys():
        there = theirs["problems"][way]["samples"]
        if there != samples[way]:
            raise UserError(
                f"compare = {file}: averages over {there} samples of each prompt, here {samples[way]}; figures "
                f"of different N do not compare: write --samples {there}"
            )
    if not samples.keys() & theirs["problems"].keys():
        raise UserError(
            f"compare = {file}: has {', '.join(theirs['problems'])} only, here {', '.join(samples)}; evaluate in the "
            "same way"
        )


def differences(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> dict[str, dict[str, dict[str, float]]]:
    """way -> scoring -> the mean difference of avg@N, ours less theirs, and its standard error, from two `problems` of
    the same rows."""
    found: dict[str, dict[str, dict[str, float]]] = {}
    for way in (way for way in ours if way in theirs):
        names = [name for name in ours[way] if name not in ("rows", "samples") and name in theirs[way]]
        N = ours[way]["samples"]
        pairs = {name: (np.array(ours[way][name]) - np.array(theirs[way][name])) / N for name in names}
        found[way] = {
            name: {f"avg@{N}": float(pair.mean()), f"avg@{N}_stderr": standard_error(pair)}
            for name, pair in pairs.items()
        }
    return found


def show(file: str, found: Mapping[str, Mapping[str, Mapping[str, float]]]) -> None:
    """Print a line for each difference."""
    for way, scorings in found.items():
        for scoring, figures in scorings.items():
            name, error = list(figures)
            print(f"{way}, {scoring}: {name} {figures[name]:+.4g} ± {figures[error]:.2g} against {file}")
