"""The walls by name, what each protects, and what a program can reach where walls are missing."""

from collections.abc import Iterable

WALLS = ("namespaces", "root", "user", "landlock", "seccomp")
"""From the outside in. A supervisor puts up those that the kernel permits."""

SUFFICIENT_WALLS: dict[str, list[set[str]]] = {
    "the machine's files": [{"root"}, {"landlock", "seccomp"}],
    "the network": [{"namespaces"}, {"seccomp"}],
    "other processes": [{"namespaces"}, {"seccomp"}, {"user"}],
}
"""What a program must not reach -> sets of walls, each of which suffices to keep it away."""

WORDS = {
    "namespaces": "namespaces of its own (processes, network, mounts)",
    "root": "a file system of its own",
    "user": "a user of its own",
    "landlock": "Landlock",
    "seccomp": "a filter of system calls",
}


def open_to(walls: Iterable[str]) -> list[str]:
    """What a program behind these walls can still reach."""
    present = set(walls)
    return [
        target
        for target, alternatives in SUFFICIENT_WALLS.items()
        if not any(needed <= present for needed in alternatives)
    ]


def described(walls: Iterable[str]) -> str:
    """The walls and the gaps in one sentence."""
    present = [WORDS[wall] for wall in WALLS if wall in set(walls)]
    gaps = open_to(walls)
    sentence = "limits on time, memory and output" + "".join(f", {words}" for words in present)
    return sentence + (f"; nothing keeps a program from {', '.join(gaps)}" if gaps else "")
