"""Which walls there are, what each is good for, and what is open where walls are missing."""

from collections.abc import Iterable

WALLS = ("namespaces", "root", "user", "landlock", "seccomp")
"""From the outside in; a keeper puts up those that the kernel lets it."""

KEEPERS: dict[str, list[set[str]]] = {
    "the machine's files": [{"root"}, {"landlock", "seccomp"}],
    "the network": [{"namespaces"}, {"seccomp"}],
    "other processes": [{"namespaces"}, {"seccomp"}, {"user"}],
}
"""What a program must not reach -> walls that are enough, each set by itself."""

WORDS = {
    "namespaces": "namespaces of its own (processes, network, mounts)",
    "root": "a file system of its own",
    "user": "a user of its own",
    "landlock": "Landlock",
    "seccomp": "a filter of system calls",
}


def open_to(walls: Iterable[str]) -> list[str]:
    """What a program behind these walls could reach all the same."""
    there = set(walls)
    return [what for what, enough in KEEPERS.items() if not any(needed <= there for needed in enough)]


def described(walls: Iterable[str]) -> str:
    """The walls and the gaps in one sentence."""
    there = [WORDS[wall] for wall in WALLS if wall in set(walls)]
    gaps = open_to(walls)
    sentence = "limits on time, memory and output" + "".join(f", {words}" for words in there)
    return sentence + (f"; nothing keeps a program from {', '.join(gaps)}" if gaps else "")
