"""Reward models score as transformers' classifiers do, to the last bits of float32; wrong folders are refused."""

import json
import shutil

import jax
import numpy as np
import pytest

from grpo_jax.errors import UserError
from grpo_jax.models.classifier import (
    abstract_classifier,
    classifier_scores,
    load_classifier,
    open_classifier,
)
from grpo_jax.models.safetensors_io import open_folder
from grpo_jax.sharding.mesh import make_mesh
from grpo_jax.sharding.rules import TRAIN_RULES, shardings

LENGTHS = (1, 5, 12, 16)


@pytest.fixture(scope="module")
def opened(reward_model):
    cfg = open_classifier(reward_model)
    return cfg, load_classifier(reward_model, cfg, None, "float32")


@pytest.fixture(scope="module")
def rows():
    """(tokens [4,16], right-padded with 0; lengths)"""
    rng = np.random.default_rng(1)
    tokens = rng.integers(3, 104, (len(LENGTHS), 16))
    return np.where(np.arange(16) < np.array(LENGTHS)[:, None], tokens, 0), np.array(LENGTHS)


@pytest.fixture(scope="module")
def theirs(reward_model, rows):
    """The scores that transformers computes."""
    import torch
    from transformers import AutoModelForSequenceClassification

    model = AutoModelForSequenceClassification.from_pretrained(reward_model).eval()
    tokens, lengths = rows
    mask = np.arange(16) < lengths[:, None]
    with torch.inference_mode():
        given = {"input_ids": torch.tensor(tokens), "attention_mask": torch.tensor(mask.astype(int))}
        return model(**given).logits[:, 0].numpy()


def test_scores_equal_those_of_transformers(opened, rows, theirs):
    cfg, params = opened
    ours = jax.jit(classifier_scores, static_argnums=0)(cfg, params, rows[0], rows[1] - 1)
    assert ours.dtype == np.float32
    np.testing.assert_allclose(ours, theirs, rtol=2e-5, atol=2e-5)
    assert np.ptp(theirs) > 0.5, "the rows' scores hardly differ, so equality would prove little"


def test_a_sharded_model_gives_the_same_scores(reward_model, opened, rows, theirs):
    cfg, _ = opened
    mesh = make_mesh({"data": 2, "fsdp": 2})
    where = shardings(abstract_classifier(cfg), TRAIN_RULES, mesh)
    params = load_classifier(reward_model, cfg, where, "float32")
    assert params["score"]["kernel"].sharding.shard_shape((16, 1)) == (8, 1)
    with jax.set_mesh(mesh):
        ours = jax.jit(classifier_scores, static_argnums=0)(cfg, params, rows[0], rows[1] - 1)
    np.testing.assert_allclose(ours, theirs, rtol=2e-5, atol=2e-5)


def test_the_parameters_have_the_declared_shapes(opened):
    cfg, params = opened
    shapes = abstract_classifier(cfg, "bfloat16")
    assert jax.tree.map(lambda x: x.shape, shapes) == jax.tree.map(lambda x: x.shape, params)
    assert {x.dtype for x in jax.tree.leaves(shapes)} == {np.dtype("bfloat16")}


# ---- wrong folders ----


@pytest.fixture
def folder(reward_model, tmp_path):
    shutil.copytree(reward_model, tmp_path / "copy")
    return tmp_path / "copy"


def rewritten(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def resaved(folder, **tensors):
    from safetensors.numpy import save_file

    found = {name: np.array(tensor.open()) for name, tensor in open_folder(folder).items()}
    found |= tensors
    save_file({name: x for name, x in found.items() if x is not None}, folder / "model.safetensors")


def test_a_language_model_is_refused_as_a_reward_model(tiny_model):
    message = "architectures says Qwen2ForCausalLM; a reward model is a Qwen2ForSequenceClassification"
    with pytest.raises(UserError, match=message):
        open_classifier(tiny_model)


def test_another_architecture_is_refused(folder):
    rewritten(folder, model_type="llama", architectures=["LlamaForSequenceClassification"])
    with pytest.raises(UserError, match="model_type 'llama' is not supported"):
        open_classifier(folder)


def test_a_score_with_two_labels_is_refused(folder):
    resaved(folder, **{"score.weight": np.zeros((2, 16), np.float32)})
    with pytest.raises(UserError, match=r"score.weight has 2 rows, one for each label \(num_labels\)"):
        open_classifier(folder)


def test_a_missing_score_tensor_is_named(folder):
    resaved(folder, **{"score.weight": None})
    with pytest.raises(UserError, match=r"tensor score.weight of shape \[1, 16\] is missing"):
        open_classifier(folder)


def test_an_unexpected_tensor_is_named(folder):
    resaved(folder, extra=np.zeros((3, 3), np.float32))
    with pytest.raises(UserError, match=r"tensor extra of shape \[3, 3\] has no place"):
        open_classifier(folder)
