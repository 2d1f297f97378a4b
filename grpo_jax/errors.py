"""Invalid user input. The message names the field or file, the value, and how to fix it.

Every room may import this module; it imports no other.
"""

import difflib
import re
from collections.abc import Iterable


class UserError(Exception):
    """A setting, a file or a folder of the user's is wrong. The command line prints the message and exits with 2."""


def first_line(error: BaseException) -> str:
    """The first line of an error's message, with the second where the first announces it; or the error's type."""
    lines = [line.strip() for line in str(error).strip().splitlines()] or [type(error).__name__]
    return " ".join(lines[:2]) if lines[0].endswith(":") else lines[0]


def hub_reason(error: BaseException) -> str:
    """Why a model hub did not give what was asked for; where it refused it, with what can be done."""
    reason = first_line(error)
    if re.search(r"\b40[13]\b", reason):
        reason += "; if it is private or gated, log in by `hf auth login` or set HF_TOKEN"
    return reason


def plural(number: int, one: str, many: str | None = None) -> str:
    """The noun that goes with a number: `one`, or `many`, by default with an s."""
    return one if number == 1 else many or f"{one}s"


def nearest(name: str, options: Iterable[str]) -> str:
    """` (did you mean 'x'?)` for the option closest to `name`; empty if none is close."""
    close = difflib.get_close_matches(name, list(options), n=1, cutoff=0.6)
    return f" (did you mean '{close[0]}'?)" if close else ""
