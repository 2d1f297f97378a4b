"""Which axes of a parameter make up its matrix: optimizers that treat matrices as such ask here.

A layer's parameters are stacked along a leading axis, and heads have an axis of their own, so a matrix from the model's
width to the heads is [L,D,N,H]: L matrices from D to N*H.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple


class MatrixAxes(NamedTuple):
    """The axes of a parameter that a matrix takes its input along, and those that it gives its output along."""

    inputs: tuple[int, ...]
    outputs: tuple[int, ...]


def in_layers(path: Sequence[Any]) -> bool:
    """Whether the parameter at this path of the tree is stacked, one layer after the other along its first axis."""
    return bool(path[0].key == "layers")


def matrix_axes(path: Sequence[Any], x: Any) -> MatrixAxes | None:
    """The axes of the parameter x at a path of the tree; None for biases and norms."""
    names, first = [part.key for part in path], int(in_layers(path))
    if names[-1] in ("bias", "scale"):
        return None
    last_only = names[-1] == "lora_a" or (names[-1] == "kernel" and "o" in names)  # from [N,H] to one axis
    middle = x.ndim - 1 if last_only else first + 1
    return MatrixAxes(tuple(range(first, middle)), tuple(range(middle, x.ndim)))
