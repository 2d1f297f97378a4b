"""Reads a pipeline's file and checks all its steps, before any of them runs.

    output_dir: runs/mine
    inputs: {base: path/to/model}
    all: {seed: 1}                      # for every step whose verb has the setting
    stages:
      - name: cold-start
        verb: sft
        settings: {model: "${inputs.base}", dataset: traces.jsonl}
      - name: rl
        verb: train
        settings: {model: "${cold-start.model}", dataset: gsm8k, rewards: [gsm8k]}
    tiny:                               # on top of the above with --tiny
      inputs: {base: demo}
      cold-start: {max_steps: 10}

Steps run in the file's order, and may refer to the outputs of earlier ones. (The key stays `stages`, so
that existing files stay valid; everywhere else a pipeline has steps, and a stage is one of the curriculum.)
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from grpo_jax.config import EvalConfig, GRPOConfig, SFTConfig
from grpo_jax.config.base import Settings, unknown
from grpo_jax.config.load import read_source
from grpo_jax.config.reject import RejectConfig
from grpo_jax.errors import UserError, nearest
from grpo_jax.pipelines import references
from grpo_jax.runs.files import is_local


@dataclass(frozen=True)
class Verb:
    """A verb that a step may run."""

    settings: type[Settings]
    place: tuple[str, str]
    """The setting for the output's path, and its value relative to the step's folder."""
    outputs: Mapping[str, str]
    """Name -> file or folder in the step's folder."""


VERBS = {
    "sft": Verb(SFTConfig, ("output_dir", ""), {"model": "hf"}),
    "train": Verb(GRPOConfig, ("output_dir", ""), {"model": "hf"}),
    "reject": Verb(RejectConfig, ("output_dir", ""), {"rows": "rows.jsonl"}),
    "eval": Verb(EvalConfig, ("output", "results.json"), {"results": "results.json"}),
}
PARTS = ("recipe", "output_dir", "inputs", "all", "stages", "tiny")
RESERVED = ("inputs", "all")
BLANK = "demo"
"""An input with this value is the demo's model with random weights, which the pipeline makes in its folder."""
_NAME = re.compile(r"[A-Za-z][\w-]*")


@dataclass(frozen=True, kw_only=True)
class Step:
    """One step of a pipeline."""

    number: int
    name: str
    verb: str
    folder: str
    reads: list[str]
    """The outputs and inputs that it reads, as `step.output`."""
    outputs: dict[str, str]
    """Name -> path."""
    config: Settings
    record: dict[str, Any]
    """All its settings for `pipeline.json`: outputs of steps by name, so that the folder may be moved."""


@dataclass(frozen=True)
class Pipeline:
    """A pipeline's file, read and checked."""

    name: str
    output_dir: str
    inputs: dict[str, str]
    steps: list[Step]

    @property
    def blank(self) -> str | None:
        """The folder for the model with random weights; None if no input needs it."""
        return _blank_in(self.output_dir) if BLANK in self.inputs.values() else None


def load_pipeline(source: str, output_dir: str | None = None, tiny: bool = False) -> Pipeline:
    """The pipeline of a recipe's name or a file. Raises UserError, naming the step, if anything is wrong with it."""
    values, places = read_source(source)
    if strange := next((name for name in values if name not in PARTS), None):
        raise UserError(
            f"{places.get(strange, '')}{strange}: no part of a pipeline{nearest(strange, PARTS)}: {', '.join(PARTS)}"
        )
    if "stages" not in values:
        raise UserError(
            f"{source}: no stages; a pipeline needs a list of its steps there (see docs/pipelines.md)"
        )
    home = output_dir or values.get("output_dir") or f"runs/{source}"
    if not isinstance(home, str) or not is_local(home):
        raise UserError(
            f"output_dir = {home!r}: steps read each other's files; give a local or shared folder"
        )
    small = _tiny(values, source) if tiny else {}
    inputs = _mapping(values.get("inputs"), "inputs") | _mapping(small.pop("inputs", None), "tiny: inputs")
    for_all = _mapping(values.get("all"), "all") | _mapping(small.pop("all", None), "tiny: all")
    parts = _parts(values["stages"])
    _check_names(parts, inputs, for_all, small)
    _check_references(parts, inputs, for_all, small)
    steps: list[Step] = []
    for number, part in enumerate(parts, start=1):
        steps.append(_step(number, part, home, inputs, for_all, small.get(part["name"]), steps))
    return Pipeline(source, home, inputs, steps)


# ---- the parts of the file ----


def _tiny(values: Mapping[str, Any], source: str) -> dict[str, Any]:
    if "tiny" not in values:
        raise UserError(f"--tiny: {source} says nothing of tiny settings; leave it out")
    return dict(_mapping(values["tiny"], "tiny"))


def _mapping(value: Any, name: str) -> dict[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise UserError(f"{name}: must be lines of `name: value`, not {value!r}")
    return dict(value)


def _parts(steps: Any) -> list[dict[str, Any]]:
    """The steps as in the file, each with name, verb and settings."""
    if not isinstance(steps, list) or not steps:
        raise UserError("stages: must be a list, `- name: ...` for each step")
    return [_part(number, one) for number, one in enumerate(steps, start=1)]


def _part(number: int, one: Any) -> dict[str, Any]:
    if not isinstance(one, dict):
        raise UserError(f"stages: step {number} is {one!r}; it must have a name, a verb and settings")
    name, known = one.get("name"), ("name", "verb", "settings")
    if not isinstance(name, str) or not _NAME.fullmatch(name) or name in RESERVED:
        raise UserError(f"stages: step {number} has the name {name!r}; give it letters, digits, - and _")
    if strange := next((key for key in one if key not in known), None):
        hint = nearest(str(strange), known)
        raise UserError(f"step {name}: no {strange!r}{hint} in a step; put its settings under `settings:`")
    if one.get("verb") not in VERBS:
        hint = nearest(str(one.get("verb")), VERBS)
        raise UserError(
            f"step {name}: verb = {one.get('verb')!r}{hint}; verbs of a step are {', '.join(VERBS)}"
        )
    return {
        "name": name,
        "verb": one["verb"],
        "settings": _mapping(one.get("settings"), f"step {name}: settings"),
    }


def _check_names(
    parts: list[dict[str, Any]], inputs: dict[str, Any], for_all: dict[str, Any], small: dict[str, Any]
) -> None:
    names = [part["name"] for part in parts]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise UserError(f"step {twice}: two steps have this name; rename one")
    if strange := next((name for name in small if name not in names), None):
        raise UserError(f"tiny: no step {strange!r}{nearest(strange, names)}; steps are {', '.join(names)}")
    if bad := next((name for name, value in inputs.items() if not isinstance(value, str)), None):
        raise UserError(f"inputs: {bad} = {inputs[bad]!r}: must be text, such as a model or a file")
    if bad := next((name for name, value in inputs.items() if "${" in value), None):
        raise UserError(
            f"inputs: {bad} = {inputs[bad]!r}: an input cannot contain a reference; write its value"
        )
    fields = {name for part in parts for name in VERBS[part["verb"]].settings.model_fields}
    if lost := next((name for name in for_all if name not in fields), None):
        raise UserError(f"all: {unknown(lost, fields)}: no step has it")


# ---- references between steps ----


def _check_references(
    parts: list[dict[str, Any]], inputs: dict[str, Any], for_all: dict[str, Any], small: dict[str, Any]
) -> None:
    verbs = {part["name"]: part["verb"] for part in parts}
    reads: dict[str, list[str]] = {}
    for part in parts:
        name = part["name"]
        settings = _for(part, for_all) | part["settings"] | _mapping(small.get(name), f"tiny: {name}")
        try:
            given = list(references.found(settings))
        except UserError as fault:
            raise UserError(f"step {name}: {fault}") from None
        for step, output in given:
            _check_reference(name, step, output, verbs, inputs)
        reads[name] = [step for step, _ in given if step != "inputs"]
    order = list(verbs)
    for name in order:
        if late := next((other for other in reads[name] if order.index(other) >= order.index(name)), None):
            if circle := _circle(name, reads):
                raise UserError(f"step {name}: a circle: {' reads '.join(circle)}; break it")
            raise UserError(f"step {name}: it reads {late}, which comes after it; put {late} before it")


def _for(part: dict[str, Any], for_all: dict[str, Any]) -> dict[str, Any]:
    """The settings under `all` that the step's verb has."""
    fields = VERBS[part["verb"]].settings.model_fields
    return {key: value for key, value in for_all.items() if key in fields}


def _check_reference(
    name: str, step: str, output: str, verbs: Mapping[str, str], inputs: Mapping[str, Any]
) -> None:
    if step == "inputs":
        known: list[str] = list(inputs)
        fault = f"no input {output!r}{nearest(output, known)}; inputs are {', '.join(known) or 'none'}"
    elif step not in verbs:
        raise UserError(
            f"step {name}: ${{{step}.{output}}}: no step {step!r}{nearest(step, verbs)}; "
            f"steps are {', '.join(verbs)}"
        )
    else:
        known = list(VERBS[verbs[step]].outputs)
        fault = (
            f"{step} ({verbs[step]}) has no output {output!r}{nearest(output, known)}, but {', '.join(known)}"
        )
    if output not in known:
        raise UserError(f"step {name}: ${{{step}.{output}}}: {fault}")


def _circle(start: str, reads: Mapping[str, list[str]]) -> list[str] | None:
    """A path from a step through the steps that it reads back to itself; None if there is none."""

    def walk(path: list[str]) -> list[str] | None:
        for one in reads[path[-1]]:
            if one == start:
                return [*path, one]
            if one not in path and (found := walk([*path, one])):
                return found
        return None

    return walk([start])


# ---- a step ----


def _step(
    number: int,
    part: dict[str, Any],
    home: str,
    inputs: dict[str, str],
    for_all: dict[str, Any],
    small: Any,
    before: list[Step],
) -> Step:
    name, verb = part["name"], VERBS[part["verb"]]
    own = part["settings"] | _mapping(small, f"tiny: {name}")
    if verb.place[0] in own:
        raise UserError(f"step {name}: {verb.place[0]}: the pipeline says where a step writes; leave it out")
    settings = _for(part, for_all) | own
    folder = f"{home}/{number:02d}-{name}"
    outputs = {step.name: step.outputs for step in before}
    given = {key: _blank_in(home) if value == BLANK else value for key, value in inputs.items()}
    paths = outputs | {"inputs": given}
    place = {verb.place[0]: f"{folder}/{verb.place[1]}".rstrip("/")}
    try:
        config = verb.settings(**references.replaced(settings, lambda s, o: paths[s][o]), **place)
        by_name = lambda s, o: inputs[o] if s == "inputs" else f"${{{s}.{o}}}"
        kept = verb.settings(**references.replaced(settings, by_name)).model_dump(mode="json")
    except UserError as fault:
        raise UserError("\n".join(f"step {name}: {line}" for line in str(fault).splitlines())) from None
    return Step(
        number=number,
        name=name,
        verb=part["verb"],
        folder=folder,
        reads=[f"{s}.{o}" for s, o in dict.fromkeys(references.found(settings))],
        outputs={key: f"{folder}/{file}" for key, file in verb.outputs.items()},
        config=config,
        record={key: value for key, value in kept.items() if key != verb.place[0]},
    )


def _blank_in(home: str) -> str:
    return f"{home}/start"
