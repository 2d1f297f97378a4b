"""Supervised fine-tuning: what is learned, what is not, and that a run goes on where it ended."""

import json
import shutil

import jax
import numpy as np
import pytest

from grpo_jax.cli import main
from grpo_jax.config import SFTConfig
from grpo_jax.models.qwen import head_logits, hidden_states
from grpo_jax.policy import open_policy
from grpo_jax.sft import FineTuner
from grpo_jax.weights import load_trained

ROWS = [{"prompt": f"say {word}", "completion": word * 2} for word in ("ab", "bc", "cd", "de", "ef", "fgh")]


@pytest.fixture
def settings(tiny_model, tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return {
        "model": str(tiny_model),
        "dataset": str(file),
        "output_dir": str(tmp_path / "run"),
        "max_steps": 6,
        "save_steps": 2,
        "rows_per_step": 8,
        "max_length": 32,
        "learning_rate": 1e-2,
    }


def run(settings, **changes):
    return main(["sft", *(f"--{name}={value}" for name, value in (settings | changes).items())])


def weights(folder):
    return (folder / "hf" / "model.safetensors").read_bytes()


def lines(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def by_hand(policy, params, row):
    """Log-probs of the completion's tokens, the end included, by one forward pass over an unpadded row."""
    prompt = policy.tokenizer(row["prompt"])["input_ids"]
    completion = [*policy.tokenizer(row["completion"])["input_ids"], policy.vocabulary.eos_ids[0]]
    tokens = np.array([prompt + completion])
    hidden, _ = hidden_states(policy.cfg, params, tokens, np.arange(tokens.shape[1])[None])
    logits = head_logits(policy.cfg, params, hidden, policy.vocabulary.num_tokens)
    logprobs = jax.nn.log_softmax(logits)[0, np.arange(tokens.shape[1] - 1), tokens[0, 1:]]
    return np.asarray(logprobs)[len(prompt) - 1 :]


def test_loss_of_other_tokens_than_the_completions(settings):
    """Over all rows at once, with micro-batches: every completion token counts the same, no prompt token does."""
    config = SFTConfig(**settings | {"shuffle_dataset": False, "micro_batch_size": 8, "mesh": "data=1"})
    policy = open_policy(config)
    rows = ROWS + ROWS[:2]
    tuner = FineTuner(config, policy, rows)
    params = load_trained(policy, 0)
    with jax.set_mesh(policy.mesh):
        wanted = -np.concatenate([by_hand(policy, params, row) for row in rows]).mean()
        _, metrics = tuner(tuner.start(), 0)
    assert metrics["nll"] == pytest.approx(wanted, rel=1e-5)
    assert metrics["loss"] == pytest.approx(wanted, rel=1e-5)
    assert metrics["perplexity"] == pytest.approx(np.exp(wanted), rel=1e-4)


def test_a_run_that_learns_nothing_or_leaves_no_model(settings, tmp_path, capsys):
    assert run(settings, max_steps=12) == 0
    nll = [line["nll"] for line in lines(tmp_path / "run")]
    assert len(nll) == 12
    assert nll[-1] < 0.7 * nll[0]
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert (summary["steps"], summary["rows"], summary["rows_dropped"]) == (12, 6, 0)
    assert f"model: {tmp_path / 'run' / 'hf'}" in capsys.readouterr().out
    assert main(["generate", "--model", str(tmp_path / "run" / "hf"), "--prompt", "say ab"]) == 0


def test_resumed_run_that_ends_elsewhere(settings, tmp_path):
    folder, other = tmp_path / "run", tmp_path / "other"
    assert run(settings) == 0
    shutil.copytree(folder, other)
    for name in ("checkpoints/6", "hf"):
        shutil.rmtree(other / name)
    (other / "summary.json").unlink()
    assert run(settings, output_dir=other) == 0
    assert [line["step"] for line in lines(other)] == [1, 2, 3, 4, 5, 6]
    assert [line["nll"] for line in lines(other)] == [line["nll"] for line in lines(folder)]
    assert weights(folder) == weights(other)


def test_rows_left_out_without_a_word(settings, tmp_path, capsys):
    assert run(settings, max_length=11, max_steps=1) == 0
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["rows_dropped"] == 1
    assert "(1 too long, left out)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"model": "demo"}, "model = demo: sft needs a model to start from"),
        ({"completion_column": "answer"}, "no column 'answer' among prompt, completion"),
        ({"rows_per_step": 7}, "rows_per_step = 7 does not divide over the mesh's 8 row shards"),
        ({"micro_batch_size": 4}, "micro_batch_size = 4 does not divide over the mesh's 8 row shards"),
        ({"max_length": 3}, "max_length = 3: all 6 rows are longer"),
    ],
)
def test_bad_input_that_leaves_a_folder(settings, tmp_path, capsys, changes, why):
    assert run(settings, **changes) == 2
    assert why in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
