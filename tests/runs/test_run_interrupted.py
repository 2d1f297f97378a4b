"""What a run does with Ctrl-C between its steps."""

import numpy as np
import pytest

from grpo_jax.runs.run import Run


class State:
    def to_json(self):
        return {"seen": 3}


def interrupted(output_dir, done, asked=True):
    """End step `done` of 4, with Ctrl-C pressed in it."""
    settings = {"output_dir": output_dir, "max_steps": 4, "save_steps": 0, "save_total_limit": 1}
    with Run(settings, {}) as run:
        run.restore({"w": np.zeros(2)})
        run.interrupts.asked = asked
        run.end_step(done, {"w": np.ones(2)}, State())


@pytest.mark.parametrize("done", [2, 4])
def test_an_interrupted_run_has_saved_the_step_when_keyboard_interrupt_comes(tmp_path, done, capsys):
    """Also after the last step, though its evaluation and export are still to come."""
    folder = str(tmp_path / "run")
    with pytest.raises(KeyboardInterrupt):
        interrupted(folder, done)
    said = " ".join(capsys.readouterr().err.split())
    assert f"step {done} of 4 is done, and saved in {folder}: the same command goes on from there" in said
    settings = {"output_dir": folder, "max_steps": 4, "save_steps": 0, "save_total_limit": 1}
    with Run(settings, {}) as run:
        step, state, saved = run.restore({"w": np.zeros(2)})
    assert (step, saved["seen"]) == (done, 3)
    np.testing.assert_array_equal(state["w"], np.ones(2))


def test_an_interrupted_run_without_a_folder_says_only_how_far_it_came(capsys):
    with pytest.raises(KeyboardInterrupt):
        interrupted(None, 2)
    assert capsys.readouterr().err.endswith("step 2 of 4 is done\n")


def test_a_run_that_nobody_interrupts_goes_on(tmp_path):
    interrupted(str(tmp_path / "run"), 2, asked=False)
