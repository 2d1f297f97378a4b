"""Hugging Face -> JAX -> Hugging Face, compared with transformers: the same bits, the same logits."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from grpo_jax.errors import UserError
from grpo_jax.models import transformer
from grpo_jax.models.hf import load_config, load_eos_ids, load_params, save_model
from grpo_jax.rollout.programs import Vocabulary, make_generate
from grpo_jax.rollout.sampling import SamplingParams

torch = pytest.importorskip("torch")
from safetensors.torch import load_file  # noqa: E402
from transformers import AutoModelForCausalLM, GenerationConfig, Qwen2Config, Qwen2ForCausalLM  # noqa: E402


@dataclasses.dataclass(frozen=True)
class Shape:
    heads: int
    kv_heads: int
    width: int = 8  # of a head
    layers: int = 2
    tied: bool = False
    theta: float = 1e6
    eps: float = 1e-6
    dtype: str = "float32"
    shard: str = "5GB"
    yarn: dict | None = None


YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}
SHAPES = [
    Shape(heads=2, kv_heads=2, dtype="float16"),
    Shape(heads=4, kv_heads=2, tied=True, dtype="bfloat16"),
    Shape(heads=3, kv_heads=1, width=4, layers=3, theta=1e4, shard="20KB"),
    Shape(heads=8, kv_heads=2, eps=1e-5, dtype="bfloat16", shard="20KB"),
    Shape(heads=5, kv_heads=1, tied=True, layers=1),
    Shape(heads=12, kv_heads=2, width=6, dtype="float16", shard="40KB"),
    Shape(heads=14, kv_heads=2, width=4, tied=True, yarn=YARN),
    Shape(heads=4, kv_heads=4, dtype="bfloat16", yarn=YARN | {"attention_factor": 1.3, "beta_fast": 4.0}),
]


def save_checkpoint(folder, shape: Shape):
    """A random Qwen2 by transformers. Biases and norms too: their usual initial values would hide a swap."""
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=96,
        hidden_size=shape.heads * shape.width,
        intermediate_size=40,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        max_position_embeddings=64,
        rms_norm_eps=shape.eps,
        tie_word_embeddings=shape.tied,
        rope_parameters={"rope_type": "default", "rope_theta": shape.theta} | (shape.yarn or {}),
        eos_token_id=7,
    )
    model = Qwen2ForCausalLM(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.3)
    model.to(getattr(torch, shape.dtype)).save_pretrained(folder, max_shard_size=shape.shard)
    GenerationConfig(eos_token_id=[7, 9], pad_token_id=9).save_pretrained(folder)
    return folder


def tensors_of(folder):
    return {name: t for file in sorted(folder.glob("*.safetensors")) for name, t in load_file(file).items()}


def assert_same_bits(one, other):
    assert one.keys() == other.keys()
    for name in one:
        assert one[name].dtype == other[name].dtype, name
        assert torch.equal(one[name], other[name]), name


def their_logits(folder, tokens, dtype=torch.float32):
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, attn_implementation="eager")
    with torch.no_grad():
        return model(torch.tensor(tokens)).logits


ALL = pytest.mark.parametrize("number", range(len(SHAPES)))


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return [save_checkpoint(tmp_path_factory.mktemp("model"), shape) for shape in SHAPES]


@ALL
def test_round_trip_through_float32_is_bit_equal(folders, number, tmp_path):
    source, out = folders[number], tmp_path / "out"
    cfg = load_config(source)
    save_model(out, cfg, load_params(source, cfg), source=source, max_shard_bytes=30e3)
    assert_same_bits(tensors_of(source), tensors_of(out))
    for name in ("config.json", "generation_config.json"):
        assert (out / name).read_bytes() == (source / name).read_bytes()


@ALL
def test_logits_equal_those_of_transformers(folders, number):
    """On a wrong table entry, transpose, bias, epsilon or rotary frequency the logits differ by far more."""
    source = folders[number]
    cfg = load_config(source)
    tokens = np.random.default_rng(0).integers(0, cfg.vocab_size, (2, 40))
    positions = jnp.broadcast_to(jnp.arange(40), (2, 40))

    @jax.jit
    def forward(params, tokens):
        hidden, _ = transformer.hidden_states(cfg, params, tokens, positions)
        return transformer.head_logits(cfg, params, hidden)

    ours = forward(load_params(source, cfg), jnp.asarray(tokens))
    theirs = their_logits(source, tokens).numpy()
    assert np.abs(ours - theirs).max() <= 1e-4 * np.abs(theirs).max()


@ALL
def test_transformers_opens_the_export_and_computes_the_same(folders, number, tmp_path):
    source, out = folders[number], tmp_path / "out"
    cfg = load_config(source)
    save_model(out, cfg, load_params(source, cfg), source=None, dtype=SHAPES[number].dtype)
    tokens = np.arange(48).reshape(2, 24)
    assert load_config(out) == cfg
    assert torch.equal(their_logits(out, tokens, "auto"), their_logits(source, tokens, "auto"))


@pytest.mark.parametrize("number", [0, 3])
def test_the_export_gives_the_same_greedy_tokens_in_transformers_and_here(folders, number, tmp_path, mesh_1):
    source, out = folders[number], tmp_path / "out"
    cfg = load_config(source)
    save_model(out, cfg, load_params(source, cfg), source=source)
    prompt = np.arange(10, 22)[None]
    model = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32)
    theirs = model.generate(torch.tensor(prompt), do_sample=False, max_new_tokens=12)[0, 12:].tolist()
    vocabulary = Vocabulary(load_eos_ids(out), 9, cfg.vocab_size)
    generate = make_generate(cfg, vocabulary, SamplingParams(temperature=0.0), 1, 12, mesh_1)
    with jax.set_mesh(mesh_1):
        drawn = generate(
            load_params(out, cfg),
            jnp.asarray(prompt, jnp.int32),
            jnp.asarray([12]),
            jnp.zeros(1, jnp.uint32),
            jax.random.key(0),
        )
    assert drawn.tokens[0, 0, : int(drawn.lengths[0, 0])].tolist() == theirs


def test_loaded_parameters_have_the_models_tree_shapes_and_dtypes(folders):
    """A leaf too many, too few or misshapen would fail inside the compiled forward, far from its cause."""
    for folder in folders[:2]:
        cfg = load_config(folder)
        shapes = jax.tree.map(lambda x: (x.shape, x.dtype), load_params(folder, cfg))
        assert shapes == jax.tree.map(lambda x: (x.shape, x.dtype), transformer.abstract_params(cfg))


def test_loading_in_the_files_own_dtype_keeps_bits(folders, tmp_path):
    source, out = folders[1], tmp_path / "out"  # bfloat16
    cfg = load_config(source)
    params = load_params(source, cfg, dtype="bfloat16")
    assert params["norm"]["scale"].dtype == jnp.bfloat16
    save_model(out, cfg, params)
    assert_same_bits(tensors_of(source), tensors_of(out))
    assert json.loads((out / "config.json").read_text())["torch_dtype"] == "bfloat16"


def test_a_requested_dtype_is_written_to_tensors_and_config(folders, tmp_path):
    source, out = folders[1], tmp_path / "out"
    cfg = load_config(source)
    save_model(out, cfg, load_params(source, cfg), source=source, dtype="float32")
    assert {t.dtype for t in tensors_of(out).values()} == {torch.float32}
    assert json.loads((out / "config.json").read_text())["dtype"] == "float32"
    assert load_config(out) == cfg


def test_mixed_dtypes_are_exported_unchanged(folders, tmp_path):
    """Some fine-tuning tools keep norms in float32 beside bfloat16 matrices."""
    from safetensors.torch import save_file

    source, out = tmp_path / "source", tmp_path / "out"
    source.mkdir()
    tensors = {n: t.float() if "norm" in n else t for n, t in tensors_of(folders[1]).items()}
    save_file(tensors, source / "model.safetensors", metadata={"format": "pt"})
    (source / "config.json").write_bytes((folders[1] / "config.json").read_bytes())
    cfg = load_config(source)
    save_model(out, cfg, load_params(source, cfg), source=source)
    assert_same_bits(tensors, tensors_of(out))


def test_shards_stay_within_the_limit_and_the_index_is_complete(folders, tmp_path):
    source, out = folders[2], tmp_path / "out"
    cfg = load_config(source)
    save_model(out, cfg, load_params(source, cfg), source=source, max_shard_bytes=6000)
    index = json.loads((out / "model.safetensors.index.json").read_text())
    shards = sorted(out.glob("*.safetensors"))
    assert len(shards) > 2
    assert {s.name for s in shards} == set(index["weight_map"].values())
    assert set(index["weight_map"]) == set(tensors_of(source))
    sizes = [sum(t.nbytes for t in load_file(shard).values()) for shard in shards]
    assert max(sizes) <= 6000
    assert index["metadata"]["total_size"] == sum(sizes)


def test_a_folder_that_is_not_empty_is_never_overwritten(folders, tmp_path):
    cfg = load_config(folders[4])
    params = load_params(folders[4], cfg)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("the only copy")
    with pytest.raises(UserError, match="not an empty folder"):
        save_model(tmp_path / "full", cfg, params)
    assert [p.name for p in tmp_path.rglob("*")] == ["full", "thesis.txt"]
    (tmp_path / "empty").mkdir()
    save_model(tmp_path / "empty", cfg, params)
    assert (tmp_path / "empty" / "model.safetensors").is_file()


def test_a_failed_export_leaves_nothing_behind(folders, tmp_path):
    cfg = load_config(folders[4])
    params = load_params(folders[4], cfg)
    params["norm"]["scale"] = params["norm"]["scale"] * 1e30
    with pytest.raises(UserError, match=r"model\.norm\.weight: values beyond the range of float16"):
        save_model(tmp_path / "out", cfg, params, dtype="float16")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="could not be written"):
        save_model(tmp_path / "file" / "out", cfg, params)
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_a_source_of_another_shape_is_refused(folders, tmp_path):
    cfg = load_config(folders[0])
    params = load_params(folders[0], cfg)
    with pytest.raises(UserError, match="describes another model"):
        save_model(tmp_path / "out", cfg, params, source=folders[1])
    with pytest.raises(UserError, match="int8"):
        save_model(tmp_path / "out", cfg, params, dtype="int8")
