"""Reads a compiled program's text: its loops and their trip counts, its collectives and their sizes."""

import re
from collections.abc import Iterator

BYTES = {
    "f32": 4,
    "s32": 4,
    "u32": 4,
    "bf16": 2,
    "f16": 2,
    "s8": 1,
    "u8": 1,
    "pred": 1,
    "f64": 8,
    "s64": 8,
    "u64": 8,
}
COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?(\S+) = (.+?) ([\w-]+)\((.*)$")
SHAPE = re.compile(r"(\w+)\[([\d,]*)\]")


def computations(text: str) -> dict[str, list[str]]:
    """Name -> lines of each computation of a module. The entry computation's name begins with `ENTRY`."""
    found = {}
    for part in re.split(r"\n(?=(?:ENTRY )?%?[\w.-]+ \(|(?:ENTRY )?%?[\w.-]+ \{)", text):
        first, _, rest = part.partition("\n")
        if name := re.match(r"(ENTRY )?%?([\w.-]+)", first):
            found[(name[1] or "") + name[2]] = rest.splitlines()
    return found


def loops(lines: list[str]) -> list[tuple[str, int | None]]:
    """(body, trip count) of each loop; the trip count is None if it depends on data."""
    found = []
    for line in lines:
        if body := re.search(r" while\(.*body=%?([\w.-]+)", line):
            count = re.search(r'known_trip_count":\{"n":"(\d+)"', line)
            found.append((body[1], int(count[1]) if count else None))
    return found


def size(shape: str) -> int:
    """Bytes of a result, which may be a tuple. Buffers in a TPU's on-chip memory (S(1)) are not counted."""
    total = 0
    for kind, dims in SHAPE.findall(re.sub(r"\w+\[[\d,]*\]\{[^}]*S\(1\)\}", "", shape)):
        count = 1
        for n in dims.split(","):
            count *= int(n or 1)
        total += count * BYTES.get(kind, 0)
    return total


def collective_bytes(text: str, trips: list[int]) -> dict[str, int]:
    """Kind -> bytes of the results of such collectives on one device, those in loops once per iteration.

    Args:
        trips: trip counts of the loops whose own depends on data, from the outermost inwards; 1 for deeper ones.
    """
    parts = computations(text)
    entry = next(name for name in parts if name.startswith("ENTRY"))
    found: dict[str, int] = {}
    for line, times in _instructions(parts, entry, 1, trips):
        instruction = INSTRUCTION.match(line)
        kind = instruction[3].removesuffix("-start") if instruction else ""
        if instruction and kind in COLLECTIVES:
            found[kind] = found.get(kind, 0) + times * _result(instruction[2], instruction[3])
    return found


def _instructions(
    parts: dict[str, list[str]], name: str, times: int, trips: list[int]
) -> Iterator[tuple[str, int]]:
    for line in parts.get(name, []):
        yield line, times
        for called in re.findall(
            r"(?:calls|to_apply)=%?([\w.-]+)|(?:true|false)_computation=%?([\w.-]+)", line
        ):
            if " fusion(" not in line and " reduce" not in line:
                yield from _instructions(parts, called[0] or called[1], times, trips)
        for branches in re.findall(r"branch_computations=\{([^}]*)\}", line):
            for branch in branches.split(","):
                yield from _instructions(parts, branch.strip().lstrip("%"), times, trips)
        for body, count in loops([line]):
            inside = trips if count else trips[1:]
            yield from _instructions(parts, body, times * (count or (trips or [1])[0]), inside)


def _result(shape: str, kind: str) -> int:
    """Bytes of a collective's result. That of an asynchronous one is a tuple of input and output: the larger counts."""
    if not kind.endswith("-start"):
        return size(shape)
    arrays = [size(f"{kind}[{dims}]") for kind, dims in SHAPE.findall(shape)]
    return max(arrays, default=0)
