"""Loading: what a device gets, what is read from the disk, and every way in which a folder can be wrong."""

import json
import os
import resource
import subprocess
import sys
import textwrap

import jax
import ml_dtypes
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from grpo_jax.errors import UserError
from grpo_jax.models import load
from grpo_jax.models.config import PUBLISHED, ModelConfig
from grpo_jax.models.families import rows
from grpo_jax.models.hf import check_tokenizer, load_params, load_tokenizer, resolve_model, save_model
from grpo_jax.models.hf_config import published_layout
from grpo_jax.models.safetensors_io import Outgoing, Stored, open_folder, sampled_digest, write_file
from grpo_jax.models.transformer import init

CFG = ModelConfig(
    vocab_size=64,
    hidden_size=32,
    intermediate_size=48,
    num_layers=2,
    num_heads=8,
    num_kv_heads=2,
    head_dim=4,
    rope_theta=1e4,
    rms_norm_eps=1e-6,
    tie_word_embeddings=False,
    max_position_embeddings=128,
)
TIED = ModelConfig(**(vars(CFG) | {"tie_word_embeddings": True}))


def random_tensors(cfg, dtype=np.float32):
    rng = np.random.default_rng(0)
    shapes = {name: row.their_shape(cfg) for row in rows(cfg) for name in row.names(cfg)}
    return {name: rng.normal(size=shape).astype(dtype) for name, shape in shapes.items()}


def write_model(folder, tensors, cfg=CFG):
    outgoing = [Outgoing(n, a.shape, a.dtype, lambda a=a: a) for n, a in tensors.items()]
    write_file(folder / "model.safetensors", outgoing)
    (folder / "config.json").write_text(json.dumps(published_layout(cfg, "float32")))
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("model"), random_tensors(CFG, ml_dtypes.bfloat16))


def shardings(mesh, spec_of):
    """The tree of shardings, `spec_of` being a function of a leaf's path and number of dimensions."""
    tree = {}
    for row in rows(CFG):
        branch = tree
        for key in row.path[:-1]:
            branch = branch.setdefault(key, {})
        branch[row.path[-1]] = NamedSharding(mesh, spec_of(row, len(row.shape(CFG))))
    return tree


def fsdp_and_tensor(row, ndim):
    """Width over fsdp, heads or ffn over tensor: what real rules split, seen through the transposes."""
    axes = {"D": "fsdp", "V": None, "N": "tensor", "K": "tensor", "F": "tensor", "H": None}
    return PartitionSpec(*(None,) * row.stacked, *(axes[letter] for letter in row.ours))


def only_layers(row, ndim):
    return PartitionSpec("tensor") if row.stacked else PartitionSpec()


@pytest.mark.parametrize("spec_of", [fsdp_and_tensor, only_layers])
def test_a_sharded_load_holds_the_same_values(folder, spec_of):
    mesh = jax.make_mesh((4, 2), ("fsdp", "tensor"))
    whole = load_params(folder, CFG)
    split = load_params(folder, CFG, shardings(mesh, spec_of))
    assert jax.tree.structure(whole) == jax.tree.structure(split)
    jax.tree.map(np.testing.assert_array_equal, whole, split)
    assert split["layers"]["o"]["kernel"].sharding.spec == spec_of(rows(CFG)[7], 4)


def test_a_sharded_load_reads_each_slice_once(folder, monkeypatch):
    """A whole leaf for each device, or a slice for each replica, would multiply the loading time."""
    reads: dict[load.Leaf, list] = {}

    def counting(self, index, read=load.Leaf.read):
        out = read(self, index)
        reads.setdefault(self, []).append(out.shape)
        return out

    monkeypatch.setattr(load.Leaf, "read", counting)
    mesh = jax.make_mesh((4, 2), ("fsdp", "tensor"))
    load_params(folder, CFG, shardings(mesh, fsdp_and_tensor))
    assert len(reads) == len(rows(CFG))
    for row, shapes in zip(rows(CFG), reads.values(), strict=True):
        parts = 4 ** ("D" in row.ours) * 2 ** any(letter in row.ours for letter in "NKF")
        assert len(shapes) == parts, row
        assert sum(np.prod(shape) for shape in shapes) == np.prod(row.shape(CFG)), row


def test_reading_a_slice_of_a_72b_model_takes_memory_for_the_slice_alone(tmp_path):
    """The file is sparse: 80 layers of 0.5 GB that take no disk space, of which one device's part is read."""
    cfg = PUBLISHED["72b"]
    row = next(row for row in rows(cfg) if row.path == ("layers", "down", "kernel"))
    length = int(np.prod(row.their_shape(cfg))) * 2
    file = tmp_path / "model.safetensors"
    with file.open("wb") as stream:
        stream.truncate(length * cfg.num_layers)
    stored = [
        Stored(
            file=file,
            name=name,
            code="BF16",
            shape=row.their_shape(cfg),
            start=i * length,
            stop=(i + 1) * length,
        )
        for i, name in enumerate(row.names(cfg))
    ]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    leaf = load.Leaf(row, cfg, stored, np.dtype(np.float32))
    part = leaf.read((slice(3, 5), slice(0, 29568 // 64), slice(0, 128)))
    assert part.shape == (2, 462, 128)
    assert not part.any()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # KiB


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", np.float16])
def test_parameters_have_the_requested_dtype(folder, dtype):
    leaves = jax.tree.leaves(load_params(folder, CFG, dtype=dtype))
    assert {leaf.dtype for leaf in leaves} == {np.dtype(dtype)}


def without(name):
    return lambda tensors: tensors.pop(name)


def renamed(old, new):
    return lambda tensors: tensors.update({new: tensors.pop(old)})


def shaped(name, shape):
    return lambda tensors: tensors.update({name: np.zeros(shape, np.float32)})


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (without("model.norm.weight"), r"tensor model\.norm\.weight of shape \[32\] is missing"),
        (without("lm_head.weight"), r"tensor lm_head\.weight of shape \[64, 32\] is missing"),
        (without("model.layers.1.mlp.up_proj.weight"), r"layers\.1\.mlp\.up_proj\.weight .*missing"),
        (renamed("model.norm.weight", "norm.weight"), r"did you mean 'norm\.weight'"),
        (shaped("model.layers.0.mlp.gate_proj.weight", (32, 48)), r"\[32, 48\]; .*\[48, 32\]"),
        (shaped("model.layers.0.self_attn.k_proj.bias", (32,)), r"k_proj\.bias has shape \[32\]; .*\[8\]"),
        (shaped("model.layers.2.input_layernorm.weight", (32,)), r"layers\.2\..* has no place"),
        (shaped("model.layers.0.self_attn.q_norm.weight", (4,)), r"q_norm\.weight .*has no place"),
    ],
)
def test_tensors_that_do_not_fit_are_named_before_anything_is_read(tmp_path, monkeypatch, damage, message):
    tensors = random_tensors(CFG)
    damage(tensors)
    write_model(tmp_path, tensors)
    monkeypatch.setattr(load.Leaf, "read", lambda *_: pytest.fail("read before the check was done"))
    with pytest.raises(UserError, match=message):
        load_params(tmp_path, CFG)


def test_an_unsupported_dtype_is_named_with_its_tensor(tmp_path):
    write_model(tmp_path, random_tensors(CFG))
    edit_header(tmp_path / "model.safetensors", lambda h: h["model.norm.weight"].update(dtype="F8_E4M3"))
    with pytest.raises(UserError, match=r"model\.norm\.weight is F8_E4M3"):
        load_params(tmp_path, CFG)


def test_buffers_of_old_exports_and_a_copied_head_are_skipped(tmp_path):
    tensors = random_tensors(TIED)
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].copy()
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.ones(2, np.float32)
    write_model(tmp_path, tensors, TIED)
    assert "head" not in load_params(tmp_path, TIED)
    tensors["lm_head.weight"][0, 0] += 1
    write_model(tmp_path, tensors, TIED)
    with pytest.raises(UserError, match=r"lm_head\.weight differs from model\.embed_tokens\.weight"):
        load_params(tmp_path, TIED)


def edit_header(file, edit):
    data = file.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    edit(header)
    text = json.dumps(header).encode()
    file.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + length :])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (lambda data: b"", "truncated"),
        (lambda data: data[:5], "truncated"),
        (lambda data: data[:200], "truncated"),
        (lambda data: data[:-1], r"tensor lm_head\.weight ends at byte .*truncated"),
        (lambda data: b"\xff" * 8 + data[8:], "truncated, or no safetensors file"),
        (lambda data: data[:8] + b"\xff" * (len(data) - 8), "header is damaged"),
        (lambda data: (2).to_bytes(8, "little") + b"[]" + data, "header is damaged"),
        (lambda data: (10).to_bytes(8, "little") + b'{"a": {  }' + data, "header is damaged"),
    ],
)
def test_damaged_files_are_named(tmp_path, content, message):
    file = write_model(tmp_path, random_tensors(CFG)) / "model.safetensors"
    file.write_bytes(content(file.read_bytes()))
    with pytest.raises(UserError, match=r"model\.safetensors: .*" + message):
        load_params(tmp_path, CFG)


@pytest.mark.parametrize(
    "entry",
    [
        {"data_offsets": [-8, 120]},
        {"data_offsets": [128, 0]},
        {"data_offsets": [0, 64]},
        {"shape": [-1, -32]},
        {"dtype": "BF16"},
    ],
)
def test_impossible_offsets_are_named_with_their_tensor(tmp_path, entry):
    write_model(tmp_path, random_tensors(CFG))
    edit_header(tmp_path / "model.safetensors", lambda header: header["model.norm.weight"].update(entry))
    with pytest.raises(UserError, match=r"model\.safetensors: tensor model\.norm\.weight"):
        load_params(tmp_path, CFG)


def test_folders_without_a_whole_checkpoint_are_named(tmp_path, folder):
    with pytest.raises(UserError, match="holds neither"):
        load_params(tmp_path, CFG)
    save_model(tmp_path / "split", CFG, load_params(folder, CFG), max_shard_bytes=8000)
    shard = sorted((tmp_path / "split").glob("*.safetensors"))[1]
    data = shard.read_bytes()
    shard.unlink()
    with pytest.raises(UserError, match=rf"the shard {shard.name} .* is missing"):
        load_params(tmp_path / "split", CFG)
    shard.write_bytes(data)
    index = tmp_path / "split" / "model.safetensors.index.json"
    weight_map = json.loads(index.read_text())["weight_map"]
    index.write_text(json.dumps({"weight_map": weight_map | {"model.extra": shard.name}}))
    with pytest.raises(UserError, match=r"has no tensor model\.extra"):
        load_params(tmp_path / "split", CFG)
    index.write_text(json.dumps({"weight_map": weight_map | {"model.extra": "../other.safetensors"}}))
    with pytest.raises(UserError, match=r"\.\./other\.safetensors .* is missing"):
        load_params(tmp_path / "split", CFG)
    index.write_text("{}")
    with pytest.raises(UserError, match="weight_map"):
        load_params(tmp_path / "split", CFG)


def test_our_files_open_with_the_safetensors_library(tmp_path):
    from safetensors.numpy import load_file

    tensors = random_tensors(CFG)
    write_model(tmp_path, tensors)
    opened = load_file(tmp_path / "model.safetensors")
    assert opened.keys() == tensors.keys() == open_folder(tmp_path).keys()
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(opened[name], tensor)


def test_a_model_is_a_folder_or_a_hub_id(tmp_path, monkeypatch):
    assert resolve_model(str(tmp_path)) == tmp_path
    for name in ("no/such/folder", "./folder", "/nowhere", "nothing"):
        with pytest.raises(UserError, match="no such folder"):
            resolve_model(name)
    import huggingface_hub

    monkeypatch.setattr(
        huggingface_hub, "snapshot_download", lambda name, allow_patterns: str(tmp_path / name)
    )
    assert resolve_model("Qwen/Qwen2.5-0.5B") == tmp_path / "Qwen" / "Qwen2.5-0.5B"

    def unreachable(*_, **__):
        raise OSError("no route to host\nand a page of advice")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", unreachable)
    with pytest.raises(
        UserError, match=r"could not be reached \(no route to host\): give a local folder"
    ) as raised:
        resolve_model("Qwen/Qwen2.5-0.5B")
    assert "\n" not in str(raised.value)


def test_tokenizers_are_checked_against_the_embedding(tmp_path):
    check_tokenizer(64, CFG)
    with pytest.raises(UserError, match="65 tokens"):
        check_tokenizer(65, CFG)
    with pytest.raises(UserError, match="no tokenizer"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(UserError, match="does not open"):
        load_tokenizer(tmp_path)


def test_the_export_includes_the_tokenizer_and_its_chat_template(tmp_path):
    tokenizers = pytest.importorskip("tokenizers")
    from transformers import PreTrainedTokenizerFast

    source = write_model(tmp_path, random_tensors(CFG))
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0, "b": 1, "?": 2}, unk_token="?"))
    words.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, chat_template="{{ messages[0]['content'] }}")
    tokenizer.save_pretrained(source)
    save_model(tmp_path / "out", CFG, load_params(source, CFG), source=source)
    opened = load_tokenizer(tmp_path / "out")
    assert opened("b a").input_ids == [1, 0]
    chat = [{"role": "user", "content": "a"}]
    assert opened.apply_chat_template(chat, tokenize=False) == "a"


PROGRAM = """
    import sys, jax, numpy as np
    source, out, port, process = sys.argv[1:]
    jax.distributed.initialize(f"localhost:{port}", 2, int(process))
    from jax.sharding import NamedSharding, PartitionSpec
    from grpo_jax.models.hf import load_config, load_params, save_model
    from grpo_jax.models.transformer import abstract_params
    cfg = load_config(source)
    mesh = jax.make_mesh((4,), ("fsdp",))
    split = lambda x: PartitionSpec(*["fsdp" if size == cfg.hidden_size else None for size in x.shape])
    width = lambda x: NamedSharding(mesh, split(x))
    params = load_params(source, cfg, jax.tree.map(width, abstract_params(cfg)))
    assert not params["norm"]["scale"].is_fully_addressable
    save_model(out, cfg, params, source=source)
    assert load_config(out) == cfg
"""


def test_two_processes_load_their_parts_and_write_one_whole_model(folder, tmp_path, process_environment):
    port = str(20000 + os.getpid() % 20000)
    command = [sys.executable, "-c", textwrap.dedent(PROGRAM), str(folder), str(tmp_path / "out"), port]
    started = [
        subprocess.Popen([*command, str(i)], env=process_environment(2), stderr=subprocess.PIPE, text=True)
        for i in range(2)
    ]
    errors = [process.communicate(timeout=120)[1] for process in started]
    assert [process.returncode for process in started] == [0, 0], "\n".join(errors)
    for name, tensor in open_folder(folder).items():
        np.testing.assert_array_equal(open_folder(tmp_path / "out")[name].open(), tensor.open())


def test_equal_weights_have_equal_digests_and_different_weights_do_not(tmp_path):
    for name, seed in (("one", 0), ("same", 0), ("other", 1)):
        save_model(tmp_path / name, CFG, init(CFG, jax.random.key(seed)))
    one, same, other = (sampled_digest(tmp_path / name) for name in ("one", "same", "other"))
    assert one == same != other
