"""Sampling from int8 weights: the copy that a rollout uses, a run that trains with it, and the verbs."""

import functools
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from grpo_jax.cli import main
from grpo_jax.config import EvalConfig
from grpo_jax.errors import UserError
from grpo_jax.models.quantized import quantize
from grpo_jax.models.safetensors_io import open_folder
from grpo_jax.models.transformer import by_layer
from grpo_jax.rollout.programs import Vocabulary, make_generate
from grpo_jax.rollout.sampling import SamplingParams
from grpo_jax.runs.folder import MAY_DIFFER
from grpo_jax.setup import weights
from grpo_jax.setup.policy import open_policy
from grpo_jax.setup.weights import load_sampler, load_trained
from grpo_jax.sharding import hosts
from grpo_jax.sharding.mesh import by_rows, make_mesh
from grpo_jax.sharding.rules import ROLLOUT_RULES, shardings

pytestmark = pytest.mark.usefixtures("shared_programs")

MESHES = ["data=1", "fsdp=8", "fsdp=2,tensor=2", "data=2,fsdp=2,tensor=2"]
P, G, TP, TC, REAL = 8, 4, 6, 8, 37


# ---- the copy


@pytest.fixture
def policy(tiny_model):
    """`policy(mesh, dtype)`: one that samples from int8."""
    return lambda mesh, dtype="float32": open_policy(
        EvalConfig(model=str(tiny_model), mesh=mesh, dtype=dtype), rollout_weights="int8"
    )


def assert_identical(ours, theirs):
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(ours), jax.tree.leaves(theirs)):
        assert a.dtype == b.dtype, path
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b), err_msg=str(path))


def assert_laid(copy, wanted):
    """Each layer as the stacked layers would lie."""
    for layer in copy["layers"]:
        for x, sharding in zip(jax.tree.leaves(layer), jax.tree.leaves(wanted["layers"])):
            cut = NamedSharding(sharding.mesh, PartitionSpec(*sharding.spec[1:]))
            assert x.sharding.is_equivalent_to(cut, x.ndim), (x.sharding, cut)
    embedding, place = copy["embed"]["embedding"].values, wanted["embed"]["embedding"].values
    assert embedding.sharding.is_equivalent_to(place, embedding.ndim)


@pytest.mark.parametrize("mesh", MESHES)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_sampler_copy_is_the_same_on_every_mesh(policy, mesh, dtype):
    """Maxima and roundings: not a bit may differ, wherever the channels are split."""
    opened = policy(mesh, dtype)
    with jax.set_mesh(opened.mesh):
        copy = opened.rollout_copy(load_trained(opened, 0))
    assert_identical(copy, by_layer(quantize(load_trained(policy("data=1"), 0), jnp.dtype(dtype))))
    assert_laid(copy, opened.rollout_shardings())


@pytest.mark.parametrize("mesh", MESHES)
def test_weights_quantised_while_loading_equal_the_quantised_copy(policy, mesh):
    opened = policy(mesh)
    with jax.set_mesh(opened.mesh):
        loaded = load_sampler(opened)
        assert_identical(loaded, opened.rollout_copy(load_trained(opened, 0)))
    assert_laid(loaded, opened.rollout_shardings())


def test_loading_holds_one_unquantised_leaf_at_a_time(policy, monkeypatch):
    """What is on the devices while a leaf is quantised: what is done, and that leaf."""
    opened, real, seen = policy("data=1"), weights._quantized, []
    before = {id(x) for x in jax.live_arrays()}

    def watched(path, x, *rest):
        wide = [
            y for y in jax.live_arrays() if id(y) not in before and y.dtype == jnp.float32 and y.size > 500
        ]
        seen.append(len(wide))
        return real(path, x, *rest)

    monkeypatch.setattr(weights, "_quantized", watched)
    load_sampler(opened)
    assert max(seen) == 1


# ---- the rollout


@pytest.fixture(scope="module")
def on_mesh(tiny, tiny_params):
    """`on_mesh(sizes, int8)`: a rollout on that mesh; each is made once."""
    prompts = np.random.default_rng(0).integers(6, REAL, (P, TP)).astype(np.int32)
    lengths = np.array([5, 1, 3, 2, 4, 6, 2, 3], np.int32)

    @functools.cache
    def run(sizes, int8):
        mesh = make_mesh(dict(sizes))
        params = quantize(tiny_params, jnp.float32) if int8 else tiny_params
        with jax.set_mesh(mesh):
            put = functools.partial(hosts.put, sharding=by_rows(mesh))
            laid = jax.device_put(params, shardings(params, ROLLOUT_RULES, mesh))
            generate = make_generate(tiny, Vocabulary((3, 5), 0, REAL), SamplingParams(), G, TC, mesh)
            uids = np.arange(P, dtype=np.uint32)
            return jax.tree.map(
                hosts.get, generate(laid, put(prompts), put(lengths), put(uids), jax.random.key(1))
            )

    return lambda int8=True, **sizes: run(tuple(sizes.items()), int8)


@pytest.mark.parametrize(
    "sizes", [{"fsdp": 8}, {"fsdp": 2, "tensor": 4}, {"data": 2, "fsdp": 2, "tensor": 2}], ids=str
)
def test_int8_weights_sample_the_same_tokens_on_every_mesh(on_mesh, sizes):
    ours, one = on_mesh(**sizes), on_mesh(data=1)
    np.testing.assert_array_equal(ours.tokens, one.tokens)
    np.testing.assert_array_equal(ours.lengths, one.lengths)
    np.testing.assert_allclose(ours.logprobs, one.logprobs, atol=3e-6)


def test_int8_weights_sample_nearly_the_same_first_tokens(on_mesh):
    """The same random numbers: first tokens, before the rows part, are mostly the same, with nearly their log-probs."""
    ours, theirs = on_mesh(data=1), on_mesh(int8=False, data=1)
    same = ours.tokens[..., 0] == theirs.tokens[..., 0]
    gap = np.abs(ours.logprobs - theirs.logprobs)[..., 0][same]
    assert same.mean() > 0.9
    assert 1e-5 < gap.mean() < 0.1


# ---- a run


INT8 = {"rollout_weights": "int8", "sampler_correction_max": 1.05}


def words_of(tiny_settings, options, folder, **changes):
    """A command that trains."""
    settings = tiny_settings | {
        "output_dir": folder,
        "mesh": "data=1",
        "max_steps": 12,
        "num_generations": 8,
        "learning_rate": 5e-3,
        "lr_scheduler_type": "constant",
    }
    return ["train", *options(settings | changes)]


def start(tiny_settings, options, folder, **changes):
    """Train, and return the metrics of each step."""
    assert main(words_of(tiny_settings, options, folder, **changes)) == 0
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def run(tiny_settings, options, tmp_path_factory):
    """(folder, metrics) of a run that samples from int8."""
    folder = tmp_path_factory.mktemp("int8") / "run"
    return folder, start(tiny_settings, options, folder, **INT8)


def test_a_run_that_samples_from_int8_learns(run):
    rewards = [row["reward"] for row in run[1]]
    assert len(rewards) == 12
    assert np.mean(rewards[-3:]) > np.mean(rewards[:3]) + 0.3
    assert all(math.isfinite(value) for row in run[1] for value in row.values())


def test_the_gap_of_int8_weights_is_logged_and_its_ratio_bounded(run, tiny_settings, options, tmp_path):
    gap, ratio = "sampling/sampling_logp_difference/", "sampling/importance_sampling_ratio/"
    for row in run[1]:
        assert 1e-5 < row[gap + "mean"] < row[gap + "max"] < 1
        assert 0 < row[ratio + "min"] < 1 < row[ratio + "max"] <= 1.05 + 1e-6
    assert any(row[ratio + "max"] > 1.05 - 1e-6 for row in run[1]), "the cap was reached"
    plain = start(tiny_settings, options, tmp_path / "run", max_steps=1, eval_prompts=0)
    assert plain[0][gap + "max"] < 1e-5 < run[1][0][gap + "mean"]


def test_an_int8_cache_has_a_smaller_gap_than_int8_weights(run, tiny_settings, options, tmp_path):
    (row,) = start(
        tiny_settings, options, tmp_path / "run", max_steps=1, eval_prompts=0, rollout_cache="int8"
    )
    gap = "sampling/sampling_logp_difference/"
    assert 1e-5 < row[gap + "mean"] < run[1][0][gap + "mean"]
    assert "sampler_correction: token_truncate" in (tmp_path / "run/config.yaml").read_text()


def test_the_saved_settings_name_the_sampler_correction(run):
    text = (run[0] / "config.yaml").read_text()
    assert "rollout_weights: int8" in text
    assert "sampler_correction: token_truncate" in text


def test_a_run_is_not_resumed_with_other_rollout_weights(run, tiny_settings, options, capsys):
    assert "rollout_weights" not in MAY_DIFFER
    assert main(words_of(tiny_settings, options, run[0])) == 2
    message = capsys.readouterr().err
    assert "rollout_weights is 'int8' there and 'auto' here" in message


def test_the_exported_weights_are_not_quantised(run):
    """The master weights: float32, and not on a grid of 255 values a channel."""
    tensors = open_folder(run[0] / "hf")
    gate = np.asarray(tensors["model.layers.0.mlp.gate_proj.weight"].open())
    assert gate.dtype == np.float32
    assert len(np.unique(gate / np.abs(gate).max(1, keepdims=True))) > 256


# ---- the verbs


def test_generate_and_eval_sample_from_int8(tiny_model, tiny_settings, options, capsys, tmp_path):
    prompt = {"model": tiny_model, "prompt": "say a", "max_completion_length": 8, "rollout_weights": "int8"}
    assert main(["generate", *options(prompt | {"rollout_cache": "int8"})]) == 0
    assert capsys.readouterr().out.strip()
    held_out = {
        "model": tiny_model,
        "task": tiny_settings["dataset"],
        "rewards": tiny_settings["rewards"],
        "reward_workers": 1,
        "max_completion_length": 8,
        "greedy": "false",
        "output": tmp_path / "eval.json",
    }
    found = []
    for forms in ({}, {"rollout_weights": "int8"}, {"rollout_cache": "int8"}):
        assert main(["eval", *options(held_out | forms)]) == 0
        found.append(json.loads((tmp_path / "eval.json").read_text())["sampled"])
    for other in found[1:]:
        assert found[0] != other, "it has an effect"
        assert found[0]["reward"] == pytest.approx(other["reward"], abs=0.5), "and a small one"


def test_an_unknown_form_is_refused():
    for field in ("rollout_weights", "rollout_cache"):
        with pytest.raises(UserError, match=f"{field} = 'int4': must be 'auto' or 'int8'"):
            EvalConfig(model="m", **{field: "int4"})
