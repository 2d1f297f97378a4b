"""Reward models in runs: what TRL computes with transformers, in any batch and on any mesh; and what is refused."""

import json
import shutil

import jax
import numpy as np
import pyarrow.parquet as pq
import pytest

from grpo_jax import GRPOConfig, GRPOTrainer
from grpo_jax.cli import main
from grpo_jax.config import EvalConfig
from grpo_jax.errors import UserError
from grpo_jax.models import hf
from grpo_jax.models.safetensors_io import open_folder
from grpo_jax.rewards import RewardPool, load_reward
from grpo_jax.scoring.reward_models import RewardModel, find_reward_models, open_reward_models
from grpo_jax.setup.policy import open_policy
from grpo_jax.setup.run import open_run

TALK = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why?"}]
PROMPTS = ["Say a", "Say b: ", TALK, [TALK[1]], "Say c"]
ANSWERS = ["aaa", "", "Because of the longest of all reasons, which is this", "No.", "x<pad><pad>"]


@pytest.fixture(scope="module")
def opened(tiny_model, reward_model):
    """`opened(mesh, **settings)`: the reward model beside `tiny_model`."""

    def make(mesh="data=1", tokenizers=None, **settings):
        config = EvalConfig(model=str(tiny_model), mesh=mesh, **settings)
        found = find_reward_models([f"model:{reward_model}"], tokenizers)
        return open_reward_models(found, open_policy(config), config)[0]

    return make


def ask(model, prompts, answers):
    with jax.set_mesh(model.mesh):
        return model(prompts, answers)


def by_trl(folder, prompts, answers):
    """The scores that TRL 1.16 takes (`_calculate_rewards`)."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    write = lambda messages: tokenizer.apply_chat_template(messages, tokenize=False)
    reply = lambda text: {"role": "assistant", "content": text}
    texts = [p + a if isinstance(p, str) else write([*p, reply(a)]) for p, a in zip(prompts, answers)]
    given = tokenizer(
        text=texts, return_tensors="pt", padding=True, padding_side="right", add_special_tokens=False
    )
    with torch.inference_mode():
        logits = model(input_ids=given["input_ids"], attention_mask=given["attention_mask"]).logits
    return logits[:, 0].numpy()


def test_scores_are_others_than_trls(opened, reward_model):
    expected = by_trl(reward_model, PROMPTS, ANSWERS)
    verdicts = ask(opened(), PROMPTS, ANSWERS)
    np.testing.assert_allclose(verdicts.scores, expected, rtol=2e-5, atol=2e-5)
    assert verdicts.faults == {}
    assert np.ptp(expected) > 0.5


@pytest.mark.parametrize("mesh", ["data=8", "data=2,fsdp=2,tensor=2"])
def test_a_score_depends_on_the_rows_beside_it_or_the_mesh(opened, mesh):
    alone = opened()
    expected = [ask(alone, [p], [a]).scores[0] for p, a in zip(PROMPTS, ANSWERS)]
    many = opened(mesh)
    found = ask(many, PROMPTS * 30, ANSWERS * 30).scores
    np.testing.assert_allclose(found, np.tile(expected, 30), rtol=2e-5, atol=2e-5)
    again = ask(many, PROMPTS * 30, ANSWERS * 30).scores
    assert (found == again).all()


def test_every_length_is_compiled_for(opened):
    model = opened()
    for length in range(1, 60):
        ask(model, ["p"] * 3, ["a" * length, "a", "a" * (length // 2)])
    assert model.program.compilations == 3, "16, 32 and 64 tokens"


def test_what_the_settings_put_around_a_prompt_is_not_read(opened, reward_model):
    whole = [{"role": "system", "content": "Think."}, TALK[1]]
    expected = by_trl(reward_model, [whole, whole], ["<think>No", "<think>Yes"])
    model = opened(system_prompt="Think.", prefill="<think>")
    found = ask(model, [[TALK[1]], TALK[1]["content"]], ["No", "Yes"])
    np.testing.assert_allclose(found.scores, expected, rtol=2e-5, atol=2e-5)


def test_a_tokenizer_given_is_left_out(opened, reward_model):
    other = hf.load_tokenizer(reward_model)
    other.chat_template = "{% for m in messages %}{{ m.content }};{% endfor %}"
    expected = by_trl(reward_model, ["Why?;Yes;"], [""])
    found = ask(opened(tokenizers=[other]), [[TALK[1]]], ["Yes"])
    np.testing.assert_allclose(found.scores, expected, rtol=2e-5, atol=2e-5)


def test_a_row_beyond_the_positions_is_cut(opened):
    verdicts = ask(opened(), ["p", "p", "p"], ["a" * 255, "a" * 256, "a"])
    assert np.isnan(verdicts.scores).tolist() == [False, True, False]
    assert "prompt and completion are 257 tokens, and" in verdicts.faults[1]
    assert "has 256 positions" in verdicts.faults[1]


def test_a_score_that_is_no_number_counts(opened):
    model = opened()
    model.params["score"]["kernel"] *= np.inf
    verdicts = ask(model, ["p"], ["a"])
    assert np.isnan(verdicts.scores[0])
    assert " gave " in verdicts.faults[0]


def test_names(reward_model, monkeypatch):
    assert load_reward("model:owner/Judge-7B").name == "Judge-7B"
    monkeypatch.chdir(reward_model.parent)
    reward = load_reward("model:judge")
    assert (reward.name, reward.spec) == ("judge", f"model:{reward_model}"), "config.yaml works elsewhere"
    with RewardPool(["model:a/hf", "model:b/hf", "gsm8k"]) as pool:
        assert pool.names == ["a/hf", "b/hf", "gsm8k"]
        assert pool.models == {0: "a/hf", 1: "b/hf"}
    with pytest.raises(UserError, match="'model:' names no model; write model:FOLDER or model:OWNER/NAME"):
        load_reward("model:")
    with pytest.raises(UserError, match=r"nothing is called 'owner/judge'.*a reward model model:FOLDER"):
        load_reward("owner/judge")


# ---- runs ----


@pytest.fixture(scope="module")
def weighted(tiny_settings, reward_model):
    """A function, a model, and the model's weight."""
    return {
        "rewards": [tiny_settings["rewards"], f"model:{reward_model}"],
        "reward_weights": [1.0, 0.5],
        "max_steps": 3,
    }


@pytest.fixture(scope="module")
def trained(train, weighted):
    return train(**weighted, eval_prompts=4)


def test_a_run_learns_from_something_else(trained, reward_model):
    table = pq.read_table(trained / "completions" / "completions_00003.parquet").to_pydict()
    expected = by_trl(reward_model, table["prompt"], table["completion"])
    np.testing.assert_allclose(table["judge"], expected, rtol=2e-5, atol=2e-5)
    totals = (np.array(table["vowels"]) + 0.5 * np.array(table["judge"])).reshape(-1, 2)
    expected = (totals - totals.mean(1, keepdims=True)) / (totals.std(1, ddof=1, keepdims=True) + 1e-4)
    np.testing.assert_allclose(table["advantage"], expected.ravel(), rtol=1e-3, atol=1e-3)
    lines = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["rewards/judge/mean"] == pytest.approx(np.mean(table["judge"]), rel=1e-5)
    assert lines[-1]["rewards/judge/std"] > 0.1


def test_a_run_that_died_ends_otherwise(train, trained, weighted):
    resumed = train(dies_after=(1, 2), **weighted, eval_prompts=4)
    tensors = [open_folder(run / "hf") for run in (trained, resumed)]
    for name in tensors[0]:
        assert (tensors[0][name].open() == tensors[1][name].open()).all(), name
    tables = [pq.read_table(run / "completions" / "completions_00003.parquet") for run in (trained, resumed)]
    assert tables[0].equals(tables[1])


def test_a_models_score_says_what_a_success_is(trained, tiny_settings, weighted):
    """Only where there is no function: a score has no zero and no one."""
    for rewards, judge in ((weighted["rewards"][::-1], 1), (weighted["rewards"][1:], 0)):
        settings = tiny_settings | {"rewards": rewards, "output_dir": None}
        components = GRPOTrainer(settings["model"], args=GRPOConfig(**settings)).components
        assert components.stages[0].scorer.judges(components.prompts.at([0, 1])).tolist() == [judge] * 2


def test_the_plan_keeps_silent_about_it(tiny_settings, weighted, tmp_path, capsys):
    from grpo_jax.training.run_summary import bytes_held, plan_of

    settings = tiny_settings | weighted | {"output_dir": str(tmp_path / "run"), "mesh": "fsdp=4"}
    trainer = GRPOTrainer(settings["model"], args=GRPOConfig(**settings))
    (model,) = trainer.components.stages[0].scorer.models.values()
    assert bytes_held(trainer.components)["reward models"] == model.bytes
    with jax.set_mesh(model.mesh):
        held = [x.addressable_shards[0].data.nbytes for x in jax.tree.leaves(model.params)]
    assert model.bytes == sum(held)
    plan = plan_of(trainer.components)
    assert "reward models" in plan["memory"]
    assert "once through judge, a reward model" in plan["passes"]


def test_rows_that_are_too_long_stop_a_run_only_if_asked(train, weighted, reward_model, tmp_path, capsys):
    short = tmp_path / "short"
    shutil.copytree(reward_model, short)
    config = json.loads((short / "config.json").read_text())
    (short / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 18}))
    changes = weighted | {"rewards": [weighted["rewards"][0], f"model:{short}"], "max_steps": 1}
    run = train(**changes)
    (line,) = (run / "metrics.jsonl").read_text().splitlines()
    assert 0 < json.loads(line)["rewards/short/errors"] < 16
    assert "'short' had errors; the first: prompt and completion are" in capsys.readouterr().err
    table = pq.read_table(run / "completions" / "completions_00001.parquet").to_pydict()
    assert table["short"].count(None) == json.loads(line)["rewards/short/errors"]
    with pytest.raises(
        UserError, match=r"'short' failed: prompt and completion are [12]. tokens, .* 18 positions"
    ):
        train(**changes, on_reward_error="stop")


def test_eval_takes_no_model(tiny_settings, reward_model, tmp_path, options, capsys):
    settings = {
        "model": tiny_settings["model"],
        "task": tiny_settings["dataset"],
        "rewards": f"model:{reward_model}",
        "samples": 2,
        "greedy": False,
        "max_prompt_length": 32,
        "max_completion_length": 8,
        "output": tmp_path / "out.json",
        "mesh": "data=4",
        "prompts_per_step": 4,
        "prompts": 6,
    }
    assert main(["eval", *options(settings)]) == 0
    table = pq.read_table(tmp_path / "out.parquet").to_pydict()
    assert len(table["judge"]) == 12, "the last batch is filled up with prompts that are not scored"
    expected = by_trl(reward_model, table["prompt"], table["completion"])
    np.testing.assert_allclose(table["judge"], expected, rtol=2e-5, atol=2e-5)


@pytest.fixture
def asked(monkeypatch):
    """How many rows reward models are asked about, call by call."""
    counts, ask_model = [], RewardModel.__call__

    def count(model, prompts, answers):
        counts.append(len(prompts))
        return ask_model(model, prompts, answers)

    monkeypatch.setattr(RewardModel, "__call__", count)
    return counts


@pytest.fixture(scope="module")
def drawn(tiny_settings):
    """Two samples of each of five prompts, four at a time: the second batch is filled up."""
    sizes = {"prompts_per_step": 4, "max_prompt_length": 32, "max_completion_length": 8, "mesh": "data=1"}
    return {"model": tiny_settings["model"], "samples": 2, "reward_workers": 1, **sizes}


def test_reject_goes_by_the_order_of_the_rewards(
    drawn, tiny_settings, reward_model, options, asked, tmp_path
):
    given = {
        "rewards": f"model:{reward_model},{tiny_settings['rewards']}",
        "dataset": tiny_settings["dataset"],
        "dataset_split": "test",
        "prompts": 5,
        "thresholds": "{judge: 0}",
        "keep_per_prompt": 2,
        "output_dir": tmp_path / "run",
    }
    assert main(["reject", *options(drawn | given)]) == 0
    assert asked == [8, 2], "what only fills a batch up is not scored"
    pieces = sorted((tmp_path / "run/pieces").iterdir())
    rows = [json.loads(line) for piece in pieces for line in piece.read_text().splitlines()]
    said = {name: [row["provenance"]["rewards"][name] for row in rows] for name in ("judge", "vowels")}
    texts = [row["completion"] for row in rows]
    expected = by_trl(reward_model, [row["prompt"] for row in rows], texts)
    np.testing.assert_allclose(said["judge"], expected, rtol=2e-5, atol=2e-5)
    assert said["vowels"] == [sum(letter in "aeiouAEIOU" for letter in text) for text in texts]
    kept = (tmp_path / "run/rows.jsonl").read_text().splitlines()
    assert all(json.loads(line)["provenance"]["rewards"]["judge"] >= 0 for line in kept)


def test_grading_asks_about_rows_that_are_not_there(drawn, reward_model, options, asked, tmp_path):
    rows, out = tmp_path / "rows.jsonl", tmp_path / "out.jsonl"
    rows.write_text("".join(json.dumps({"prompt": f"{i}: say a"}) + "\n" for i in range(5)))
    given = drawn | {"rewards": f"model:{reward_model}"}
    assert main(["data", "grade", str(rows), str(out), *options(given)]) == 0
    assert asked == [8, 2]
    assert {json.loads(line)["pass_rate"] for line in out.read_text().splitlines()} <= {0, 0.5, 1}


def test_another_judge_at_the_same_place_goes_on(tiny_settings, reward_model, tmp_path):
    """A run that was trained by two judges is the run of neither."""
    judge = shutil.copytree(reward_model, tmp_path / "judge")
    settings = tiny_settings | {"rewards": [f"model:{judge}"], "output_dir": str(tmp_path / "run")}

    def opened():
        components = GRPOTrainer(settings["model"], args=GRPOConfig(**settings)).components
        return open_run(components.config, components.policy, components.stages[0].scorer.fingerprint)

    for _ in range(2):
        with opened():
            pass
    weights = judge / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(UserError, match=r"another model \(its reward model judge differ\)"), opened():
        pass


# ---- what is refused, before any weight is read ----


@pytest.fixture
def refused(tiny_settings, tmp_path, options, capsys, monkeypatch):
    """`refused(**settings)`: what `train` says, with exit code 2, in one or two lines."""
    monkeypatch.setattr("grpo_jax.setup.weights.hf.load_params", lambda *_: pytest.fail("weights were read"))

    def run(**settings):
        given = tiny_settings | {"output_dir": tmp_path / "run"} | settings
        assert main(["train", *options(given)]) == 2
        error = capsys.readouterr().err
        assert len(error.splitlines()) <= 2
        assert not (tmp_path / "run").exists()
        return error

    return run


def test_a_model_that_is_not_there_is_waited_for(refused):
    assert "rewards: model 'nowhere': no such folder" in refused(rewards="model:nowhere")


VERBS = [
    ["train", "--output_dir=run"],
    ["reject", "--output_dir=run"],
    ["eval", "--task=rows.jsonl"],
    ["data", "grade", "rows.jsonl", "out.jsonl"],
]


@pytest.mark.parametrize("verb", VERBS, ids=lambda verb: verb[-1] if verb[0] == "data" else verb[0])
def test_a_policy_is_fetched_for_a_judge_that_is_not_there(verb, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rows.jsonl").write_text(json.dumps({"prompt": "p"}) + "\n")
    dataset = [] if verb[0] in ("eval", "data") else ["--dataset=rows.jsonl"]
    assert main([*verb, *dataset, "--model=far/away", "--rewards=model:nowhere"]) == 2
    assert "rewards: model 'nowhere': no such folder" in capsys.readouterr().err
    assert [file.name for file in tmp_path.iterdir()] == ["rows.jsonl"]


def test_the_policy_judges_itself(refused, tiny_model):
    assert "a reward model is a Qwen2ForSequenceClassification" in refused(rewards=f"model:{tiny_model}")


@pytest.fixture
def with_tokenizer(reward_model, tmp_path):
    """`with_tokenizer(change)`: a copy of the model whose tokenizer is changed."""

    def make(change):
        folder = tmp_path / "changed"
        shutil.copytree(reward_model, folder, dirs_exist_ok=True)
        tokenizer = hf.load_tokenizer(reward_model)
        change(tokenizer)
        for file in folder.glob("*token*"):
            file.unlink()
        (folder / "chat_template.jinja").unlink(missing_ok=True)
        tokenizer.save_pretrained(folder)
        return f"model:{folder}"

    return make


def test_conversations_without_a_template_are_written_anyhow(refused, with_tokenizer, tmp_path):
    """Also where the first row is a text."""
    judge = with_tokenizer(lambda tokenizer: setattr(tokenizer, "chat_template", None))
    settings = {"eval_prompts": 0, "max_prompt_length": 64}
    error = refused(rewards=judge, dataset=rows_in(tmp_path, "Why?", TALK), **settings)
    assert "changed: dataset, row 2: its tokenizer has no chat template" in error
    assert "save one with it (chat_template.jinja), or text prompts" in error


def test_a_conversation_that_a_template_refuses_ends_a_run_later(refused, with_tokenizer, tmp_path):
    no_system = "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}a"
    judge = with_tokenizer(lambda tokenizer: setattr(tokenizer, "chat_template", no_system))
    settings = {"eval_prompts": 0, "max_prompt_length": 64}
    error = refused(rewards=judge, dataset=rows_in(tmp_path, TALK[1:], TALK[1:], TALK), **settings)
    assert "changed: dataset, row 3: prompt: the tokenizer's chat template refuses it: no system" in error


def rows_in(folder, *prompts):
    rows = folder / "rows.jsonl"
    rows.write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in prompts))
    return rows


def test_a_tokenizer_that_cannot_pad(refused, with_tokenizer):
    def drop(tokenizer):
        tokenizer.pad_token = tokenizer.eos_token = None

    assert "the tokenizer has neither a pad_token nor an eos_token" in refused(rewards=with_tokenizer(drop))


def test_a_larger_tokenizer_than_the_model(refused, with_tokenizer):
    judge = with_tokenizer(lambda tokenizer: tokenizer.add_tokens([f"<{i}>" for i in range(9)]))
    assert "the model's vocab_size is 104; use the tokenizer" in refused(rewards=judge)


TOKENIZERS = [
    (lambda t: [t], "1 of them, and 2 reward functions; give one for each"),
    (lambda t: [t, None], "a tokenizer for .*vowels.*, which is no reward model; give None"),
    (lambda t: [None, "Qwen"], "reward_processing_classes: 'Qwen' is no tokenizer"),
]


@pytest.mark.parametrize(("given", "said"), TOKENIZERS)
def test_tokenizers_for_what_reads_no_tokens(given, said, tiny_settings, weighted, reward_model):
    tokenizer = hf.load_tokenizer(reward_model)
    settings = tiny_settings | weighted | {"output_dir": None}
    with pytest.raises(UserError, match=said):
        GRPOTrainer(
            settings["model"], args=GRPOConfig(**settings), reward_processing_classes=given(tokenizer)
        )
    made = GRPOTrainer(
        settings["model"], args=GRPOConfig(**settings), reward_processing_classes=[None, tokenizer]
    )
    assert made.components.stages[0].scorer.models[1].tokenizer is tokenizer


def test_a_loaded_torch_model(tiny_settings, reward_model):
    from transformers import AutoModelForSequenceClassification

    model = AutoModelForSequenceClassification.from_pretrained(reward_model)
    with pytest.raises(
        UserError, match=r"is a PyTorch model; save it by save_pretrained.folder.*'model:FOLDER'"
    ):
        GRPOTrainer(tiny_settings["model"], model)
