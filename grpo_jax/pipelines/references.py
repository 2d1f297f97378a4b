"""References `${step.output}` in settings: finds and replaces them."""

import re
from collections.abc import Callable, Iterator
from typing import Any

from grpo_jax.errors import UserError

_REFERENCE = re.compile(r"\$\{([A-Za-z][\w-]*)\.([A-Za-z]\w*)\}")
FORM = "write ${step.output} or ${inputs.name}"


def found(value: Any) -> Iterator[tuple[str, str]]:
    """(step, output) of every reference in a value of strings, lists and mappings. UserError for a broken one."""
    if isinstance(value, dict):
        for one in value.values():
            yield from found(one)
    elif isinstance(value, list):
        for one in value:
            yield from found(one)
    elif isinstance(value, str):
        if "${" in _REFERENCE.sub("", value):
            raise UserError(f"{value!r}: not a reference; {FORM}")
        yield from _REFERENCE.findall(value)


def replaced(value: Any, by: Callable[[str, str], str]) -> Any:
    """The value with `by(step, output)` in place of each reference."""
    if isinstance(value, dict):
        return {name: replaced(one, by) for name, one in value.items()}
    if isinstance(value, list):
        return [replaced(one, by) for one in value]
    if isinstance(value, str):
        return _REFERENCE.sub(lambda match: by(match[1], match[2]), value)
    return value
