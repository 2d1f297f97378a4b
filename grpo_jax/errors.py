"""What the user gave is wrong: one sentence that names the field or file, the value and the mend.

A leaf: every floor of the house may import it, and it imports nothing of ours.
"""

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """A fault in a setting, a file or a folder that the user gave; the command line prints it and exits 2."""


def nearest(name: str, options: Iterable[str]) -> str:
    """` (did you mean 'x'?)` for the option closest to `name`, or an empty string when none is close."""
    close = difflib.get_close_matches(name, list(options), n=1, cutoff=0.6)
    return f" (did you mean '{close[0]}'?)" if close else ""
