"""The run's state: frozen, the same after JSON, and readable from the checkpoints of earlier versions."""

import dataclasses
import json

import numpy as np
import pytest

from grpo_jax.data.curriculum.sampler import SamplerState
from grpo_jax.training.run_state import CarriedGroups, RunState, SFTRunState, packed, unpacked

SAMPLER = SamplerState(places=[[1, 2]], out=[[3]], drawn=[9], total=12, to_redraw=[7], recent=[[0.5, 0.1]])
STATE = RunState(
    SAMPLER,
    num_tokens=5,
    seconds=1.5,
    carried=CarriedGroups([5, 6], packed({"x": np.arange(2)}), {"note": ["a", None]}),
    samples={"completion_samples.txt": 3},
    callbacks={"Early": {"best": 1.0}},
    before={"summary": {"reward": 0.25}, "samples": []},
    stopped=True,
)


def through_json(state):
    return RunState.from_json(json.loads(json.dumps(state.to_json())))


@pytest.mark.parametrize("state", [STATE, RunState(SAMPLER)])
def test_a_run_state_is_the_same_after_json(state):
    assert through_json(state).to_json() == json.loads(json.dumps(state.to_json()))
    for field in dataclasses.fields(RunState):
        assert getattr(through_json(state), field.name) == getattr(state, field.name), field.name


def test_the_example_state_differs_from_the_default_in_every_field():
    """Otherwise the test above would not notice a forgotten field."""
    for field in dataclasses.fields(RunState):
        assert getattr(STATE, field.name) != getattr(RunState(SamplerState([], [], [])), field.name), (
            field.name
        )


def test_the_keys_of_a_checkpoint_are_those_of_earlier_versions():
    saved = STATE.to_json()
    assert set(saved) == {
        *("num_tokens", "seconds", "course", "carried", "samples", "callbacks", "before", "stopped")
    }
    assert saved["course"]["again"] == [7]
    assert saved["carried"]["tickets"] == [5, 6]


def test_fields_missing_from_an_older_checkpoint_have_their_defaults():
    course = {"places": [[0, 8]], "out": [[]], "drawn": [8], "total": 8, "stage": 0, "over": False}
    state = RunState.from_json({"num_tokens": 3, "seconds": 2.0, "before": None, "course": course})
    assert (state.num_tokens, state.curriculum.total, state.curriculum.to_redraw) == (3, 8, ())
    assert state == RunState(state.curriculum, num_tokens=3, seconds=2.0)


def test_a_run_state_is_immutable():
    with pytest.raises(dataclasses.FrozenInstanceError):
        STATE.num_tokens = 0
    assert (STATE.counted(10, 0.5).num_tokens, STATE.num_tokens) == (15, 5)


def test_packed_arrays_keep_their_bits():
    odd = np.array([-0.0, 1e-45, np.nan], np.float32)
    assert unpacked(packed({"odd": odd}))["odd"].tobytes() == odd.tobytes()


def test_a_supervised_runs_state_is_the_same_after_json():
    state = SFTRunState(7, 2.5, {"summary": {}}, 0.5, {"summary": {"nll": 1.0}})
    assert SFTRunState.from_json(json.loads(json.dumps(state.to_json()))) == state
    earlier = {"num_tokens": 7, "seconds": 2.5, "before": None, "nll": 0.5}
    assert SFTRunState.from_json(earlier) == SFTRunState(7, 2.5, None, 0.5)
    stepped = state.stepped({"num_tokens": 3, "step_time": 0.5, "nll": 0.25})
    assert (stepped.num_tokens, stepped.seconds, stepped.nll) == (10, 3.0, 0.25)
