"""Supervised fine-tuning: what is learned, what is not, and that a run goes on where it ended."""

import json
import shutil
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from grpo_jax.cli import main
from grpo_jax.config import SFTConfig
from grpo_jax.learner.logprobs import LogprobSettings
from grpo_jax.learner.objective import SFT
from grpo_jax.learner.update import accumulate
from grpo_jax.models.transformer import head_logits, hidden_states
from grpo_jax.setup.policy import open_policy
from grpo_jax.setup.weights import load_trained
from grpo_jax.training.sft_trainer import FineTuner

pytestmark = pytest.mark.usefixtures("shared_programs")

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


def log_probs(policy, params, row):
    """Log-probs of the completion's tokens, the end included, by one forward pass over an unpadded row."""
    prompt = policy.tokenizer(row["prompt"])["input_ids"]
    completion = [*policy.tokenizer(row["completion"])["input_ids"], policy.vocabulary.eos_ids[0]]
    tokens = np.array([prompt + completion])
    hidden, _ = hidden_states(policy.cfg, params, tokens, np.arange(tokens.shape[1])[None])
    logits = head_logits(policy.cfg, params, hidden, policy.vocabulary.num_tokens)
    logprobs = jax.nn.log_softmax(logits)[0, np.arange(tokens.shape[1] - 1), tokens[0, 1:]]
    return logprobs[len(prompt) - 1 :]


def test_the_loss_is_the_mean_over_completion_tokens(settings):
    """Over all rows at once, with micro-batches: every completion token counts the same, no prompt token does."""
    config = SFTConfig(**settings | {"shuffle_dataset": False, "micro_batch_size": 8, "mesh": "data=1"})
    policy = open_policy(config)
    rows = ROWS + ROWS[:2]
    tuner = FineTuner(config, policy, rows)
    params = load_trained(policy, 0)
    with jax.set_mesh(policy.mesh):
        wanted = -np.concatenate([log_probs(policy, params, row) for row in rows]).mean()
        _, metrics = tuner(tuner.start(), 0)
    assert metrics["nll"] == pytest.approx(wanted, rel=1e-5)
    assert metrics["loss"] == pytest.approx(wanted, rel=1e-5)
    assert metrics["perplexity"] == pytest.approx(np.exp(wanted), rel=1e-4)


def gradients(settings, rows, **changes):
    """Loss, gradients and metrics over `rows` as one batch."""
    defaults = {"shuffle_dataset": False, "mesh": "data=1", "max_length": 40}
    config = SFTConfig(**settings | defaults | changes)
    policy = open_policy(config)
    tuner = FineTuner(config, policy, rows)
    logprob_settings = LogprobSettings(num_tokens=policy.vocabulary.num_tokens, chunk=8, remat="full")
    with jax.set_mesh(policy.mesh):
        batch = tuner.batch(*tuner._on_devices(tuner.examples(0)))
        work = jax.jit(partial(accumulate, policy.cfg, SFT(), logprob_settings, 1))
        grads, metrics, _ = work(load_trained(policy, 0), batch)
    return jax.tree.map(np.asarray, grads), metrics, tuner.examples(0)


def test_packing_changes_neither_loss_nor_gradient(settings):
    """The same rows, six sequences or two: the same loss and gradient, up to rounding in float32."""
    apart, one, _ = gradients(settings, ROWS, rows_per_step=6)
    together, other, batch = gradients(settings, ROWS, rows_per_step=2, packing=True)
    assert batch.rows == 6
    assert batch.segments.max(axis=1).tolist() == [3, 3], "several rows in each"
    assert float(other["loss"]) == pytest.approx(float(one["loss"]), rel=1e-6)
    assert float(other["nll"]) == pytest.approx(float(one["nll"]), rel=1e-6)
    largest = max(np.abs(x).max() for x in jax.tree.leaves(apart))
    for mine, wanted in zip(jax.tree.leaves(together), jax.tree.leaves(apart), strict=True):
        np.testing.assert_allclose(mine, wanted, atol=2e-6 * largest)


@pytest.mark.parametrize("batching", [{"rows_per_step": 6}, {"rows_per_step": 2, "packing": True}])
def test_prompt_tokens_give_no_gradient(settings, batching):
    """The gradient is that of the completions' log-probs by hand: prompt tokens are not in the loss."""
    found, _, _ = gradients(settings, ROWS, **batching)
    policy = open_policy(SFTConfig(**settings | {"mesh": "data=1"}))

    def wanted(params):
        return -jnp.concatenate([log_probs(policy, params, row) for row in ROWS]).mean()

    with jax.set_mesh(policy.mesh):
        by_hand = jax.jit(jax.grad(wanted))(load_trained(policy, 0))
    largest = max(np.abs(x).max() for x in jax.tree.leaves(found))
    for mine, other in zip(jax.tree.leaves(found), jax.tree.leaves(by_hand), strict=True):
        np.testing.assert_allclose(mine, other, atol=5e-6 * largest)


def test_a_run_lowers_the_loss_and_exports_a_model(settings, tmp_path, capsys):
    assert run(settings, max_steps=12) == 0
    nll = [line["nll"] for line in lines(tmp_path / "run")]
    assert len(nll) == 12
    assert nll[-1] < 0.7 * nll[0]
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert (summary["steps"], summary["rows"], summary["rows_dropped"]) == (12, 6, 0)
    assert f"model: {tmp_path / 'run' / 'hf'}" in capsys.readouterr().out
    assert main(["generate", "--model", str(tmp_path / "run" / "hf"), "--prompt", "say ab"]) == 0


def test_a_resumed_run_ends_with_the_same_weights(settings, tmp_path):
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


HELD_OUT = [{"prompt": f"say {word}", "completion": word * 2} for word in ("xy", "yz", "za")]


@pytest.fixture
def with_held_out(settings, tmp_path):
    """Settings of a packed run with three held-out rows, fewer than a batch has."""
    (tmp_path / "held.jsonl").write_text("".join(json.dumps(row) + "\n" for row in HELD_OUT))
    return settings | {
        "eval_dataset": tmp_path / "held.jsonl",
        "eval_steps": 2,
        "eval_samples": 2,
        "max_completion_length": 8,
        "max_steps": 4,
        "packing": True,
        "max_length": 40,
    }


def test_held_out_perplexity_is_measured_and_samples_are_written(with_held_out, tmp_path, capsys):
    assert run(with_held_out) == 0
    policy = open_policy(
        SFTConfig(**with_held_out | {"eval_dataset": "x", "output_dir": None, "mesh": "data=1"})
    )
    with jax.set_mesh(policy.mesh):
        params = load_trained(policy, 0)
        wanted = -np.concatenate([log_probs(policy, params, row) for row in HELD_OUT]).mean()
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    assert summary["before"]["perplexity"] == pytest.approx(np.exp(wanted), rel=1e-4)
    assert (summary["before"]["rows"], summary["before"]["completion_tokens"]) == (3, 15)
    measured = [line.get("eval/perplexity") for line in lines(tmp_path / "run")]
    assert [value is not None for value in measured] == [False, True, False, True]
    assert measured[3] == summary["after"]["perplexity"]
    files = sorted((tmp_path / "run/samples").iterdir())
    assert [file.name for file in files] == [f"samples_{step:05d}.jsonl" for step in (0, 2, 4)]
    last = [json.loads(line) for line in files[-1].read_text().splitlines()]
    assert [sample["prompt"] for sample in last] == ["say xy", "say yz"]
    shown = capsys.readouterr()
    assert "step 2: held-out perplexity" in shown.err
    assert "Held-out samples, step 4" in shown.err
    assert last[0]["completion"][:4] in shown.err
    assert "% full)" in shown.out
    assert summary["fill_rate"] == 63 / 80


def test_a_resumed_packed_run_ends_with_the_same_weights_and_evaluations(with_held_out, tmp_path):
    folder, other = tmp_path / "run", tmp_path / "other"
    assert run(with_held_out) == 0
    shutil.copytree(folder, other)
    for name in ("checkpoints/4", "hf", "samples"):
        shutil.rmtree(other / name)
    assert run(with_held_out, output_dir=other) == 0
    assert weights(folder) == weights(other)
    ends = [json.loads((place / "summary.json").read_text()) for place in (folder, other)]
    assert [end["before"] for end in ends] == [ends[0]["before"]] * 2
    assert [end["after"] for end in ends] == [ends[0]["after"]] * 2
    assert (other / "samples/samples_00004.jsonl").read_text() == (
        folder / "samples/samples_00004.jsonl"
    ).read_text()


def test_an_epoch_goes_over_the_weighted_rows_of_all_data_sets(settings, tmp_path):
    """6 rows and, of the others, each twice: 12 rows, 8 a step, two passes: three steps."""
    more = tmp_path / "more.csv"
    more.write_text("question,reply\na,b\nc,d\ne,f\n")
    entry = {"dataset": str(more), "weight": 2, "prompt_column": "question", "completion_column": "reply"}
    settings = {name: value for name, value in settings.items() if name != "max_steps"}
    assert run(settings, extra_datasets=json.dumps([entry]), num_train_epochs=2) == 0
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    assert (summary["rows"], summary["steps"]) == (12, 3)


def test_held_out_rows_that_are_too_long_are_left_out_and_counted(with_held_out, settings, tmp_path, capsys):
    """The first row is too long to be measured and to be answered; the next two are."""
    long = {"prompt": "say " + "x" * 60, "completion": "xx"}
    (tmp_path / "held.jsonl").write_text("".join(json.dumps(row) + "\n" for row in [long, *HELD_OUT]))
    assert run(with_held_out, max_steps=1, eval_steps=0) == 0
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    assert (summary["after"]["rows"], summary["after"]["rows_dropped"]) == (3, 1)
    assert "over 3 rows, 1 too long, left out" in capsys.readouterr().err
    lines = (tmp_path / "run/samples/samples_00001.jsonl").read_text().splitlines()
    assert [json.loads(line)["prompt"] for line in lines] == ["say xy", "say yz"]


def test_rows_that_are_too_long_are_left_out_and_counted(settings, tmp_path, capsys):
    assert run(settings, max_length=11, max_steps=1) == 0
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["rows_dropped"] == 1
    assert "(1 too long, left out)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"model": "demo", "output_dir": "none"}, "output_dir = None: sft makes the model 'demo' there"),
        ({"completion_column": "answer"}, "no column 'answer' among prompt, completion"),
        ({"rows_per_step": 7}, "rows_per_step = 7 does not divide over the mesh's 8 row shards"),
        ({"micro_batch_size": 4}, "micro_batch_size = 4 does not divide over the mesh's 8 row shards"),
        ({"max_length": 4096}, "positions (max_position_embeddings); choose less"),
        ({"max_length": 3}, "max_length = 3: all 6 rows are longer"),
        ({"num_train_epochs": 2}, "num_train_epochs = 2.0: max_steps is 6 already"),
        ({"packing_strategy": "bfd"}, "packing_strategy = bfd: packing is off"),
        ({"packing_strategy": "wrapped"}, "packing_strategy = 'wrapped': must be 'ffd' or 'bfd'"),
        ({"eval_steps": 2}, "eval_steps = 2: no eval_dataset is given"),
        ({"extra_datasets": "[{data: x}]"}, "extra_datasets: no 'data' (did you mean 'dataset'?)"),
        ({"extra_datasets": "[{limit: 3}]"}, "names no dataset"),
        ({"extra_datasets": "[{dataset: x, weight: 0}]"}, "weight = 0: must be a number above 0"),
        ({"extra_datasets": "[{dataset: absent.jsonl}]"}, "no such file or folder"),
    ],
)
def test_bad_input_is_refused_and_leaves_no_folder(settings, tmp_path, capsys, changes, why):
    assert run(settings, **changes) == 2
    assert why in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
