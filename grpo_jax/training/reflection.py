"""Reflection in responses: how many recheck, hesitate or explore, and how long those are (SRPO, arXiv:2504.14286,
names the three; its word lists are not published, and `reflection.yaml` is ours)."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from grpo_jax.errors import UserError

OWN = "words"  # the setting's value for the list that comes along


@dataclass(frozen=True)
class Reflection:
    """The phrases to look for: category -> a pattern."""

    patterns: Mapping[str, re.Pattern[str]]

    def categories(self, text: str) -> list[str]:
        """The categories of which the text has a phrase; apostrophes may be straight or curly."""
        text = _straight(text)
        return [name for name, pattern in self.patterns.items() if pattern.search(text)]

    def metrics(self, texts: Sequence[str], lengths: ArrayLike) -> dict[str, float]:
        """`reflection/<category>`: the share of the texts [B] that show it, `reflection/any` and `reflection/none`
        among them; and of those, where there are any, the mean of their lengths [B] in tokens as `.../mean_length`."""
        found, lengths = [self.categories(text) for text in texts], np.asarray(lengths)
        shows = {name: np.array([name in one for one in found]) for name in self.patterns}
        shows["any"] = np.array([bool(one) for one in found])
        shows["none"] = ~shows["any"]
        shares = {f"reflection/{name}": float(those.mean()) for name, those in shows.items()}
        means = {
            f"reflection/{name}/mean_length": float(lengths[those].mean())
            for name, those in shows.items()
            if those.any()
        }
        return shares | means


def load_reflection(spec: str | None) -> Reflection | None:
    """The list that the setting names: `words` for our own, or a YAML file of category -> phrases; None: none.

    UserError: no such file, or it holds something else.
    """
    if spec is None:
        return None
    path = Path(__file__).with_suffix(".yaml") if spec == OWN else Path(spec)
    return Reflection({name: _pattern(phrases) for name, phrases in _read(spec, path).items()})


def _read(spec: str, path: Path) -> dict[str, list[str]]:
    import yaml

    try:
        found: Any = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"reflection = {spec}: {error.strerror}; give `{OWN}` or a YAML file") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"reflection = {spec}: not YAML: {str(error).splitlines()[0]}") from None
    if not isinstance(found, dict) or not found or not all(map(_is_list_of_text, found.values())):
        raise UserError(
            f"reflection = {spec}: must map each category to a list of phrases, as recheck: [let me check]"
        )
    if taken := {"any", "none"} & {str(name) for name in found}:
        raise UserError(
            f"reflection = {spec}: the category {min(taken)} is counted already; call it something else"
        )
    return {str(name): phrases for name, phrases in found.items()}


def _is_list_of_text(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(p, str) and p.strip() for p in value)


def _pattern(phrases: Sequence[str]) -> re.Pattern[str]:
    return re.compile("|".join(map(_phrase, phrases)), re.IGNORECASE)


def _phrase(phrase: str) -> str:
    """Whole words of ASCII letters, with any white space between them; other scripts have no gaps between words, and
    a phrase may end with a sign, as `wait,` does."""
    words = _straight(phrase).split()
    edge = lambda letter: r"\b" if letter.isascii() and re.match(r"\w", letter) else ""
    return edge(words[0][0]) + r"\s+".join(map(re.escape, words)) + edge(words[-1][-1])


def _straight(text: str) -> str:
    return text.replace("\u2019", "'")
