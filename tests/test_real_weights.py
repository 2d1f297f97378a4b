"""Published models, through the commands that people type, against transformers and PEFT.

`make real-weights-test` fetches the models and runs these tests; `make test` leaves them out.
"""

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from grpo_jax import GRPOConfig, GRPOTrainer
from grpo_jax.cli import main
from grpo_jax.data.chat import encode, render
from grpo_jax.models import transformer
from grpo_jax.models.hf import load_config, load_params, load_tokenizer
from grpo_jax.models.lora import Base, joined, merged
from grpo_jax.models.peft import load_adapters, read_lora

pytestmark = pytest.mark.real_weights
NAMES = ("Qwen2.5-Coder-0.5B-Instruct", "SmolLM2-135M-Instruct")
SMALL = NAMES[1]  # where a property does not depend on the size
BOTH = pytest.mark.parametrize("name", NAMES)
BENCHMARKS = pathlib.Path(__file__).resolve().parents[1] / "benchmarks"
BETWEEN = "\n---\n"  # what `generate` prints between completions


@pytest.fixture(scope="module")
def folder_of():
    """`folder_of(name)`: a published model's folder; the test is skipped without it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        from real_weights import default_cache

    def find(name):
        folder = default_cache() / name
        if not folder.is_dir():
            pytest.skip(f"{folder} is absent: python benchmarks/real_weights.py {name} fetches it")
        return folder

    return find


@pytest.fixture(scope="module")
def theirs():
    """`theirs(folder)`: the model as transformers opens it, in float32."""
    torch = pytest.importorskip("torch")
    from transformers import AutoModelForCausalLM

    return lambda folder: AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def questions(shared_data):
    """Twenty questions of GSM8K's test set."""
    lines = (shared_data / "gsm8k" / "test.jsonl").read_text().splitlines()[:20]
    return [json.loads(line)["question"] for line in lines]


@pytest.fixture(scope="module")
def settings_of(folder_of, tmp_path_factory):
    """`settings_of(**more)`: one step on the small model, with a reward that differs within each group."""
    rows = [{"prompt": [{"role": "user", "content": f"Name {i} animals."}]} for i in range(2, 6)]
    data = tmp_path_factory.mktemp("rows") / "train.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = {
        "model": str(folder_of(SMALL)),
        "dataset": str(data),
        "rewards": f"{pathlib.Path(__file__).parent / 'tiny_rewards.py'}:vowels_of_an_answer",
        "reward_workers": 1,
        "max_steps": 1,
        "prompts_per_step": 2,
        "num_generations": 4,
        "micro_batch_size": 4,
        "max_prompt_length": 64,
        "max_completion_length": 16,
        "eval_prompts": 0,
        "learning_rate": 1e-3,
        "warmup_ratio": 0,
        "mesh": "data=1",
    }
    return lambda **more: GRPOConfig(**settings | {name: str(value) for name, value in more.items()})


def our_logits(cfg, params, tokens):
    """Logits [B,T,V] in float32."""
    positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)

    @jax.jit
    def forward(params, tokens):
        hidden, _ = transformer.hidden_states(cfg, params, tokens, positions)
        return transformer.head_logits(cfg, params, hidden)

    return np.asarray(forward(params, jnp.asarray(tokens)))


def their_logits(model, tokens):
    import torch

    with torch.no_grad():
        return model(torch.tensor(tokens)).logits.numpy()


def assert_same_logits(ours, theirs):
    assert np.abs(ours - theirs).max() <= 1e-4 * np.abs(theirs).max()


def tokens_of(folder):
    """Token ids [1,T] of a sentence with code, numbers and letters beyond ASCII."""
    text = "def area(r): return 3.14159 * r**2  # Fläche, 面積\nA circle of radius 12 has"
    return np.array([load_tokenizer(folder)(text)["input_ids"]])


@BOTH
def test_logits_equal_those_of_transformers(folder_of, theirs, name):
    folder = folder_of(name)
    tokens, cfg = tokens_of(folder), load_config(folder)
    assert_same_logits(
        our_logits(cfg, load_params(folder, cfg), tokens), their_logits(theirs(folder), tokens)
    )


@BOTH
def test_greedy_answers_equal_those_of_transformers(folder_of, theirs, questions, name, tmp_path, capsys):
    folder = folder_of(name)
    (tmp_path / "questions.jsonl").write_text("".join(json.dumps({"prompt": q}) + "\n" for q in questions))
    assert greedy(folder, "--prompts", tmp_path / "questions.jsonl", "--max_completion_length", 64) == 0
    ours = capsys.readouterr().out.removesuffix("\n").split(BETWEEN)
    chats = [[{"role": "user", "content": question}] for question in questions]
    assert ours == their_answers(theirs(folder), load_tokenizer(folder), chats, 64)


def greedy(model, *words):
    words = [*words, "--temperature", 0, "--dtype", "float32", "--mesh", "data=1"]
    return main(["generate", "--model", str(model), *map(str, words)])


def their_answers(model, tokenizer, chats, length):
    """transformers' greedy texts, all rows at once, without the penalty of the model's generation_config.json."""
    import torch

    tokenizer.padding_side = "left"
    batch = tokenizer.apply_chat_template(
        chats, add_generation_prompt=True, padding=True, return_dict=True, return_tensors="pt"
    )
    plain = {"do_sample": False, "repetition_penalty": 1.0, "temperature": None, "top_k": None, "top_p": None}
    with torch.no_grad():
        rows = model.generate(**batch, **plain, max_new_tokens=length)
    return tokenizer.batch_decode(rows[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)


SYSTEM = {"role": "system", "content": "Answer in one word."}
USER = {"role": "user", "content": "Is 1,234 even?\n\nYes or no; ja oder nein?"}
ASSISTANT = {"role": "assistant", "content": " Yes. "}
TOOL = {
    "type": "function",
    "function": {
        "name": "divide",
        "description": "Divide two numbers.",
        "parameters": {"type": "object", "properties": {"a": {"type": "number"}, "b": {"type": "number"}}},
    },
}
CALL = {
    "role": "assistant",
    "content": "",
    "tool_calls": [{"type": "function", "function": {"name": "divide", "arguments": {"a": 1234, "b": 2}}}],
}
CONVERSATIONS = {
    "one turn": ([USER], {}),
    "system prompt": ([SYSTEM, USER], {}),
    "prefill": ([USER, {"role": "assistant", "content": "<think>\nIt ends with"}], {}),
    "several turns": ([SYSTEM, USER, ASSISTANT, USER], {}),
    "tools": ([SYSTEM, USER], {"tools": [TOOL]}),
    "a tool's answer": ([USER, CALL, {"role": "tool", "content": "617"}], {"tools": [TOOL]}),
}


@pytest.mark.parametrize("case", CONVERSATIONS)
@BOTH
def test_token_ids_of_a_conversation_equal_those_of_transformers(folder_of, name, case):
    tokenizer = load_tokenizer(folder_of(name))
    messages, variables = CONVERSATIONS[case]
    text = render(messages, tokenizer, chat_template_kwargs=variables)
    opened = messages[-1]["role"] == "assistant"
    expected = tokenizer.apply_chat_template(
        messages, **variables, add_generation_prompt=not opened, continue_final_message=opened
    )
    assert encode([text], tokenizer, chat=True) == [expected["input_ids"]]


def test_system_prompt_and_prefill_of_the_settings_are_those_of_a_conversation(folder_of):
    tokenizer = load_tokenizer(folder_of(SMALL))
    opening = {"role": "assistant", "content": "<think>\n"}
    set_apart = render([USER], tokenizer, SYSTEM["content"], prefill=opening["content"])
    assert set_apart == render([SYSTEM, USER, opening], tokenizer)


def test_an_adapter_trained_here_gives_the_same_logits_and_text_in_peft(
    folder_of, theirs, settings_of, tmp_path, capsys
):
    peft = pytest.importorskip("peft")
    folder, run = folder_of(SMALL), tmp_path / "run"
    GRPOTrainer(str(folder), args=settings_of(output_dir=run, lora_r=4, lora_alpha=8)).train()
    model = peft.PeftModel.from_pretrained(theirs(folder), run / "adapter")
    tokens, cfg, lora = tokens_of(folder), load_config(folder), read_lora(run / "adapter")
    whole = merged(
        joined(load_adapters(run / "adapter", cfg, lora), Base(load_params(folder, cfg), lora.scale))
    )
    found = their_logits(model, tokens)
    assert_same_logits(our_logits(cfg, whole, tokens), found)
    with model.disable_adapter():
        assert np.abs(found - their_logits(model, tokens)).max() > 0.1

    capsys.readouterr()
    words = ("--prompt", USER["content"], "--adapter", run / "adapter", "--max_completion_length", 32)
    assert greedy(folder, *words) == 0
    assert (
        capsys.readouterr().out.removesuffix("\n")
        == their_answers(model, load_tokenizer(folder), [[USER]], 32)[0]
    )


def test_transformers_opens_the_export_of_a_trained_model_with_our_logits(
    folder_of, theirs, settings_of, tmp_path
):
    folder, out = folder_of(SMALL), tmp_path / "exported"
    trainer = GRPOTrainer(str(folder), args=settings_of(output_dir=tmp_path / "run"))
    trainer.train()
    assert main(["export", str(tmp_path / "run"), str(out)]) == 0
    tokens, cfg = tokens_of(folder), load_config(folder)
    stored = jax.tree.map(lambda x: x.astype(jnp.bfloat16).astype(jnp.float32), trainer.trained.params)
    found = their_logits(theirs(out), tokens)
    assert_same_logits(our_logits(cfg, stored, tokens), found)
    assert np.abs(found - their_logits(theirs(folder), tokens)).max() > 0.1
    assert load_tokenizer(out)("Name 5.")["input_ids"] == load_tokenizer(folder)("Name 5.")["input_ids"]
