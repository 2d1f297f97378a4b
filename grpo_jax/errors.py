"""Invalid user input. The message names the field or file, the value, and how to fix it.

Every room may import this module; it imports no other.
"""

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """A setting, a file or a folder of the user's is wrong. The command line prints the message and exits with 2."""


def nearest(name: str, options: Iterable[str]) -> str:
    """` (did you mean 'x'?)` for the option closest to `name`; empty if none is close."""
    close = difflib.get_close_matches(name, list(options), n=1, cutoff=0.6)
    return f" (did you mean '{close[0]}'?)" if close else ""
