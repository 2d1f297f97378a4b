"""The numbers of a step, held against TRL's formulas."""

import numpy as np
import pytest

from grpo_jax.runs.metrics import peak_memory, rollout_metrics, speed_metrics

LENGTHS = np.array([[3, 5, 8, 8], [2, 8, 8, 4]])
FINISHED = np.array([[True, True, False, True], [True, False, False, True]])


def test_lengths_of_finished_completions_leave_out_the_truncated():
    found = rollout_metrics(LENGTHS, FINISHED, np.ones((8, 1)), ["r"])
    assert found["completions/mean_length"] == LENGTHS.mean()
    assert (found["completions/min_length"], found["completions/max_length"]) == (2, 8)
    assert found["completions/mean_terminated_length"] == (3 + 5 + 8 + 2 + 4) / 5
    assert (found["completions/min_terminated_length"], found["completions/max_terminated_length"]) == (2, 8)
    assert found["completions/clipped_ratio"] == 3 / 8


def test_no_finished_completion_gives_zero_not_a_crash():
    found = rollout_metrics(LENGTHS, np.zeros((2, 4), bool), np.ones((8, 1)), ["r"])
    assert found["completions/max_terminated_length"] == 0
    assert found["completions/clipped_ratio"] == 1


def test_rewards_match_the_formulas_of_trl():
    torch = pytest.importorskip("torch")
    from trl.trainer.utils import nanstd

    nan = np.nan
    values = np.array([[1, 0.5], [0, nan], [nan, nan], [1, 0.1], [1, 0], [1, 0], [1, 0], [1, 0]])
    weights = [2.0, 0.5]
    found = rollout_metrics(LENGTHS, FINISHED, values, ["exact", "format"], weights)
    per_function = torch.tensor(values)
    total = (per_function * torch.tensor(weights)).nansum(dim=1)
    total[torch.isnan(per_function).all(dim=1)] = torch.nan
    within = nanstd(total.view(2, 4), dim=1)
    expected = {
        "rewards/exact/mean": torch.nanmean(per_function[:, 0]),
        "rewards/format/std": nanstd(per_function[:, 1]),
        "reward": torch.nanmean(total),
        "reward_std": nanstd(total),
        "reward_group_std": torch.nanmean(within),
        "frac_reward_zero_std": torch.isclose(within, torch.zeros(2, dtype=within.dtype)).double().mean(),
    }
    assert {name: found[name] for name in expected} == pytest.approx(
        {n: v.item() for n, v in expected.items()}
    )


@pytest.mark.filterwarnings("error")
def test_function_that_never_applies_gives_nan_without_a_warning():
    found = rollout_metrics(LENGTHS, FINISHED, np.full((8, 1), np.nan), ["r"])
    assert np.isnan(found["rewards/r/mean"])
    assert np.isnan(found["reward"])
    assert found["frac_reward_zero_std"] == 0


def test_speed_counts_the_tokens_of_the_step_and_is_0_if_it_took_no_time():
    found = speed_metrics(step_time=2.0, step_tokens=100, num_tokens=700)
    assert found == {"step_time": 2.0, "num_tokens": 700, "tokens_per_second": 50.0}
    assert speed_metrics(0.0, 1, 1)["tokens_per_second"] == 0.0


def test_peak_memory_of_a_cpu_run_is_that_of_the_process():
    held = np.ones(2**24)  # 128 MiB
    peak, where = peak_memory()
    assert where in ("device", "process")
    if where == "process":
        assert held.nbytes < peak < 2**42


def test_peak_memory_is_that_of_the_fullest_device(monkeypatch):
    import jax

    class Device:
        def __init__(self, stats):
            self.memory_stats = lambda: stats

    monkeypatch.setattr(jax, "local_devices", lambda: [Device({"peak_bytes_in_use": n}) for n in (5, 9, 7)])
    assert peak_memory() == (9, "device")
