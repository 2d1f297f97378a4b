"""What the terminal shows: progress during a run (stderr), tables and samples at its end (stdout)."""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.panel import Panel
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from grpo_jax.runs.status import current

_SHOWN = {  # metric -> (label, format). No loss: on-policy it is 0 by construction and says nothing
    "reward": ("reward", ".3f"),
    "nll": ("nll", ".3f"),  # of supervised rows only
    "completions/mean_length": ("length", ".0f"),
    "tokens_per_second": ("tokens/s", ",.0f"),
}
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


class TrainingProgress:
    """A bar with reward, length and tokens/s; where stderr is not a terminal, a plain line now and then.

    A `MetricsLogger` (see `loggers.py`); also a context manager, for commands without a `Run`.

    Args:
        total: steps of the whole run; first: steps done before, when used with `with`.
        every: steps between plain lines; default a twentieth of the run.
        silent: for the processes of a run other than 0.
    """

    def __init__(
        self,
        total: int,
        first: int = 0,
        *,
        every: int = 0,
        silent: bool = False,
        console: Console | None = None,
    ):
        self.console = console or Console(stderr=True, quiet=silent)
        self._total, self._first, self._every = total, first, every or max(1, total // 20)
        self._bar = _BarWithStatus(
            TextColumn("step"),
            MofNCompleteColumn(),
            BarColumn(),
            TextColumn("{task.fields[numbers]}", markup=False),
            TimeRemainingColumn(),
            console=self.console,
            disable=not self.console.is_terminal,
        )
        self._task = self._bar.add_task("", total=total, numbers="")

    def __enter__(self) -> "TrainingProgress":
        self.start(self._first)
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def start(self, step: int) -> None:
        """Show the bar, with `step` steps done."""
        self._bar.reset(self._task, completed=step, numbers="")
        current().lend_to_bar(self.console.is_terminal)
        self._bar.shows_status = not current().quiet
        self._bar.start()

    def close(self) -> None:
        """Take the bar off the terminal."""
        if self._bar.live.is_started:
            self._bar.shows_status = False
            self._bar.stop()
            current().lend_to_bar(False)

    def log(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Show that `step` steps are done."""
        numbers = "  ".join(
            f"{label} {_number(metrics[name], shape)}"
            for name, (label, shape) in _SHOWN.items()
            if name in metrics
        )
        if self.console.is_terminal:
            self._bar.update(self._task, completed=step, numbers=numbers)
        elif step % self._every == 0 or step == self._total:
            self.say(f"step {step}/{self._total}  {numbers}")

    def say(self, text: str) -> None:
        """Print a line without breaking the bar."""
        self.console.print(plain(text), soft_wrap=True)


class _BarWithStatus(Progress):
    """A bar, and below it the status of the process."""

    shows_status = False

    def get_renderables(self) -> Iterable[RenderableType]:
        """The bar and the status, whose line stays while nothing is under way, so that the bar does not jump."""
        yield from super().get_renderables()
        if self.shows_status:
            yield Text(current().text(), style="dim", no_wrap=True, overflow="ellipsis")


def closing_table(
    before: Mapping[str, Any], after: Mapping[str, Any], *, title: str = "", console: Console | None = None
) -> None:
    """Print a table with a row for each name in `after`: before (if known), after, difference."""
    table = Table("", "before", "after", "change", title=plain(title) if title else None)
    for name, new in after.items():
        old = before.get(name)
        numeric = isinstance(old, int | float) and isinstance(new, int | float)
        change = f"{new - old:+.4g}" if numeric else ""
        table.add_row(plain(name), plain(_number(old)), plain(_number(new)), change)
    (console or Console()).print(table)


def sample_panel(title: str, samples: Sequence[Mapping[str, Any]], *, console: Console | None = None) -> None:
    """Print samples, mappings such as `{"prompt": ..., "completion": ..., "reward": ...}`, in a frame."""
    lines = [
        Text.assemble((f"{name}: ", "bold"), plain(_number(value)), "\n" if name == list(sample)[-1] else "")
        for sample in samples
        for name, value in sample.items()
    ]
    (console or Console()).print(Panel(Group(*lines), title=plain(title)))


def plain(text: str) -> Text:
    """`text` verbatim: brackets are not markup, and control characters are escaped."""
    return Text(_CONTROL.sub(lambda found: f"\\x{ord(found[0]):02x}", text.replace("\r\n", "\n")))


def _number(value: Any, shape: str = ".4g") -> str:
    if value is None:
        return "-"
    return format(value, shape) if isinstance(value, float) else str(value)
