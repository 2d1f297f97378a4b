"""The verb `recipes`: a table of all recipes, or one recipe in full."""

import shutil
import textwrap

from grpo_jax import recipes
from grpo_jax.recipes import Recipe

LABELS = ("source", "expected_time", "expected_memory", "expected_score")


def recipes_command(name: str | None) -> int:
    """Print the table, or the description and settings of the recipe `name`. UserError for an unknown name."""
    found = {recipe.name: recipe for recipe in recipes.describe()}
    if name is None:
        print_table(list(found.values()))
    else:
        text = recipes.read(name)
        print_whole(found[name], text)
    return 0


def print_table(found: list[Recipe]) -> None:
    """A line per recipe: its name, the verb that runs it, and as much of its summary as the terminal is wide."""
    width = max(shutil.get_terminal_size((100, 24)).columns, 60)
    names, verbs = max(len(recipe.name) for recipe in found), max(len(recipe.verb) for recipe in found)
    print(f"{'RECIPE':<{names}}  {'VERB':<{verbs}}  TINY  WHAT IT DOES")
    for recipe in found:
        start = f"{recipe.name:<{names}}  {recipe.verb:<{verbs}}  {'yes' if recipe.tiny else '':<4}  "
        print(start + textwrap.shorten(recipe.summary, width - len(start), placeholder=" ..."))
    print(
        "\ngrpo-jax recipes NAME shows one in full: source, time, memory, score and settings."
        "\ngrpo-jax VERB NAME runs it; where TINY says yes, --tiny runs a small form in minutes on a laptop."
    )


def print_whole(recipe: Recipe, text: str) -> None:
    """The recipe's description, how to run it, and `text`, its file."""
    print(f"{recipe.name}: {recipe.summary}\n")
    for label in LABELS:
        _print_field(label.removeprefix("expected_"), getattr(recipe, label))
    _print_field("run", f"grpo-jax {recipe.verb} {recipe.name}{' [--tiny]' if recipe.tiny else ''}")
    print(f"\n{text.rstrip()}")


def _print_field(label: str, text: str) -> None:
    width = max(shutil.get_terminal_size((100, 24)).columns, 60)
    print(textwrap.fill(text, width, initial_indent=f"  {label:<8}", subsequent_indent=" " * 10))
