"""Parses the shape of a device mesh from text. No jax here."""

from grpo_jax.errors import UserError, nearest

AXES = ("data", "fsdp", "tensor")


def parse_mesh(text: str | None) -> dict[str, int] | None:
    """`"fsdp=8,tensor=2"` -> `{"data": 1, "fsdp": 8, "tensor": 2}`; None (a mesh that fits the devices) stays None.

    The result has the axes in the order of `AXES`; one that is not named has size 1. Raises UserError for bad text.
    """
    if text is None:
        return None
    sizes: dict[str, int] = {}
    for part in text.split(","):
        axis, _, size = (piece.strip() for piece in part.partition("="))
        if fault := _axis_fault(axis, size, sizes):
            raise UserError(f"mesh = {text!r}: {fault}; write e.g. data=1,fsdp=8,tensor=1")
        sizes[axis] = int(size)
    return {axis: sizes.get(axis, 1) for axis in AXES}


def _axis_fault(axis: str, size: str, known: dict[str, int]) -> str | None:
    if axis not in AXES:
        return f"no axis {axis!r}{nearest(axis, AXES)}"
    if axis in known:
        return f"{axis} is given twice"
    if not (size.isascii() and size.isdigit() and int(size) > 0):
        return f"{axis} needs a whole number above 0"
    return None
