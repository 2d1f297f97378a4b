"""What is printed: plain lines where there is no terminal, and texts of a model as they are."""

import io

import pytest
from rich.console import Console

from grpo_jax.runs.progress import TrainingProgress, closing_table, sample_panel

NUMBERS = {"reward": 0.5, "completions/mean_length": 12.4, "tokens_per_second": 12345.6, "loss": 0.0}


def console(terminal=False):
    return Console(file=io.StringIO(), width=120, force_terminal=terminal, color_system=None)


def test_log_file_gets_a_few_plain_lines_and_the_last_step():
    out = console()
    with TrainingProgress(50, every=20, console=out) as progress:
        for step in range(1, 51):
            progress.log(step, NUMBERS)
    lines = out.file.getvalue().splitlines()
    assert [line.split()[1] for line in lines] == ["20/50", "40/50", "50/50"]
    assert lines[0] == "step 20/50  reward 0.500  length 12  tokens/s 12,346"


def test_terminal_gets_a_bar_that_starts_where_the_run_resumes():
    out = console(terminal=True)
    with TrainingProgress(50, first=30, console=out) as progress:
        progress.log(31, NUMBERS)
    shown = out.file.getvalue()
    assert "31/50" in shown
    assert "reward 0.500" in shown
    assert "loss" not in shown


def test_missing_reward_does_not_stop_the_bar():
    out = console()
    TrainingProgress(1, console=out).log(1, {"reward": None})
    assert "reward -" in out.file.getvalue()


def test_other_processes_are_silent(capsys):
    TrainingProgress(1, silent=True).log(1, NUMBERS)
    assert capsys.readouterr() == ("", "")


def test_closing_table_shows_before_after_and_change():
    out = console()
    closing_table({"greedy": 0.125}, {"greedy": 0.5, "steps": 200, "solved [%]": "50"}, console=out)
    greedy = next(line for line in out.file.getvalue().splitlines() if "greedy" in line)
    assert [cell.strip() for cell in greedy.split("│")[1:-1]] == ["greedy", "0.125", "0.5", "+0.375"]
    assert "solved [%]" in out.file.getvalue()


@pytest.mark.parametrize(
    "text", ["[/red] closes nothing", "a [bold]b[/bold]", "[link=x]y", "\\[x]", "[1, 2]"]
)
def test_brackets_of_a_completion_are_no_markup(text):
    out = console()
    sample_panel("samples", [{"completion": text}])
    sample_panel("samples", [{"completion": text}], console=out)
    assert text in out.file.getvalue()


def test_escape_sequences_of_a_completion_do_not_reach_the_terminal():
    out = console(terminal=True)
    sample_panel("samples", [{"completion": "\x1b]0;owned\x07 \x1b[2J\r\u009b2Jend"}], console=out)
    assert "\\x1b]0;owned\\x07 \\x1b[2J\\x0d\\x9b2Jend" in out.file.getvalue()
