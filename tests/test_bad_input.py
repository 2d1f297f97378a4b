"""Invalid user input: exit code 2, and a line or two that name the place, the value and the fix; no
weight is read, and nothing is written."""

import json
import re
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from grpo_jax.cli import main
from grpo_jax.models import hf


class Workspace:
    """A copy of the tiny model and its data, to be broken, and the settings of a run on them."""

    def __init__(self, home, settings):
        self.home = home
        self.model = shutil.copytree(settings["model"], home / "model")
        self.data = shutil.copytree(settings["dataset"], home / "data")
        self.out = home / "out"
        self.settings = settings | {"model": self.model, "dataset": self.data, "output_dir": self.out}

    def set(self, **changes):
        self.settings |= changes

    def config(self, **changes):
        file = self.model / "config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | changes))

    def tensors(self, change):
        file = self.model / "model.safetensors"
        tensors = load_file(file)
        change(tensors)
        save_file(tensors, file)

    def rows(self, *lines, split="train"):
        (self.data / f"{split}.jsonl").write_text("".join(f"{line}\n" for line in lines))

    def adapter(self, width=32, layers=2, **config):
        """An adapter of q_proj, for a model of this width and depth."""
        folder = self.home / "adapter"
        folder.mkdir()
        config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4} | config
        (folder / "adapter_config.json").write_text(json.dumps(config))
        tensors = {}
        for layer in range(layers):
            name = f"base_model.model.model.layers.{layer}.self_attn.q_proj"
            tensors[f"{name}.lora_A.weight"] = np.zeros((2, width), np.float32)
            tensors[f"{name}.lora_B.weight"] = np.zeros((width, 2), np.float32)
        save_file(tensors, folder / "adapter_model.safetensors")
        self.set(adapter="adapter")

    def nested(self, **settings):
        """Rows whose column `solution` is a field of another, and a reward that needs it."""
        self.set(rewards=self.settings["rewards"].replace("vowels", "needs_a_column"), **settings)
        row = json.dumps({"prompt": "say a", "extra_info": {"by": "us", "solution": "a"}})
        self.rows(*[row] * 8)
        self.rows(*[row] * 8, split="test")

    def names(self):
        """Everything there is, with its size: what a refused command must not change."""
        return {str(p): p.lstat().st_size for p in self.home.rglob("*")}


@pytest.fixture
def workspace(tmp_path, tiny_settings, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return Workspace(tmp_path, tiny_settings)


def truncate(workspace, size):
    file = workspace.model / "model.safetensors"
    file.write_bytes(file.read_bytes()[:size])


def shorten(name):
    return lambda tensors: tensors.update({name: tensors[name][:-1]})


def integers(name):
    return lambda tensors: tensors.update({name: tensors[name].astype(np.int32)})


def tokenizer_with_more(workspace, count=20):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(workspace.model)
    tokenizer.add_tokens([f"<more{i}>" for i in range(count)])
    tokenizer.save_pretrained(workspace.model)


def write_over(name, content):
    """Replace a file of the model's folder."""
    return lambda workspace: (workspace.model / name).write_bytes(content)


def as_gguf(workspace):
    (workspace.model / "model.safetensors").rename(workspace.model / "tiny.gguf")


def only_an_adapter(workspace):
    for file in workspace.model.iterdir():
        file.unlink()
    (workspace.model / "adapter_config.json").write_text("{}")


def dangling_link(workspace):
    (workspace.home / "rows.jsonl").symlink_to(workspace.home / "gone.jsonl")
    workspace.set(dataset="rows.jsonl")


def occupy(workspace):
    workspace.out.mkdir()
    (workspace.out / "thesis.txt").write_text("mine")


NORM, UP = "model.norm.weight", "model.layers.1.mlp.up_proj.weight"
GOOD = '{"prompt": "say a", "letter": "a"}'
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:aa\nsize 9\n"

BAD = {
    # ---- the model ----
    "no such folder": (lambda p: p.set(model="modle"), r"model 'modle': no such folder; give a local folder"),
    "unreachable hub id": (lambda p: p.set(model="Qwen/Absent"), r"hub id Qwen/Absent could not be reached"),
    "no config.json": (lambda p: (p.model / "config.json").unlink(), r"model/config.json: no such file"),
    "config.json is no JSON": (
        lambda p: (p.model / "config.json").write_text("{"),
        r"model/config.json: not readable as JSON",
    ),
    "another architecture": (
        lambda p: p.config(model_type="llama"),
        r"config.json: model_type 'llama' is not supported; the supported ones are 'qwen2'",
    ),
    "other mathematics": (
        lambda p: p.config(use_sliding_window=True),
        r"config.json: use_sliding_window is true",
    ),
    "no weights": (
        lambda p: (p.model / "model.safetensors").unlink(),
        r"model: holds neither model.safetensors nor model.safetensors.index.json",
    ),
    "missing tensor": (
        lambda p: p.tensors(lambda t: t.pop(NORM)),
        rf"tensor {NORM} of shape \[32\] is missing",
    ),
    "unknown tensor": (
        lambda p: p.tensors(lambda t: t.update(bogus=t[NORM])),
        r"model.safetensors: tensor bogus of shape \[32\] has no place",
    ),
    "tensor of another shape": (
        lambda p: p.tensors(shorten(UP)),
        rf"tensor {UP} has shape \[63, 32\]; config.json says \[64, 32\]",
    ),
    "tensor of another kind": (
        lambda p: p.tensors(integers(UP)),
        rf"tensor {UP} is I32; only F32, F16, BF16",
    ),
    "truncated weights": (
        lambda p: truncate(p, -100),
        r"model.safetensors: tensor .* truncated; download it again",
    ),
    "truncated header": (lambda p: truncate(p, 50), r"model.safetensors: truncated, or no safetensors file"),
    "more layers than tensors": (
        lambda p: p.config(num_hidden_layers=3),
        r"tensor model.layers.2\..* is missing",
    ),
    "no tokenizer": (
        lambda p: (p.model / "tokenizer.json").unlink(),
        r"model: no tokenizer \(tokenizer.json",
    ),
    "damaged tokenizer": (
        lambda p: (p.model / "tokenizer.json").write_text("{}"),
        r"model: the tokenizer does not open",
    ),
    "tokenizer of another model": (
        tokenizer_with_more,
        r"the tokenizer has 1\d\d tokens, but the model's vocab_size is 104; use the tokenizer that came with",
    ),
    "a GGUF file": (
        lambda p: (p.home / "tiny.gguf").write_bytes(b"GGUF") and p.set(model="tiny.gguf"),
        r"model 'tiny.gguf': no folder; tiny.gguf is a GGUF file: convert it with .*gguf_file='tiny.gguf'",
    ),
    "a folder with a GGUF file": (as_gguf, r"holds neither .*; tiny.gguf is a GGUF file: convert it"),
    "a file of the model": (
        lambda p: p.set(model="model/config.json"),
        r"model 'model/config.json': no folder; it is a file; give the folder that holds it",
    ),
    "an adapter": (
        only_an_adapter,
        r"config.json: no such file; the folder holds an adapter: give it as adapter",
    ),
    "weights that Git LFS has not fetched": (
        write_over("model.safetensors", POINTER),
        r"model.safetensors: a pointer of Git LFS; run git lfs pull",
    ),
    "a tokenizer that Git LFS has not fetched": (
        write_over("tokenizer.json", POINTER),
        r"tokenizer.json: a pointer of Git LFS; run git lfs pull",
    ),
    "empty weights": (
        write_over("model.safetensors", b""),
        r"model.safetensors: truncated, or no safetensors",
    ),
    "unsupported rope_scaling": (
        lambda p: p.config(rope_scaling={"rope_type": "llama3", "factor": 8.0}),
        r"config.json: rope scaling 'llama3' is not supported; only 'yarn' is, or none",
    ),
    "an end-of-sequence token beyond the vocabulary": (
        lambda p: p.config(eos_token_id=999),
        r"model: eos_token_id 999 is beyond the vocabulary of 104",
    ),
    "a setting of config.json that transformers refuses": (
        lambda p: p.config(eos_token_id="end"),
        r"model: the tokenizer does not open: .*'eos_token_id'.*expected int",
    ),
    "an adapter of another shape": (
        lambda p: p.adapter(width=64),
        r"adapter: tensor .*q_proj.lora_A.weight has shape \[2, 64\]; the model and r need \[2, 32\]",
    ),
    "an adapter of fewer layers": (lambda p: p.adapter(layers=1), r"adapter: tensor .*layers.1.* is missing"),
    "an adapter of more layers": (lambda p: p.adapter(layers=3), r"tensor .*layers.2.* has no place here"),
    "an adapter with an infinite scale": (
        lambda p: p.adapter(lora_alpha=float("inf")),
        r"adapter_config.json: lora_alpha = inf: must be finite",
    ),
    # ---- the data ----
    "rows in UTF-16": (
        lambda p: (p.data / "train.jsonl").write_bytes(GOOD.encode("utf-16")),
        r"train.jsonl:1: not UTF-8 text \(.*\); save the file as UTF-8",
    ),
    "rows in Latin-1": (
        lambda p: (p.data / "train.jsonl").write_bytes((GOOD + '\n{"prompt": "caf\xe9"}').encode("latin-1")),
        r"train.jsonl:2: not UTF-8 text \(.*\); save the file as UTF-8",
    ),
    "a file without a byte": (
        lambda p: (p.home / "rows.jsonl").write_bytes(b"") or p.set(dataset="rows.jsonl"),
        r"dataset 'rows.jsonl': the split 'train' has no rows",
    ),
    "a folder called as a file": (
        lambda p: (p.home / "rows.jsonl").mkdir() or p.set(dataset="rows.jsonl"),
        r"dataset 'rows.jsonl': no train.jsonl, .* there; it holds nothing",
    ),
    "a link to nothing": (dangling_link, r"dataset 'rows.jsonl': a link to .*gone.jsonl, which is not there"),
    "no such dataset": (
        lambda p: p.set(dataset="cuontdown"),
        r"dataset 'cuontdown': .*did you mean 'countdown'",
    ),
    "unreachable dataset": (
        lambda p: p.set(dataset="openai/absent"),
        r"dataset 'openai/absent': no such local path.*give the path of a local copy",
    ),
    "no such split": (lambda p: p.set(dataset_split="trian"), r"no split 'trian' \(did you mean 'train'\?\)"),
    "no held-out split": (
        lambda p: (p.data / "test.jsonl").unlink(),
        r"no split 'test'.*; it has train",
    ),
    "empty dataset": (lambda p: p.rows(), r"the split 'train' has no rows"),
    "no prompts": (
        lambda p: p.rows('{"question_text": "say a"}'),
        r"no column 'prompt' among question_text; set prompt_column",
    ),
    "misspelt prompt_column": (
        lambda p: p.set(prompt_column="promt"),
        r"no column 'promt' \(did you mean 'prompt'\?\)",
    ),
    "unreadable row": (lambda p: p.rows(GOOD, '{"prompt": "say'), r"train.jsonl:2: not valid JSON"),
    "row without a prompt": (
        lambda p: p.rows(GOOD, '{"letter": "a"}'),
        r"1 of 2 rows cannot be used; row 2: there is no column 'prompt'",
    ),
    "empty prompt": (lambda p: p.rows(GOOD, '{"prompt": " "}'), r"row 2: the prompt is empty"),
    "prompts all too long": (
        lambda p: p.set(max_prompt_length=5),
        r"max_prompt_length=5: all 40 prompts are longer, from 11 to 12 tokens; set it to 11 or more",
    ),
    "held-out prompts all too long": (
        lambda p: p.rows(json.dumps({"prompt": "a" * 99}), split="test"),
        r"max_prompt_length=32: all 1 prompts are longer",
    ),
    # ---- the rewards ----
    "no such reward": (lambda p: p.set(rewards="countdwn"), r"'countdwn' \(did you mean 'countdown'\?\)"),
    "no such file": (lambda p: p.set(rewards="mine.py:f"), r"rewards: 'mine.py:f': there is no file"),
    "no such function": (
        lambda p: p.set(rewards=p.settings["rewards"][:-1]),
        r"has no function 'vowel' \(did you mean 'vowels'\?\)",
    ),
    "reward without its column": (
        lambda p: p.set(rewards=p.settings["rewards"].replace("vowels", "needs_a_column")),
        r"rewards: 'needs_a_column' needs a column 'solution'; there are .*letter",
    ),
    "held-out rows without the reward's column": (
        lambda p: (
            p.set(rewards=p.settings["rewards"].replace("vowels", "needs_a_column")),
            p.rows('{"prompt": "say a", "solution": "a"}'),
        ),
        r"rewards: 'needs_a_column' needs a column 'solution'; there are .*letter",
    ),
    "a reward's column inside another": (
        lambda p: p.nested(),
        r"needs a column 'solution'; .* inside columns extra_info.by, .*columns=\{solution: extra_info.solution\}",
    ),
    "a field that the columns lack": (
        lambda p: p.nested(columns="{solution: extra_info.solutoin}"),
        r"columns: row 1 has no 'extra_info.solutoin' \(did you mean 'extra_info.solution'\?\)",
    ),
    "columns that are no names": (
        lambda p: p.set(columns="{solution: 3}"),
        r"columns = .*: solution must be the name of a column, and is 3",
    ),
    # ---- the settings ----
    "unknown setting": (
        lambda p: p.set(lerning_rate=1),
        r"lerning_rate: no such setting \(did you mean 'learning_",
    ),
    "TRL's setting": (
        lambda p: p.set(per_device_train_batch_size=1),
        r"write prompts_per_step and num_generations",
    ),
    "mistyped value": (lambda p: p.set(max_steps="ten"), r"max_steps = 'ten': must be a whole number"),
    "value out of range": (lambda p: p.set(top_p=1.5), r"top_p = '1.5': must be at most 1"),
    "settings that exclude each other": (
        lambda p: p.set(warmup_steps=2, warmup_ratio=0.5),
        r"warmup_ratio = 0.5: warmup_steps is 2 already; keep one",
    ),
    "mini-batches that do not divide": (
        lambda p: p.set(num_minibatches=3),
        r"num_minibatches = 3: 16 rows .* do not divide by it; use 2 or 4",
    ),
    # ---- the machine ----
    "mesh larger than the machine": (
        lambda p: p.set(mesh="fsdp=16"),
        r"mesh = .*fsdp=16.* there are 8 devices",
    ),
    "mesh that the batch does not divide over": (
        lambda p: p.set(mesh="data=8", prompts_per_step=12),
        r"prompts_per_step = 12 does not divide over the mesh's 8 row shards .*use a multiple of 8",
    ),
    "mesh that the model does not divide over": (
        lambda p: p.set(mesh="tensor=4"),
        r"mesh: layers/k/.* has a dimension of 2 that does not divide over tensor=4; choose a tensor size",
    ),
    "micro-batches that do not divide over the mesh": (
        lambda p: p.set(mesh="data=8", micro_batch_size=4),
        r"micro_batch_size = 4 does not divide over the mesh's 8 row shards",
    ),
    # ---- the output folder ----
    "output folder in use": (occupy, r"output_dir: output folder in use: .*out is not empty .*thesis.txt"),
    "output_dir below a file": (
        lambda p: p.out.write_text("") or p.set(output_dir=p.out / "run"),
        r"output_dir: .*out/run cannot be written: Not a directory; give another output_dir",
    ),
    "output_dir where nothing can be written": (
        lambda p: p.set(output_dir="/proc/run"),
        r"output_dir: /proc/run cannot be written: .*; give another output_dir",
    ),
    "output_dir is a file": (lambda p: p.out.write_text(""), r"output_dir: .*out is a file; give a folder"),
}


@pytest.mark.parametrize("fault", BAD)
def test_bad_input_is_refused_in_a_line_or_two_before_weights_are_read(
    fault, workspace, options, capsys, monkeypatch
):
    break_it, words = BAD[fault]
    break_it(workspace)
    before = workspace.names()
    monkeypatch.setattr(
        hf, "load_params", lambda *_: pytest.fail("weights were read before everything was checked")
    )
    assert main(["train", *options(workspace.settings)]) == 2
    out, error = capsys.readouterr()
    assert error.startswith("error: ")
    assert re.search(words, error), error
    assert len(error.splitlines()) <= 2
    assert "Traceback" not in error
    assert out == ""
    assert workspace.names() == before


def test_a_refused_command_can_be_corrected_and_run_in_the_same_folder(
    workspace, options, capsys, monkeypatch
):
    """A refused command must not leave an output folder that belongs to a run with the wrong settings."""
    for fault in ("missing tensor", "reward without its column", "prompts all too long"):
        broken = Workspace(workspace.home / fault.replace(" ", "_"), workspace.settings)
        broken.set(output_dir=workspace.out)
        BAD[fault][0](broken)
        assert main(["train", *options(broken.settings)]) == 2
    assert not workspace.out.exists()
    capsys.readouterr()

    assert passes_all_checks(workspace, options, monkeypatch)


def passes_all_checks(workspace, options, monkeypatch):
    class WeightsAreReadError(Exception):
        pass

    def read(*_):
        raise WeightsAreReadError

    monkeypatch.setattr(hf, "load_params", read)
    with pytest.raises(WeightsAreReadError):
        main(["train", *options(workspace.settings)])
    return True


def test_a_field_inside_a_column_can_be_mapped_to_the_column_that_a_reward_needs(
    workspace, options, monkeypatch
):
    workspace.nested(columns="{solution: extra_info.solution}")
    assert passes_all_checks(workspace, options, monkeypatch)


@pytest.mark.parametrize(
    ("verb", "words"),
    [
        ("eval", ["--task", "DATA", "--rewards", "countdown"]),
        ("generate", ["--prompt", "say a"]),
        ("sft", ["--dataset", "DATA", "--completion_column", "letter", "--output_dir", "out"]),
    ],
)
def test_every_verb_that_takes_a_model_refuses_a_broken_one(verb, words, workspace, capsys, monkeypatch):
    BAD["missing tensor"][0](workspace)
    before = workspace.names()
    monkeypatch.setattr(hf, "load_params", lambda *_: pytest.fail("weights were read"))
    words = [word.replace("DATA", str(workspace.data)) for word in words]
    assert main([verb, "--model", str(workspace.model), *words]) == 2
    out, error = capsys.readouterr()
    assert re.search(BAD["missing tensor"][1], error), error
    assert out == ""
    assert workspace.names() == before


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ["generate", "--model", "model", "--prompt", "a", "--max_completion_length", "99999"],
            r"has \d+ positions",
        ),
        (
            ["eval", "--model", "model", "--task", "data", "--output", "data/train.jsonl/x.json"],
            r"cannot be made",
        ),
        (
            ["generate", "--model", "model", "--prompt", "a", "--coordinator", "here", "--num_processes", "1"]
            + ["--process_id", "0"],
            r"--coordinator = here: give host:port",
        ),
        (["export", "nowhere", "out"], r"error: nowhere: no run here \(no config.yaml\)"),
        (["export", "data", "out"], r"error: data: no run here"),
        (["generate", "--model", "model"], r"prompt: must be given"),
        (
            ["generate", "--model", "model", "--prompt", "a", "--mesh", "fsdp=9"],
            r"mesh = .*fsdp=9.* 8 devices",
        ),
        (
            ["eval", "--model", "model", "--task", "data", "--split", "tset"],
            r"no split 'tset' \(did you mean 'test'",
        ),
        (["eval", "--model", "model", "--task", "data", "--rewards", "countdown"], r"needs a column '\w+'"),
    ],
)
def test_other_verbs_refuse_bad_input_too(words, said, workspace, capsys, monkeypatch):
    before = workspace.names()
    monkeypatch.setattr(
        hf, "load_params", lambda *_: pytest.fail("weights were read before everything was checked")
    )
    assert main(words) == 2
    error = capsys.readouterr().err
    assert re.search(said, error), error
    assert len(error.splitlines()) <= 2
    assert workspace.names() == before
