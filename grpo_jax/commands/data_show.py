"""The verb `data show`: what a data set consists of, and its first rows as the model would see them."""

from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from grpo_jax.config.data import ShowConfig
from grpo_jax.data.chat import encode, is_chat, render
from grpo_jax.data.curation.summary import Lengths, columns, lengths
from grpo_jax.data.layouts import Layout, arrange_one, recognise
from grpo_jax.data.sources import load_rows

Row = dict[str, Any]


def show(config: ShowConfig) -> int:
    """Print it all. UserError for data without a usable row."""
    rows = load_rows(config.data, config.split, seed=config.seed)[: config.rows or None]
    layout = recognise(rows[0], config.prompt_column, config.layout)
    reader = Reader(config)
    arranged, faults = _arranged(rows, layout)
    console = Console()
    console.print(_columns(f"{config.data}: {len(rows):,} rows", rows))
    about = f"layout: {layout.name} ({layout.sets})" + (
        "" if layout.trace else ", no completions to learn from"
    )
    console.print(about, markup=False, highlight=False)
    console.print(_lengths(arranged, reader))
    if faults:
        console.print(f"{len(faults):,} rows cannot be used; {faults[0]}", markup=False, highlight=False)
    for number, row in arranged[: config.show]:
        completion = row.get("completion") or _trace(rows[number - 1], layout)
        _show_row(console, number, row, completion, reader)
    return 0


class Reader:
    """Rows as a model reads them: through its template and tokenizer, or where none is given, in characters."""

    def __init__(self, config: ShowConfig):
        self.config, self.tokenizer = config, None
        if config.model is not None:
            from grpo_jax.models import hf

            self.tokenizer = hf.load_tokenizer(hf.resolve_model(config.model))

    @property
    def unit(self) -> str:
        return "characters" if self.tokenizer is None else "tokens"

    def text(self, prompt: Any) -> str:
        """What the model continues; without a model the messages, each under its role."""
        if self.tokenizer is not None:
            given = self.config
            return render(
                prompt,
                self.tokenizer,
                given.system_prompt,
                prefill=given.prefill,
                chat_template_kwargs=given.chat_template_kwargs,
            )
        if isinstance(prompt, str):
            return prompt
        return "\n".join(f"[{message['role']}] {message['content']}" for message in prompt)

    def sizes(self, prompts: Sequence[Any]) -> list[int]:
        """In tokens, or characters of the messages' contents."""
        if self.tokenizer is None:
            return [len(p) if isinstance(p, str) else sum(len(m["content"]) for m in p) for p in prompts]
        texts = [self.text(prompt) for prompt in prompts]
        chat = is_chat(prompts[0], self.config.system_prompt)
        return [len(ids) for ids in encode(texts, self.tokenizer, chat=chat)]


def _arranged(rows: Sequence[Row], layout: Layout) -> tuple[list[tuple[int, Row]], list[str]]:
    """(numbered usable rows, what is wrong with the others)."""
    usable, faults = [], []
    for number, row in enumerate(rows, start=1):
        try:
            usable.append((number, arrange_one(row, layout)))
        except ValueError as error:
            faults.append(f"row {number}: {error}")
    return usable, faults


def _columns(title: str, rows: Sequence[Row]) -> Table:
    table = Table("column", "holds", "filled", "for example", title=title)
    for column in columns(rows):
        table.add_row(
            *(Text(cell) for cell in (column.name, column.kinds, f"{column.filled:,}", column.example))
        )
    return table


def _lengths(arranged: Sequence[tuple[int, Row]], reader: Reader) -> Table:
    table = Table(f"length in {reader.unit}", "shortest", "median", "95 %", "longest")
    texts = {"prompt": [row["prompt"] for _, row in arranged]}
    texts |= {
        name: [value for _, row in arranged if isinstance(value := row.get(name), str) and value]
        for name in ("answer", "solution", "completion")
    }
    for name, values in texts.items():
        if values:
            table.add_row(
                name, *_cells(lengths(reader.sizes(values) if name == "prompt" else list(map(len, values))))
            )
    return table


def _cells(found: Lengths) -> list[str]:
    return [f"{size:,}" for size in (found.shortest, found.median, found.most, found.longest)]


def _show_row(console: Console, number: int, row: Row, completion: Any, reader: Reader) -> None:
    shown = {"the model reads": reader.text(row["prompt"]), "answer": row.get("answer")}
    shown["it learns from (sft)"] = completion
    console.rule(f"row {number}")
    for what, text in shown.items():
        if text is not None:
            console.print(f"{what}:", style="bold")
            console.print(str(text), markup=False, highlight=False, soft_wrap=True)


def _trace(row: Row, layout: Layout) -> str | None:
    try:
        return layout.trace(row) if layout.trace else None
    except (ValueError, KeyError, TypeError) as error:
        return f"nothing: {error}"
