"""Every recipe's small form runs to its end, and its own rule takes effect.

All start from one tiny model that was taught the tiny tasks for some steps: enough for rewards that differ.
"""

import json
import pathlib

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml

from grpo_jax import recipes
from grpo_jax.cli import main
from grpo_jax.config import GRPOConfig, load_settings
from grpo_jax.learner import batches

pytestmark = pytest.mark.usefixtures("shared_programs")

ONE = "data=1,fsdp=1,tensor=1"
FEW = {"prompts_per_step": 8, "num_generations": 8, "max_completion_length": 48, "max_prompt_length": 32}
"""Less than most small forms have, and equal, so that recipes share the compiled sampler."""
START = pathlib.Path(__file__).parent / "taught_model"  # by teach_model.py


class Ended:
    """A run that has ended, from its folder."""

    def __init__(self, folder):
        self.folder = folder
        self.config = yaml.safe_load((folder / "config.yaml").read_text())
        self.lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]

    def column(self, name):
        return [line.get(name) for line in self.lines]

    def rows(self):
        """Of all steps, one after another."""
        files = sorted((self.folder / "completions").iterdir())
        return [row for file in files for row in pq.read_table(file).to_pylist()]

    def totals(self, *names):
        """What the rewards of `names` add up to, for each completion."""
        return {round(sum(row[name] for name in names), 4) for row in self.rows()}

    def groups(self):
        """Rows by step and prompt."""
        G, rows = self.config["num_generations"], self.rows()
        return [rows[i : i + G] for i in range(0, len(rows), G)]


@pytest.fixture
def run(tmp_path):
    """`run(name, **changes)` the small form of a recipe, for fewer steps than it says."""

    def go(name, verb="train", **changes):
        given = {"output_dir": tmp_path / name, "model": START, "save_steps": 0, "mesh": ONE} | changes
        if verb == "train":
            given = FEW | {"eval_prompts": 0, "log_completions_steps": 1} | given
        words = [word for key, value in given.items() for word in (f"--{key}", str(value))]
        assert main([verb, name, "--tiny", *words]) == 0
        return Ended(tmp_path / name)

    return go


def tested():
    """The recipes that a test here runs."""
    return {name.removeprefix("test_").split("__")[0].replace("_", "-") for name in globals() if "__" in name}


def test_every_recipe_is_run_by_a_test():
    elsewhere = {"demo", "r1", "gsm8k"}  # test_demo.py, test_pipeline.py; one without a small form
    assert set(recipes.names()) - elsewhere == tested() - {""}


def test_simple_grpo__has_four_reward_totals_and_a_reference(run):
    ended = run("simple-grpo", max_steps=3)
    assert ended.totals("simple_grpo_correct", "simple_grpo_format") <= {2.25, 0.25, 0.0, -2.0}
    assert len(ended.totals("simple_grpo_correct", "simple_grpo_format")) > 1
    assert ended.column("kl")[0] == 0 < ended.column("kl")[2], "the distance from the start"
    assert (ended.config["beta"], ended.config["num_generations"]) == (0.04, 8)
    for group in ended.groups():
        rewards = np.array([row["simple_grpo_correct"] + row["simple_grpo_format"] for row in group])
        assert np.ptp(rewards) > 0, "groups without spread are skipped"
        wanted = (rewards - rewards.mean()) / (rewards.std(ddof=1) + 1e-4)
        np.testing.assert_allclose([row["advantage"] for row in group], wanted, atol=1e-4)


def test_tinyzero__gives_a_tenth_for_the_answer_tag(run):
    ended = run("tinyzero", max_steps=2)
    assert {0.1, 1.0} <= ended.totals("tinyzero") <= {0.0, 0.1, 1.0}


@pytest.fixture
def update_batches(monkeypatch):
    """The rows that updates are made of, batch by batch."""
    seen, make = [], batches._rows
    monkeypatch.setattr(batches, "_rows", lambda *given: seen.append(make(*given)) or seen[-1])
    return seen


def test_reinforce_lite__learns_from_the_first_of_ten_completions(run, update_batches):
    ended = run("reinforce-lite", max_steps=2, num_generations=10, micro_batch_size=8)
    assert ended.totals("reinforce_lite") == {1.0, -1.0}
    for group in ended.groups():
        assert len(group) == 10
        first, others = group[0]["reinforce_lite"], [row["reinforce_lite"] for row in group[1:]]
        wanted = np.clip((first - np.mean(others)) / (np.std(others, ddof=1) + 1e-4), -2, 2)
        assert group[0]["advantage"] == pytest.approx(wanted, abs=1e-3)
    assert "kl" not in ended.lines[0]
    firsts = {tuple(group[0]["token_ids"]) for group in ended.groups()}
    trained = [
        tuple(row[: int(mask.sum())])
        for batch in update_batches
        for row, mask in zip(batch.tokens, batch.mask)
    ]
    assert len(trained) == 2 * 8
    assert set(trained) <= firsts


def test_srpo__mixes_in_the_other_domain_and_leaves_out_solved_prompts(run):
    stages = "[{mixture: {math: 1}, until_plateau: 9, window: 1}, {}]"
    data = '{math: "tiny_math:levels=1,size=8", code: "tiny_countdown:size=8"}'
    ended = run("srpo", max_steps=5, curriculum=stages, dataset=data, num_generations=2)
    assert ended.column("curriculum/stage") == [1, 1, 2, 2, 2]
    assert ended.column("domains/code/share") == [None, None, 0.5, 0.5, 0.5]
    asked = [(row["countdown"] is None, row["boxed_math"] is None) for row in ended.rows()]
    assert set(asked) == {(True, False), (False, True)}
    assert max(ended.column("curriculum/left_out")) > 0
    assert ended.column("reflection/any") != [None] * 5


def test_dapo__trains_only_on_groups_whose_rewards_differ(run, update_batches):
    ended = run("dapo", max_steps=2, max_completion_length=14)  # many are longer
    assert ended.column("dynamic_sampling/rollouts") != [None] * 2
    short = ended.column("dynamic_sampling/groups_short")
    spread = [len({row["boxed_math"] for row in group}) > 1 for group in ended.groups()]
    assert spread.count(False) == sum(short)
    assert (ended.config["epsilon"], ended.config["epsilon_high"], ended.config["beta"]) == (0.2, 0.28, 0.0)
    assert min(ended.column("rewards/overlong/mean")) < 0
    rows = [row for group in ended.groups() for row in group]
    cut = [row["truncated"] for row in rows]
    assert any(cut)
    empty = [not mask.any() for batch in update_batches for mask in batch.mask]
    assert sum(empty) == sum(cut), "truncated completions are masked out"


def test_dr_grpo__divides_advantages_by_no_standard_deviation(run):
    ended = run("dr-grpo", max_steps=2)
    for group in ended.groups():
        rewards = np.array([row["boxed_math"] for row in group])
        np.testing.assert_allclose([row["advantage"] for row in group], rewards - rewards.mean(), atol=1e-6)
    assert any(row["advantage"] for row in ended.rows())
    assert ended.config["loss_type"] == "dr_grpo"


def test_gspo__clips_whole_completions_within_ten_thousandths(run):
    ended = run("gspo", max_steps=3)
    assert ended.config["importance_sampling_level"] == "sequence"
    assert max(ended.column("clip_ratio/region_mean")) > 0.2, (
        "hardly any ratio would leave the clip range of tokens"
    )


def test_deepscaler__lengthens_its_context_twice(run):
    stages = (
        "[{until_step: 1, max_completion_length: 24, num_generations: 4},"
        " {until_step: 2, max_completion_length: 48, num_generations: 8},"
        " {max_completion_length: 72, num_generations: 8}]"
    )
    ended = run("deepscaler", max_steps=3, curriculum=stages)
    assert ended.column("curriculum/stage") == [1, 2, 3]
    assert ended.column("compilations/update") == [1, 2, 3]
    assert ended.column("completions/max_length")[0] <= 24
    assert [len(load_settings(GRPOConfig, "deepscaler", tiny=tiny).curriculum) for tiny in (False, True)] == [
        3,
        3,
    ]


def test_qlora_long__trains_adapters_beside_four_bit_weights(run):
    ended = run("qlora-long", max_steps=2)
    assert (ended.config["base_weights"], ended.config["share_prompts"]) == ("nf4", True)
    adapter = json.loads((ended.folder / "adapter" / "adapter_config.json").read_text())
    assert adapter["r"] == 8
    assert ended.column("kl")[0] == pytest.approx(0, abs=1e-5), "the base is the reference"
    assert (ended.folder / "adapter" / "adapter_model.safetensors").exists()
    assert (ended.folder / "checkpoints" / "2").exists()
    assert [load_settings(GRPOConfig, "qlora-long").gradient_checkpointing] == ["offload"]


def test_open_r1__adds_weighted_rewards(run):
    ended = run("open-r1", max_steps=2)
    names = [name.partition(":")[0] for name in ended.config["rewards"]]
    assert len(names) == 6
    weights = np.array(ended.config["reward_weights"])
    for group in ended.groups():
        total = np.array([[row[name] for name in names] for row in group], float) @ weights
        wanted = (total - total.mean()) / (total.std(ddof=1) + 1e-4)
        np.testing.assert_allclose([row["advantage"] for row in group], wanted, atol=2e-3)
    assert any(row["advantage"] for row in ended.rows())


def test_mini_r1__writes_samples_and_scores_the_equation(run):
    ended = run("mini-r1", max_steps=3)
    assert ended.totals("mini_r1_equation", "mini_r1_format") == {0.0, 1.0, 2.0}
    assert (ended.folder / "completion_samples.txt").read_text().count("==== step") > 0
    assert (ended.folder / "success_completion_samples.txt").read_text().count("==== step") > 0
    assert all(row["prompt"].endswith("<think>") for row in ended.rows())
    assert load_settings(GRPOConfig, "mini-r1").prefill.endswith("<think>")


def test_logic_rl__moves_on_to_puzzles_with_more_people(run):
    ended = run("logic-rl", max_steps=3, dataset="tiny_knights:people=2-3,size=24", max_completion_length=80)
    assert {3.0, -0.5} < ended.totals("logic_rl") <= {3.0, -0.5, -1.0, -3.0}
    assert ended.column("curriculum/stage") == [1, 1, 2]
    people = [
        {row["prompt"].count("says:") for row in ended.rows() if row["step"] == step} for step in (1, 3)
    ]
    assert people == [{2}, {3}]


def test_distill__packs_traces(run):
    ended = run("distill", verb="sft", dataset="tiny_countdown_traces:size=160", num_train_epochs=2)
    assert min(ended.column("fill_rate")) > 0.85
    summary = json.loads((ended.folder / "summary.json").read_text())
    assert summary["after"]["perplexity"] < summary["before"]["perplexity"]


def test_limo__trains_on_few_rows_for_fifteen_epochs(run):
    ended = run("limo", verb="sft", dataset="tiny_countdown_traces:size=16")
    assert len(ended.lines) == 15 * 16 // 16
    assert ended.column("learning_rate")[-1] < ended.column("learning_rate")[0] / 50, "a cosine"


def test_r1_zero__adds_weighted_rule_based_rewards(run):
    ended = run("r1-zero", max_steps=2)
    assert ended.config["rewards"] == ["simple_grpo_correct", "think_answer_format"]
    for group in ended.groups():
        rewards = np.array([row["simple_grpo_correct"] + 0.5 * row["think_answer_format"] for row in group])
        wanted = (rewards - rewards.mean()) / (rewards.std(ddof=1) + 1e-4)
        np.testing.assert_allclose([row["advantage"] for row in group], wanted, atol=1e-4)
    assert any(row["advantage"] for row in ended.rows())
    assert ended.column("reflection/none")[0] is not None
