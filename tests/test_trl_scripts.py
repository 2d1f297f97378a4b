"""Scripts written for TRL, run here with one change: the name of the imported package.

Each is one of the uses that TRL's documentation of its GRPO trainer describes, small enough for a test. They get
`model`, a folder, and `sizes`, settings that keep the run small, from outside.
"""

import json
import pathlib
import re
import subprocess
import sys

import numpy as np
import pyarrow.parquet as pq
import pytest

pytestmark = pytest.mark.usefixtures("shared_programs")

ROOT = pathlib.Path(__file__).resolve().parents[1]
SIZES = {
    "max_steps": 2,
    "num_generations": 2,
    "max_completion_length": 8,
    "log_completions_steps": 1,
    "learning_rate": 1e-2,
    "lr_scheduler_type": "constant",
    "mesh": "data=1",
}


def ported(script):
    """The script with the package's name changed, and nothing else."""
    text = re.sub(r"^from trl(\.rewards)? import", r"from grpo_jax\1 import", script, flags=re.MULTILINE)
    assert text != script
    return text


@pytest.fixture(scope="module")
def run(tiny_model, tmp_path_factory):
    """`run(script, **names)`: (its variables, the lines of metrics, the saved completions of all steps)."""

    def go(script, **names):
        home = tmp_path_factory.mktemp("script")
        names = {"__name__": "__main__", "model": str(tiny_model), "sizes": SIZES, **names}
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(home)
            exec(ported(script), names)
        files = sorted((home / "out" / "completions").glob("*.parquet"))
        return names, metrics_of(home / "out"), [pq.read_table(file).to_pydict() for file in files]

    return go


def metrics_of(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


# ---- the quick start, as `python script.py` ----

QUICK_START = """
from datasets import Dataset
from trl import GRPOConfig, GRPOTrainer

WISH = 20


def reward_len(completions, **kwargs):
    return [-abs(WISH - len(completion)) for completion in completions]


dataset = Dataset.from_list([{"prompt": f"{i}: say a"} for i in range(32)])
training_args = GRPOConfig(
    output_dir="out",
    num_train_epochs=0.5,
    num_generations=2,
    max_completion_length=8,
    learning_rate=1e-2,
    lr_scheduler_type="constant",
    gradient_accumulation_steps=1,
    optim="adamw_torch",
    weight_decay=0.01,
    max_grad_norm=0.5,
    warmup_steps=0,
    bf16=False,
    gradient_checkpointing=True,
    beta=0.0,
    epsilon=0.2,
    loss_type="dapo",
    scale_rewards="group",
    temperature=1.0,
    top_p=1.0,
    use_vllm=False,
    remove_unused_columns=False,
    logging_steps=1,
    log_completions=True,
    report_to="none",
    save_strategy="steps",
    save_steps=1,
    save_total_limit=1,
    push_to_hub=False,
    seed=42,
)
trainer = GRPOTrainer(model=MODEL, reward_funcs=reward_len, args=training_args, train_dataset=dataset)
trainer.train()
"""


@pytest.fixture(scope="module")
def started(tiny_model, tmp_path_factory, process_environment):
    """(folder, the process) of the quick start, run from an empty folder of its own."""
    home = tmp_path_factory.mktemp("quick start")
    (home / "train.py").write_text(ported(QUICK_START.replace("MODEL", repr(str(tiny_model)))))
    environment = process_environment(COLUMNS="80")
    words = [sys.executable, "train.py"]
    return home, subprocess.run(words, cwd=home, env=environment, capture_output=True, text=True)


def test_the_quick_start_runs_as_a_script(started):
    home, process = started
    assert process.returncode == 0, process.stderr
    assert [row["step"] for row in metrics_of(home / "out")] == [1, 2, 3, 4], (
        "half of 32 prompts, 8 rows in pairs"
    )
    assert "model: out/hf" in process.stdout
    assert {path.name for path in home.iterdir()} == {"train.py", "out"}


def test_functions_of_the_script_score_with_the_constants_that_they_read(started):
    home, _ = started
    for row in metrics_of(home / "out"):
        assert -20 <= row["rewards/reward_len/mean"] == row["reward"] <= -12


def test_settings_that_mean_the_same_as_in_trl_bring_no_message(started):
    """Every setting of the quick start means here what it means in TRL, so stderr shows the progress and a first
    sample only."""
    lines = started[1].stderr.splitlines()
    assert [line for line in lines if not line.startswith(("step ", *"╭│╰"))] == []


# ---- conversations, reference answers, TRL's ready rewards ----

CONVERSATIONS = """
import re
from datasets import Dataset
from trl import GRPOConfig, GRPOTrainer
from trl.rewards import accuracy_reward, think_format_reward

rows = [
    {"prompt": [{"role": "user", "content": f"{i}: say {letter}"}], "ground_truth": letter, "solution": "$1/2$"}
    for i, letter in enumerate("aeiou" * 4)
]


def format_reward(completions, **kwargs):
    contents = [completion[0]["content"] for completion in completions]
    return [1.0 if re.match(r"[a-zA-Z]", content) else 0.0 for content in contents]


seen = []


def reward_func(prompts, completions, ground_truth, **kwargs):
    seen.append(completions)
    assert all(prompt[-1]["content"].endswith(truth) for prompt, truth in zip(prompts, ground_truth))
    contents = [completion[0]["content"] for completion in completions]
    return [float(truth in content) for content, truth in zip(contents, ground_truth)]


trainer = GRPOTrainer(
    model=model,
    reward_funcs=[format_reward, reward_func, accuracy_reward, think_format_reward],
    args=GRPOConfig(output_dir="out", eval_strategy="steps", eval_steps=1, **sizes),
    train_dataset=Dataset.from_list(rows[:16]),
    eval_dataset=Dataset.from_list(rows[16:]),
)
summary = trainer.train()
"""


@pytest.fixture(scope="module")
def conversations(run):
    return run(CONVERSATIONS)


def test_the_reward_of_a_conversation_is_given_messages(conversations):
    _, rows, tables = conversations
    for row, table in zip(rows, tables):
        assert not [name for name in row if name.endswith("/errors")]
        starts = [bool(re.match(r"[a-zA-Z]", text)) for text in table["completion"]]
        assert table["format_reward"] == list(map(float, starts))
        truths = [re.search("say (.)", text)[1] for text in table["prompt"]]
        assert table["reward_func"] == [float(t in c) for t, c in zip(truths, table["completion"])]
    assert any(sum(table["format_reward"]) for table in tables), (
        "a reward that is always 0 would prove nothing"
    )


def test_what_a_reward_stores_is_there_for_the_script(conversations):
    """Each call has all completions of a rollout, as in TRL."""
    names, _, tables = conversations
    stored = [[completion[0]["content"] for completion in completions] for completions in names["seen"]]
    for table in tables:
        assert table["completion"] in stored


def test_the_rewards_that_come_with_trl_can_be_imported(conversations):
    for table in conversations[2]:
        assert set(table["think_format_reward"]) == {0.0}
        assert set(table["accuracy_reward"]) == {0.0}


def test_held_out_conversations_are_evaluated(conversations):
    names, rows, _ = conversations
    assert names["summary"]["before"]["prompts"] == names["summary"]["after"]["prompts"] == 4
    assert "eval/reward" in rows[0]


# ---- several tasks, logs, async functions, the trainer's state ----

EVERYTHING = """
import asyncio
from datasets import Dataset
from transformers import AutoTokenizer, PrinterCallback, TrainerCallback
from trl import GRPOConfig, GRPOTrainer

dataset = Dataset.from_list(
    [{"prompt": f"{i}: say a", "task": "vowels" if i % 2 else "length"} for i in range(16)]
)


def vowel_reward(prompts, completions, task, **kwargs):
    return [
        float(sum(c in "aeiou" for c in text)) if kind == "vowels" else None for text, kind in zip(completions, task)
    ]


def token_reward(completion_ids, task, **kwargs):
    return [len(ids) / 8 if kind == "length" else None for ids, kind in zip(completion_ids, task)]


async def slow_reward(prompts, completions, **kwargs):
    async def judge(text):
        await asyncio.sleep(0.01)
        return float(sum(letter.islower() for letter in text))

    return await asyncio.gather(*[judge(text) for text in completions])


def clock_reward(completions, trainer_state=None, log_extra=None, log_metric=None, **kwargs):
    upper = [sum(c.isupper() for c in text) for text in completions]
    if log_extra:
        log_extra("upper", upper)
    if log_metric:
        log_metric("upper_share", sum(upper) / 8 / len(upper))
    return [float(trainer_state.global_step)] * len(completions)


class Remember(TrainerCallback):
    def __init__(self):
        self.seen = []

    def on_log(self, args, state, control, logs=None, **kwargs):
        if "reward" in logs:
            self.seen.append((state.global_step, logs["reward"]))


remember = Remember()
trainer = GRPOTrainer(
    model=model,
    reward_funcs=[vowel_reward, token_reward, slow_reward, clock_reward],
    args=GRPOConfig(output_dir="out", reward_weights=[1.0, 0.5, 2.0, 0.0], **sizes),
    train_dataset=dataset,
    processing_class=AutoTokenizer.from_pretrained(model),
    callbacks=[remember, PrinterCallback()],
    optimizers=(optimizer, None),
)
trainer.train()
"""
WEIGHTS = {"vowel_reward": 1.0, "token_reward": 0.5, "slow_reward": 2.0, "clock_reward": 0.0}


@pytest.fixture(scope="module")
def everything(run):
    import optax

    return run(EVERYTHING, optimizer=optax.sgd(0.1))


def test_a_reward_of_none_has_no_part_in_the_sum(everything):
    _, rows, tables = everything
    for row, table in zip(rows, tables):
        odd = [int(text.split(":")[0]) % 2 == 1 for text in table["prompt"]]
        assert [value is not None for value in table["vowel_reward"]] == odd
        assert [value is None for value in table["token_reward"]] == odd
        assert 0 < sum(odd) < len(odd)
        parts = [[weight * (value or 0.0) for value in table[name]] for name, weight in WEIGHTS.items()]
        assert row["reward"] == pytest.approx(np.sum(parts, axis=0).mean())
        known = [value for value in table["vowel_reward"] if value is not None]
        assert row["rewards/vowel_reward/mean"] == pytest.approx(np.mean(known))


def test_a_reward_is_given_the_token_ids_of_its_completion(everything):
    for table in everything[2]:
        for value, ids in zip(table["token_reward"], table["token_ids"]):
            assert value is None or value == len(ids) / 8


def test_an_async_reward_is_awaited(everything):
    for table in everything[2]:
        lower = [float(sum(letter.islower() for letter in text)) for text in table["completion"]]
        assert table["slow_reward"] == lower
    assert any(sum(table["slow_reward"]) for table in everything[2])


def test_what_a_reward_logs_is_saved(everything):
    _, rows, tables = everything
    for row, table in zip(rows, tables):
        upper = [sum(letter.isupper() for letter in text) for text in table["completion"]]
        assert table["upper"] == upper
        assert row["upper_share"] == pytest.approx(np.mean(upper) / 8)


def test_a_reward_is_given_the_step(everything):
    """0 while the first step is under way, as in TRL."""
    assert [row["rewards/clock_reward/mean"] for row in everything[1]] == [0.0, 1.0]


def test_a_callback_of_transformers_and_a_custom_optimizer_are_used(everything):
    names, rows, _ = everything
    assert names["remember"].seen == [(row["step"], row["reward"]) for row in rows]
    assert "learning_rate" not in rows[0], "only the caller knows it"


# ---- a command line of the script's own ----

PARSED = """
from dataclasses import dataclass, field
from datasets import Dataset
from trl import GRPOConfig, GRPOTrainer, ModelConfig, ScriptArguments, TrlParser, get_peft_config
from trl import get_quantization_config


@dataclass
class MyArguments(ScriptArguments):
    letters: list[str] = field(default_factory=lambda: ["e"])


def main(script_args, training_args, model_args):
    def reward(completions, **kwargs):
        return [float(sum(text.count(letter) for letter in script_args.letters)) for text in completions]

    model_init_kwargs = dict(
        revision=model_args.model_revision,
        trust_remote_code=training_args.trust_remote_code,
        attn_implementation=model_args.attn_implementation,
        dtype=model_args.dtype,
    )
    if training_args.model_init_kwargs is not None:
        model_init_kwargs.update(training_args.model_init_kwargs)
    training_args.model_init_kwargs = model_init_kwargs
    dataset = {name: Dataset.from_list([{"prompt": f"{i}: say a"} for i in range(8)]) for name in ("train", "test")}
    trainer = GRPOTrainer(
        model=model_args.model_name_or_path,
        reward_funcs=reward,
        args=training_args,
        train_dataset=dataset[script_args.dataset_train_split],
        eval_dataset=dataset[script_args.dataset_test_split] if training_args.eval_strategy != "no" else None,
        quantization_config=get_quantization_config(model_args),
        peft_config=get_peft_config(model_args),
    )
    trainer.train(resume_from_checkpoint=training_args.resume_from_checkpoint)
    trainer.accelerator.print("Training completed.")
    trainer.save_model(training_args.output_dir)
    if training_args.push_to_hub:
        trainer.push_to_hub(dataset_name=script_args.dataset_name)


parser = TrlParser((MyArguments, GRPOConfig, ModelConfig))
main(*parser.parse_args_and_config(words))
"""


def test_a_script_that_parses_its_own_command_line_runs(run, tiny_model, tmp_path):
    settings = tmp_path / "settings.yaml"
    sizes = "\n".join(f"{name}: {value}" for name, value in SIZES.items())
    settings.write_text(f"{sizes}\nletters: [a, o]\n")
    words = f"--config {settings} --output_dir out --max_steps 3 --model_name_or_path {tiny_model}"
    _, rows, tables = run(PARSED, words=words.split())
    assert len(rows) == 3, "the command line wins over the file"
    for table in tables:
        assert table["reward"] == [float(text.count("a") + text.count("o")) for text in table["completion"]]


# ---- what a script must change ----


def test_every_argument_of_trls_trainer_is_known_and_in_the_same_order():
    import inspect

    trl = pytest.importorskip("trl")
    from grpo_jax import GRPOTrainer
    from grpo_jax.training.arguments import INSTEAD

    theirs, ours = (list(inspect.signature(c.__init__).parameters) for c in (trl.GRPOTrainer, GRPOTrainer))
    assert set(theirs) - set(ours) - set(INSTEAD) == set()
    both = [name for name in theirs if name in ours]
    assert both == [name for name in ours if name in theirs], "and in the same order"
