"""Meshes and rule tables: every parameter has one place, and what does not divide is refused in a sentence."""

import dataclasses
import functools

import jax
import numpy as np
import pytest
from jax.sharding import AxisType, PartitionSpec

from grpo_jax.errors import UserError
from grpo_jax.models.config import PUBLISHED
from grpo_jax.models.transformer import abstract_params, sampler_weights
from grpo_jax.sharding.mesh import AXES, by_rows, check_rows, describe, everywhere, make_mesh, row_shards
from grpo_jax.sharding.rules import ROLLOUT_RULES, TRAIN_RULES, shardings, specs

TABLES = {"train": TRAIN_RULES, "rollout": ROLLOUT_RULES}
FORMS = ["auto", "int8"]
in_form = lambda cfg, form: jax.eval_shape(
    lambda p: sampler_weights(p, jax.numpy.bfloat16, form), abstract_params(cfg)
)
is_spec = lambda x: isinstance(x, PartitionSpec)


# ---- meshes


def test_default_mesh_puts_every_device_on_fsdp():
    mesh = make_mesh()
    assert dict(mesh.shape) == {"data": 1, "fsdp": 8, "tensor": 1}
    assert mesh.axis_names == AXES
    assert set(mesh.axis_types) == {AxisType.Auto}


@pytest.mark.parametrize(
    ("sizes", "shape"),
    [
        ({"data": 8}, (8, 1, 1)),
        ({"fsdp": 2, "tensor": 4}, (1, 2, 4)),
        ({"data": 2, "fsdp": 2, "tensor": 2}, (2, 2, 2)),
        ({"tensor": 3}, (1, 1, 3)),
    ],
    ids=str,
)
def test_meshes_have_the_sizes_asked_for(sizes, shape):
    mesh = make_mesh(sizes)
    assert mesh.devices.shape == shape
    assert row_shards(mesh) == shape[0] * shape[1]
    assert len(set(mesh.devices.ravel())) == np.prod(shape)


def test_more_places_than_devices_are_refused_with_both_numbers():
    with pytest.raises(UserError, match=r"mesh = data=4,fsdp=4,tensor=1 has 16 places.* 8 devices"):
        make_mesh({"data": 4, "fsdp": 4})


def test_fewer_places_than_devices_are_refused_on_several_hosts(monkeypatch):
    """A host whose devices lie outside the mesh could only wait for the others for ever."""
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with pytest.raises(UserError, match="choose sizes whose product is 8"):
        make_mesh({"data": 4})


def test_mesh_is_described_as_it_is_written():
    assert describe({"tensor": 4, "data": 2}) == "data=2,fsdp=1,tensor=4"


def test_rows_are_sharded_over_data_and_fsdp():
    mesh = make_mesh({"data": 2, "fsdp": 2, "tensor": 2})
    assert by_rows(mesh).shard_shape((8, 3)) == (2, 3)
    assert everywhere(mesh).shard_shape((8, 3)) == (8, 3)


def test_rows_that_do_not_divide_are_refused_with_the_fix():
    mesh = make_mesh({"data": 2, "fsdp": 2, "tensor": 2})
    check_rows(mesh, "prompts_per_step", 12)
    with pytest.raises(UserError, match=r"prompts_per_step = 6 .*use a multiple of 4"):
        check_rows(mesh, "prompts_per_step", 6)


# ---- rules


@pytest.mark.parametrize("table", TABLES.values(), ids=TABLES)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("size", PUBLISHED)
def test_every_parameter_of_every_published_size_has_one_rule(size, tied, form, table):
    cfg = dataclasses.replace(PUBLISHED[size], tie_word_embeddings=tied)
    params = in_form(cfg, form)
    found = specs(params, table)
    assert jax.tree.structure(found, is_leaf=is_spec) == jax.tree.structure(params)
    shardings(params, table, make_mesh({"fsdp": 4, "tensor": 2}))  # two key heads at least: it must divide


@pytest.mark.parametrize("table", TABLES.values(), ids=TABLES)
def test_every_rule_matches_some_parameter(tiny, table):
    """A rule that nothing matches is a typing error, or a parameter that has been renamed."""
    both = [in_form(tiny, form) for form in FORMS]
    for left_out in range(len(table)):
        with pytest.raises(ValueError, match="matches 0 sharding rules"):
            specs(both, _anywhere(table[:left_out] + table[left_out + 1 :]))


def _anywhere(table):
    """The rules for trees in a list."""
    return tuple((rf"\d/{pattern}", spec) for pattern, spec in table)


def test_an_overlap_of_rules_is_caught(tiny):
    with pytest.raises(ValueError, match=r"layers/gate/kernel .* matches 2 sharding rules"):
        specs(abstract_params(tiny), (*TRAIN_RULES, (r"layers/gate/kernel", PartitionSpec(None, None, None))))


def test_a_rule_of_the_wrong_rank_is_caught(tiny):
    short = tuple((p, PartitionSpec(None) if p.startswith("head/kernel(") else s) for p, s in TRAIN_RULES)
    with pytest.raises(ValueError, match="head/kernel"):
        specs(abstract_params(tiny), short)


def test_an_unknown_parameter_is_caught(tiny):
    with pytest.raises(ValueError, match=r"layers/q_norm/scale"):
        specs(
            abstract_params(tiny)
            | {"layers": {"q_norm": {"scale": jax.ShapeDtypeStruct((2, 8), "float32")}}},
            TRAIN_RULES,
        )


def test_rollouts_shard_matrices_over_tensor_and_training_over_fsdp_too(tiny):
    params = abstract_params(tiny)
    axes = lambda table: {
        "/".join(key.key for key in path): {axis for axis in spec if axis}
        for path, spec in jax.tree_util.tree_leaves_with_path(specs(params, table), is_leaf=is_spec)
    }
    train, rollout = axes(TRAIN_RULES), axes(ROLLOUT_RULES)
    for name, used in train.items():
        if name.endswith(("kernel", "embedding")):
            assert used == {"fsdp", "tensor"}, name
        assert rollout[name] == used - {"fsdp"}, name


@pytest.mark.parametrize("table", TABLES.values(), ids=TABLES)
def test_quantised_values_are_sharded_as_the_matrix_and_scales_as_outputs(tiny, table):
    """So that a device has the scales of the channels that it computes, and no product needs another's."""
    plain, found = specs(abstract_params(tiny), table), specs(in_form(tiny, "int8"), table)
    shapes = in_form(tiny, "int8")
    for path, spec in jax.tree_util.tree_leaves_with_path(plain, is_leaf=is_spec):
        if path[-1].key in ("kernel", "embedding"):
            at = lambda tree, path=path: functools.reduce(lambda x, key: x[key.key], path, tree)
            kept = [axis if n > 1 else None for n, axis in zip(at(shapes).scale.shape, spec)]
            assert (at(found).values, at(found).scale) == (spec, PartitionSpec(*kept)), path


def test_memory_of_the_weights_falls_with_the_mesh():
    """72B: all but norms and biases is split over all 8 places."""
    params = abstract_params(PUBLISHED["72b"])
    laid = shardings(params, TRAIN_RULES, make_mesh({"fsdp": 4, "tensor": 2}))
    size = lambda x, shape: np.prod(shape, dtype=float) * x.dtype.itemsize
    whole = sum(size(x, x.shape) for x in jax.tree.leaves(params))
    part = sum(
        size(x, s.shard_shape(x.shape)) for x, s in zip(jax.tree.leaves(params), jax.tree.leaves(laid))
    )
    assert part / whole == pytest.approx(1 / 8, rel=1e-3)


def test_key_heads_that_do_not_divide_are_refused_with_the_fix():
    """Qwen2.5-0.5B has 14 query heads and 2 key heads: four ways of tensor splitting cannot be."""
    mesh = make_mesh({"fsdp": 2, "tensor": 4})
    with pytest.raises(UserError, match=r"layers/k/.* dimension of 2 .* tensor=4; choose a tensor size that"):
        shardings(abstract_params(PUBLISHED["0.5b"]), TRAIN_RULES, mesh)
