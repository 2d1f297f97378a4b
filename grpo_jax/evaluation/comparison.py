"""Two models on the same problems: the difference, problem by problem, with the standard error of its mean.

Problems differ more than models do. Since both models answer the same problems, the paired difference has a smaller
standard error than the difference of two independent means (Miller 2024, arXiv:2411.00640, section 4.2)."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath

from grpo_jax.errors import UserError
from grpo_jax.evaluation.statistics import standard_error

SAME = ("task", "data", "split", "seed")


def read(file: str) -> dict[str, Any]:
    """The results in a JSON file written by `eval`. UserError for any other file."""
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
    return all(isinstance(mode, dict) and {"rows", "samples"} <= mode.keys() for mode in problems.values())


def check_rows(file: str, theirs: Mapping[str, Any], rows: Sequence[int]) -> None:
    """UserError unless both evaluate the same rows of the data set. Called before sampling."""
    for mode in theirs["problems"].values():
        if list(mode["rows"]) != list(rows):
            raise UserError(f"compare = {file}: other prompts were asked there; set prompts as it was")


def check(file: str, theirs: Mapping[str, Any], ours: Mapping[str, Any], samples: Mapping[str, int]) -> None:
    """UserError unless both evaluate the same data with the same N (`samples`, by mode). Called before sampling."""
    for name in SAME:
        if theirs.get(name) != ours.get(name):
            raise UserError(
                f"compare = {file}: its {name} is {theirs.get(name)!r}, here {ours.get(name)!r}; only results on the "
                "same problems compare"
            )
    for mode in samples.keys() & theirs["problems"].keys():
        there = theirs["problems"][mode]["samples"]
        if there != samples[mode]:
            raise UserError(
                f"compare = {file}: averages over {there} samples of each prompt, here {samples[mode]}; figures "
                f"of different N do not compare: write --samples {there}"
            )
    if not samples.keys() & theirs["problems"].keys():
        raise UserError(
            f"compare = {file}: has {', '.join(theirs['problems'])} only, here {', '.join(samples)}; evaluate in the "
            "same way"
        )


def differences(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> dict[str, dict[str, dict[str, float]]]:
    """mode -> scoring -> the mean of avg@N, ours minus theirs, and its standard error, from the `problems` of two
    results on the same rows."""
    found: dict[str, dict[str, dict[str, float]]] = {}
    for mode in (mode for mode in ours if mode in theirs):
        names = [name for name in ours[mode] if name not in ("rows", "samples") and name in theirs[mode]]
        N = ours[mode]["samples"]
        pairs = {name: (np.array(ours[mode][name]) - np.array(theirs[mode][name])) / N for name in names}
        found[mode] = {
            name: {f"avg@{N}": float(pair.mean()), f"avg@{N}_stderr": standard_error(pair)}
            for name, pair in pairs.items()
        }
    return found


def show(file: str, found: Mapping[str, Mapping[str, Mapping[str, float]]]) -> None:
    """Print a line for each difference."""
    for mode, scorings in found.items():
        for scoring, figures in scorings.items():
            name, error = list(figures)
            print(f"{mode}, {scoring}: {name} {figures[name]:+.4g} ± {figures[error]:.2g} against {file}")
