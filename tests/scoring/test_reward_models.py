"""Reward models in runs: scores equal TRL's, in any batch and on any mesh; and what is refused."""

import functools
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
from grpo_jax.training.arguments import functions_of

TALK = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why?"}]
PROMPTS = ["Say a", "Say b: ", TALK, [TALK[1]], "Say c"]
ANSWERS = ["aaa", "", "Because of the longest of all reasons, which is this", "No.", "x<pad><pad>"]


@pytest.fixture(scope="module")
def opened(tiny_model, reward_model):
    """`opened(mesh, **settings)`: the reward model beside `tiny_model`, opened once for the same settings."""

    @functools.cache
    def make(mesh="data=1", tokenizers=None, **settings):
        config = EvalConfig(model=str(tiny_model), mesh=mesh, **settings)
        found = find_reward_models([f"model:{reward_model}"], tokenizers and list(tokenizers))
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


def test_scores_equal_trls(opened, reward_model):
    expected = by_trl(reward_model, PROMPTS, ANSWERS)
    verdicts = ask(opened(), PROMPTS, ANSWERS)
    np.testing.assert_allclose(verdicts.scores, expected, rtol=2e-5, atol=2e-5)
    assert verdicts.faults == {}
    assert np.ptp(expected) > 0.5


def test_a_score_depends_neither_on_the_batch_nor_on_the_mesh(opened):
    alone = opened()
    expected = [ask(alone, [p], [a]).scores[0] for p, a in zip(PROMPTS, ANSWERS)]
    many = opened("data=2,fsdp=2,tensor=2")
    found = ask(many, PROMPTS * 30, ANSWERS * 30).scores
    np.testing.assert_allclose(found, np.tile(expected, 30), rtol=2e-5, atol=2e-5)
    again = ask(many, PROMPTS * 30, ANSWERS * 30).scores
    assert (found == again).all()


def test_lengths_share_programs_in_powers_of_two(opened):
    model = opened(max_completion_length=64)  # its own
    for length in range(1, 60):
        ask(model, ["p"] * 3, ["a" * length, "a", "a" * (length // 2)])
    assert model.program.compilations == 3, "16, 32 and 64 tokens"


def test_the_system_prompt_and_prefill_of_the_settings_are_scored_too(opened, reward_model):
    whole = [{"role": "system", "content": "Think."}, TALK[1]]
    expected = by_trl(reward_model, [whole, whole], ["<think>No", "<think>Yes"])
    model = opened(system_prompt="Think.", prefill="<think>")
    found = ask(model, [[TALK[1]], TALK[1]["content"]], ["No", "Yes"])
    np.testing.assert_allclose(found.scores, expected, rtol=2e-5, atol=2e-5)


def test_a_given_tokenizer_replaces_the_models_own(opened, reward_model):
    other = hf.load_tokenizer(reward_model)
    other.chat_template = "{% for m in messages %}{{ m.content }};{% endfor %}"
    expected = by_trl(reward_model, ["Why?;Yes;"], [""])
    found = ask(opened(tokenizers=(other,)), [[TALK[1]]], ["Yes"])
    np.testing.assert_allclose(found.scores, expected, rtol=2e-5, atol=2e-5)


def test_a_row_beyond_the_models_positions_is_a_fault(opened):
    verdicts = ask(opened(), ["p", "p", "p"], ["a" * 255, "a" * 256, "a"])
    assert np.isnan(verdicts.scores).tolist() == [False, True, False]
    assert "prompt and completion are 257 tokens, and" in verdicts.faults[1]
    assert "has 256 positions" in verdicts.faults[1]


def test_a_score_that_is_not_finite_is_a_fault(opened):
    model = opened()
    kernel = model.params["score"]["kernel"]
    model.params["score"]["kernel"] = kernel * np.inf
    verdicts = ask(model, ["p"], ["a"])
    model.params["score"]["kernel"] = kernel
    assert np.isnan(verdicts.scores[0])
    assert " gave " in verdicts.faults[0]


def test_a_reward_model_is_named_after_its_folder(reward_model, monkeypatch):
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
def weighted(tiny_settings, reward_model, shared_programs):
    """A function, a model, and the model's weight."""
    return {
        "rewards": [tiny_settings["rewards"], f"model:{reward_model}"],
        "reward_weights": [1.0, 0.5],
        "max_steps": 3,
        "mesh": "data=1",
    }


@pytest.fixture(scope="module")
def trained(train, weighted):
    return train(**weighted)


def test_advantages_are_those_of_the_weighted_function_and_model(trained, reward_model):
    table = pq.read_table(trained / "completions" / "completions_00003.parquet").to_pydict()
    expected = by_trl(reward_model, table["prompt"], table["completion"])
    np.testing.assert_allclose(table["judge"], expected, rtol=2e-5, atol=2e-5)
    totals = (np.array(table["vowels"]) + 0.5 * np.array(table["judge"])).reshape(-1, 2)
    expected = (totals - totals.mean(1, keepdims=True)) / (totals.std(1, ddof=1, keepdims=True) + 1e-4)
    np.testing.assert_allclose(table["advantage"], expected.ravel(), rtol=1e-3, atol=1e-3)
    lines = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["rewards/judge/mean"] == pytest.approx(np.mean(table["judge"]), rel=1e-5)
    assert lines[-1]["rewards/judge/std"] > 0.1


def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(train, trained, weighted, tmp_path):
    """A run as it was when it died after step 2."""
    later = shutil.ignore_patterns("3", "hf", "summary.json", "*_00003.parquet")
    resumed = shutil.copytree(trained, tmp_path / "run", ignore=later)
    train(output_dir=str(resumed), **weighted)
    tensors = [open_folder(run / "hf") for run in (trained, resumed)]
    for name in tensors[0]:
        assert (tensors[0][name].open() == tensors[1][name].open()).all(), name
    tables = [pq.read_table(run / "completions" / "completions_00003.parquet") for run in (trained, resumed)]
    assert tables[0].equals(tables[1])


def test_a_reward_model_decides_on_success_only_where_there_is_no_function(trained, tiny_settings, weighted):
    """A score of a model has no 0 and no 1 that would mean failure and success."""
    for rewards, judge in ((weighted["rewards"][::-1], 1), (weighted["rewards"][1:], 0)):
        settings = tiny_settings | {"rewards": rewards, "output_dir": None}
        components = GRPOTrainer(settings["model"], args=GRPOConfig(**settings)).components
        assert (
            components.stages[0].scorer.success_functions(components.prompts.at([0, 1])).tolist()
            == [judge] * 2
        )


def test_the_plan_has_the_memory_and_the_passes_of_reward_models(tiny_settings, weighted, tmp_path, capsys):
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
    changes |= {"on_reward_error": "count"}
    run = train(**changes)
    (line,) = (run / "metrics.jsonl").read_text().splitlines()
    assert 0 < json.loads(line)["rewards/short/errors"] < 16
    assert "'short' had errors; the first: prompt and completion are" in capsys.readouterr().err
    table = pq.read_table(run / "completions" / "completions_00001.parquet").to_pydict()
    assert table["short"].count(None) == json.loads(line)["rewards/short/errors"]
    with pytest.raises(
        UserError, match=r"'short' failed: prompt and completion are [12]. tokens, .* 18 positions"
    ):
        train(**changes | {"on_reward_error": "stop"})


def test_eval_scores_completions_by_a_reward_model(tiny_settings, reward_model, tmp_path, options, capsys):
    settings = {
        "model": tiny_settings["model"],
        "task": tiny_settings["dataset"],
        "rewards": f"model:{reward_model}",
        "samples": 2,
        "greedy": False,
        "max_prompt_length": 32,
        "max_completion_length": 8,
        "output": tmp_path / "out.json",
        "mesh": "data=1",
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
def sampling_settings(tiny_settings):
    """Two samples of each of five prompts, four at a time: the second batch is filled up."""
    sizes = {"prompts_per_step": 4, "max_prompt_length": 32, "max_completion_length": 8, "mesh": "data=1"}
    return {"model": tiny_settings["model"], "samples": 2, "reward_workers": 1, **sizes}


def test_reject_keeps_each_score_under_the_name_of_its_reward(
    sampling_settings, tiny_settings, reward_model, options, asked, tmp_path
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
    assert main(["reject", *options(sampling_settings | given)]) == 0
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


def test_grading_asks_about_no_padding_rows(sampling_settings, reward_model, options, asked, tmp_path):
    rows, out = tmp_path / "rows.jsonl", tmp_path / "out.jsonl"
    rows.write_text("".join(json.dumps({"prompt": f"{i}: say a"}) + "\n" for i in range(5)))
    given = sampling_settings | {"rewards": f"model:{reward_model}"}
    assert main(["data", "grade", str(rows), str(out), *options(given)]) == 0
    assert asked == [8, 2]
    assert {json.loads(line)["pass_rate"] for line in out.read_text().splitlines()} <= {0, 0.5, 1}


def test_a_run_whose_reward_model_has_changed_is_refused(tiny_settings, reward_model, tmp_path):
    """A run that was trained by two reward models can be reproduced by neither."""
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
    """`refused(**settings)`: the error of `train`, which exits with code 2 after one or two lines."""
    monkeypatch.setattr("grpo_jax.setup.weights.hf.load_params", lambda *_: pytest.fail("weights were read"))

    def run(**settings):
        given = tiny_settings | {"output_dir": tmp_path / "run"} | settings
        assert main(["train", *options(given)]) == 2
        error = capsys.readouterr().err
        assert len(error.splitlines()) <= 2
        assert not (tmp_path / "run").exists()
        return error

    return run


def test_a_missing_reward_model_is_refused(refused):
    assert "rewards: model 'nowhere': no such folder" in refused(rewards="model:nowhere")


VERBS = [
    ["train", "--output_dir=run"],
    ["reject", "--output_dir=run"],
    ["eval", "--task=rows.jsonl"],
    ["data", "grade", "rows.jsonl", "out.jsonl"],
]


@pytest.mark.parametrize("verb", VERBS, ids=lambda verb: verb[-1] if verb[0] == "data" else verb[0])
def test_a_missing_reward_model_is_refused_before_the_policy_is_fetched(verb, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rows.jsonl").write_text(json.dumps({"prompt": "p"}) + "\n")
    dataset = [] if verb[0] in ("eval", "data") else ["--dataset=rows.jsonl"]
    assert main([*verb, *dataset, "--model=far/away", "--rewards=model:nowhere"]) == 2
    assert "rewards: model 'nowhere': no such folder" in capsys.readouterr().err
    assert [file.name for file in tmp_path.iterdir()] == ["rows.jsonl"]


def test_a_model_without_a_score_head_is_refused(refused, tiny_model):
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


def test_conversations_are_refused_if_the_reward_model_has_no_chat_template(
    refused, with_tokenizer, tmp_path
):
    """Also where the first row is a text."""
    judge = with_tokenizer(lambda tokenizer: setattr(tokenizer, "chat_template", None))
    settings = {"eval_prompts": 0, "max_prompt_length": 64}
    error = refused(rewards=judge, dataset=rows_in(tmp_path, "Why?", TALK), **settings)
    assert "changed: dataset, row 2: its tokenizer has no chat template" in error
    assert "save one with it (chat_template.jinja), or text prompts" in error


def test_a_conversation_that_the_chat_template_refuses_ends_the_run_early(refused, with_tokenizer, tmp_path):
    no_system = "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}a"
    judge = with_tokenizer(lambda tokenizer: setattr(tokenizer, "chat_template", no_system))
    settings = {"eval_prompts": 0, "max_prompt_length": 64}
    error = refused(rewards=judge, dataset=rows_in(tmp_path, TALK[1:], TALK[1:], TALK), **settings)
    assert "changed: dataset, row 3: prompt: the tokenizer's chat template refuses it: no system" in error


def rows_in(folder, *prompts):
    rows = folder / "rows.jsonl"
    rows.write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in prompts))
    return rows


def test_a_tokenizer_that_cannot_pad_is_refused(refused, with_tokenizer):
    def drop(tokenizer):
        tokenizer.pad_token = tokenizer.eos_token = None

    assert "the tokenizer has neither a pad_token nor an eos_token" in refused(rewards=with_tokenizer(drop))


def test_a_tokenizer_larger_than_the_model_is_refused(refused, with_tokenizer):
    judge = with_tokenizer(lambda tokenizer: tokenizer.add_tokens([f"<{i}>" for i in range(9)]))
    assert "the model's vocab_size is 104; use the tokenizer" in refused(rewards=judge)


TOKENIZERS = [
    (lambda t: [t], "1 of them, and 2 reward functions; give one for each"),
    (lambda t: [t, None], "a tokenizer for .*vowels.*, which is no reward model; give None"),
    (lambda t: [None, "Qwen"], "reward_processing_classes: 'Qwen' is no tokenizer"),
]


@pytest.mark.parametrize(("given", "said"), TOKENIZERS)
def test_a_list_of_tokenizers_that_does_not_fit_the_rewards_is_refused(
    given, said, tiny_settings, weighted, reward_model
):
    args = GRPOConfig(**tiny_settings | weighted | {"output_dir": None})
    given = given(hf.load_tokenizer(reward_model))
    with pytest.raises(UserError, match=said):
        GRPOTrainer(tiny_settings["model"], args=args, reward_processing_classes=given)


def test_each_reward_model_has_the_tokenizer_given_for_it(tiny_settings, weighted, reward_model):
    args = GRPOConfig(**tiny_settings | weighted | {"output_dir": None})
    given = [None, hf.load_tokenizer(reward_model)]
    made = GRPOTrainer(tiny_settings["model"], args=args, reward_processing_classes=given)
    assert made.components.stages[0].scorer.models[1].tokenizer is given[1]


def test_a_pytorch_model_is_refused(tiny_settings, reward_model):
    from transformers import AutoModelForSequenceClassification

    model = AutoModelForSequenceClassification.from_pretrained(reward_model)
    with pytest.raises(
        UserError, match=r"is a PyTorch model; save it by save_pretrained.folder.*'model:FOLDER'"
    ):
        GRPOTrainer(tiny_settings["model"], model, train_dataset=[{"prompt": "a"}])


def test_a_folder_or_hub_id_alone_is_a_reward_model(reward_model):
    """As TRL writes it. Names of functions stay as they are."""
    given = [str(reward_model), "owner/name", "gsm8k", "mine.py:score", "model:owner/name"]
    found = functions_of(GRPOConfig(), given)
    assert found == [f"model:{reward_model}", "model:owner/name", *given[2:]]
