"""What can be run by name: one YAML file a recipe.

A block `recipe:` says what to expect of it, and a mapping `tiny:` which settings make a run of minutes on a laptop of
it, with a tiny model and data that make themselves: the same rules, other sizes.
"""

from dataclasses import dataclass
from importlib.resources import files

import yaml

from grpo_jax.errors import UserError, nearest


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What a recipe says about itself; every part is one line of text."""

    name: str
    summary: str
    source: str
    expected_time: str
    expected_memory: str
    expected_score: str
    verb: str = "train"
    tiny: bool = False  # whether it has a small form


def names() -> list[str]:
    """Names of all recipes, sorted."""
    return sorted(f.name.removesuffix(".yaml") for f in files(__name__).iterdir() if f.name.endswith(".yaml"))


def read(name: str) -> str:
    """The YAML text of recipe `name`. Raises UserError."""
    if name not in names():
        known = f"recipes are {', '.join(names())}; a file ends in .yaml"
        raise UserError(f"{name}: no such recipe{nearest(name, names())}; {known}")
    return (files(__name__) / f"{name}.yaml").read_text(encoding="utf-8")


def describe() -> list[Recipe]:
    """Every recipe's account of itself."""
    given = {name: yaml.safe_load(read(name)) for name in names()}
    return [Recipe(name=name, **text["recipe"], tiny="tiny" in text) for name, text in given.items()]
