"""What commands report: compilations by name, and weights by their bytes."""

import types

import jax
import jax.numpy as jnp
import pytest

from grpo_jax import program
from grpo_jax.config import GRPOConfig
from grpo_jax.program import Program
from grpo_jax.runs import status
from grpo_jax.setup import status as shown
from grpo_jax.setup import weights
from grpo_jax.setup.policy import open_policy
from grpo_jax.setup.status import show_status, with_status


class Notes:
    """A display that keeps what it is told."""

    def __init__(self):
        self.notes, self.closed = [], False

    def show(self, now, text, seconds):
        pass

    def note(self, text, seconds):
        self.notes.append(text)

    def close(self):
        self.closed = True


@pytest.fixture
def display(monkeypatch):
    display = Notes()
    monkeypatch.setattr(shown, "display_for", lambda stream: display)
    return display


def test_each_compilation_is_reported_once_by_name_and_calls_are_not(display):
    double = Program("double", lambda x: 2 * x)
    with show_status(quiet=False):
        for size in (2, 2, 3):
            double(jnp.ones(size))
        double.jit.lower(jnp.ones(5))  # as a plan does, which compiles for absent devices
    double(jnp.ones(4))
    assert [note.partition(" in ")[0] for note in display.notes] == ["compiled double"] * 2
    assert double.compilations == 4
    assert display.closed


def test_a_program_that_cannot_be_traced_leaves_no_phase_behind(display):
    def wrong(x):
        raise ValueError("no")

    with show_status(quiet=False):
        with pytest.raises(ValueError, match="no"):
            Program("wrong", wrong)(jnp.ones(2))
        assert status.current()._phases == []
    assert display.notes == []


def test_within_a_status_the_outer_one_holds(display):
    with show_status(quiet=True):
        with show_status(quiet=False):
            assert status.current().quiet
        assert program.compiling is not program.unwatched
    assert program.compiling is program.unwatched


@pytest.mark.parametrize("quiet", [True, False])
def test_commands_are_quiet_as_their_settings_say(display, quiet):
    command = with_status(lambda config: status.current().quiet)
    assert command(types.SimpleNamespace(quiet=quiet)) is quiet


def test_processes_that_do_not_print_show_nothing(display, monkeypatch):
    monkeypatch.setattr(shown.hosts, "is_writer", lambda: False)
    with show_status(quiet=False):
        assert status.current().quiet


def test_loading_counts_all_bytes_of_the_weights(monkeypatch, tiny_model):
    said = []
    monkeypatch.setattr(weights, "size", str)
    monkeypatch.setattr(status.Status, "report", lambda self, words: said.append(words))
    policy = open_policy(GRPOConfig(mesh="data=1"), tiny_model)
    with jax.set_mesh(policy.mesh):
        params = weights.load_trained(policy, 0)
    whole = sum(x.nbytes for x in jax.tree.leaves(params))
    first, *_, last = said
    assert (first, last) == (f"none of {whole} yet", f"{whole} of {whole}")
    assert len(said) == 1 + len(jax.tree.leaves(params))
