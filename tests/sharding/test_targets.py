"""The real programs compile for TPUs and GPUs that are not here. Skips where the plan extra is absent."""

import dataclasses
import functools
import importlib.util
import math
import os
import re

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from grpo_jax.errors import UserError
from grpo_jax.learner.logprobs import LogprobSettings
from grpo_jax.learner.objective import GRPO
from grpo_jax.learner.optimizer import make_optimizer, state_shardings
from grpo_jax.learner.schedules import Schedule
from grpo_jax.learner.update import make_score, make_update
from grpo_jax.models.attention import causal
from grpo_jax.models.config import PUBLISHED
from grpo_jax.models.kernels import causal_attention
from grpo_jax.models.transformer import abstract_params
from grpo_jax.plans import abstract_arguments
from grpo_jax.rollout.budget import Demand
from grpo_jax.rollout.programs import Vocabulary, make_generate
from grpo_jax.rollout.sampling import SamplingParams
from grpo_jax.sharding.mesh import ROWS
from grpo_jax.sharding.targets import MissingExtra, compiler_options, topology_mesh

TARGETS = ("v5e:2x4", "h200:8")
P, G, TP, TC = 8, 2, 16, 16  # prompts, completions a prompt, and their tokens
SIZES = {"fsdp": 4, "tensor": 2}
OPTIMIZER = make_optimizer(Schedule(1e-6, "linear", 0, 10))


@pytest.fixture(params=TARGETS)
def target(request):
    """A target whose compiler is installed."""
    try:
        topology_mesh(request.param)
    except MissingExtra as absent:
        pytest.skip(str(absent))
    if request.param.startswith("h"):
        pytest.importorskip("nvidia.cudnn", reason="cuDNN is absent: pip install 'grpo-jax[plan]'")
    return request.param


@functools.cache
def compiled(target, name, cfg, dtype="bfloat16"):
    """The program called `name` for a rollout of P x G rows on a mesh of SIZES."""
    mesh = topology_mesh(target, SIZES)
    logprob_settings = LogprobSettings(dtype=dtype, num_tokens=cfg.vocab_size - 3, chunk=64)
    if name == "generate":
        program = make_generate(cfg, Vocabulary((3, 5), 0, cfg.vocab_size - 3), SamplingParams(), G, TC, mesh)
        arguments = (
            abstract_arguments.sampler_copy(cfg, mesh, dtype),
            *abstract_arguments.prompts(mesh, P, TP),
        )
    elif name == "score":
        program = make_score(cfg, logprob_settings, 2, mesh)
        master = abstract_arguments.weights(cfg, mesh, "float32")
        arguments = master, abstract_arguments.rows(mesh, P * G, TP, TC)
    else:
        state = state_shardings(abstract_params(cfg), OPTIMIZER, mesh)
        program = make_update(cfg, GRPO(beta=0.1), logprob_settings, OPTIMIZER, 2, state, mesh)
        batch = abstract_arguments.batch(mesh, P * G, TP, TC, old=True, reference=True, ends=1)
        arguments = abstract_arguments.train_state(cfg, OPTIMIZER, mesh), batch
    return abstract_arguments.compile_for(target, mesh, program, *arguments)


@pytest.mark.parametrize("name", ["generate", "score", "update"])
def test_tiny_programs_compile_without_the_hardware(target, name, tiny):
    assert compiled(target, name, tiny).memory_analysis().temp_size_in_bytes > 0


def test_the_update_of_a_published_shape_compiles_without_the_hardware(target):
    two_layers = dataclasses.replace(PUBLISHED["0.5b"], num_layers=2)
    assert compiled(target, "update", two_layers).memory_analysis().temp_size_in_bytes > 0


def test_update_reuses_the_memory_of_the_donated_state(target, tiny):
    state = abstract_arguments.train_state(tiny, OPTIMIZER, topology_mesh(target, SIZES))
    on_a_device = lambda x: math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize
    memory = compiled(target, "update", tiny).memory_analysis()
    assert memory.alias_size_in_bytes >= sum(map(on_a_device, jax.tree.leaves(state)))


@pytest.mark.parametrize("form", ["auto", "int8"])
def test_generate_holds_its_cache_once(target, form):
    """Threaded through a loop carelessly the cache would exist two or three times; and one in int8 is never written
    out in bfloat16."""
    cfg, mesh = dataclasses.replace(PUBLISHED["1.5b"], num_layers=12), topology_mesh(target)
    samples, width = 8, 4096
    program = make_generate(
        cfg, Vocabulary((151645, 151643), 0, 151665), SamplingParams(), samples, width, mesh, form
    )
    weights, prompts = (
        abstract_arguments.sampler_copy(cfg, mesh, "bfloat16"),
        abstract_arguments.prompts(mesh, P, TP),
    )
    memory = abstract_arguments.compile_for(target, mesh, program, weights, *prompts).memory_analysis()
    demand = Demand(
        cfg=cfg,
        dtype="bfloat16",
        prompts=P,
        num_generations=samples,
        max_completion_length=width,
        prompt_width=TP,
        shards=8,
        cache_dtype=form,
    )
    cache = demand.cache_bytes(demand.size())
    assert memory.temp_size_in_bytes < 1.5 * cache
    assert form == "int8" or cache <= memory.temp_size_in_bytes  # one in int8 may fit into a TPU's own memory


def test_int8_weights_are_never_written_out_in_bfloat16(target):
    """Half the bytes to hold; and while it decodes no matrix exists in bfloat16, be it a layer's or the head."""
    cfg, mesh = PUBLISHED["1.5b"], topology_mesh(target)
    program = make_generate(cfg, Vocabulary((151645, 151643), 0, 151665), SamplingParams(), G, 128, mesh)
    plain, int8 = (
        abstract_arguments.compile_for(
            target,
            mesh,
            program,
            abstract_arguments.sampler_copy(cfg, mesh, "bfloat16", form),
            *abstract_arguments.prompts(mesh, P, TP),
        ).memory_analysis()
        for form in ("auto", "int8")
    )
    assert int8.argument_size_in_bytes < 0.51 * plain.argument_size_in_bytes
    smallest = cfg.hidden_size * cfg.num_kv_heads * cfg.head_dim * 2  # bytes in bfloat16: a layer's k
    assert int8.temp_size_in_bytes < plain.temp_size_in_bytes + smallest


def test_half_precision_attention_is_cudnn_on_gpus_only(target, tiny):
    assert ("__cudnn$fmha" in compiled(target, "update", tiny).as_text()) == target.startswith("h")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_cudnn_is_used_for_half_precision_on_gpus_only(target, dtype):
    attend = lambda x: causal(0, x, x, x, None)[0]
    with jax.set_mesh(topology_mesh(target)):
        traced = str(jax.make_jaxpr(attend)(jax.ShapeDtypeStruct((8, 4, 2, 8), dtype)))
    assert ("dot_product_attention_fwd" in traced) == (target.startswith("h") and dtype == "bfloat16")


@pytest.mark.parametrize(("sizes", "fused"), [({"fsdp": 8}, True), (SIZES, False)], ids=str)
def test_a_rollout_prefills_with_cudnn_unless_tensor_is_split(target, sizes, fused, tiny):
    """cuDNN's attention does not compile there."""
    if not target.startswith("h"):
        pytest.skip("cuDNN is for GPUs")
    mesh = topology_mesh(target, sizes)
    program = make_generate(tiny, Vocabulary((3, 5), 0, tiny.vocab_size), SamplingParams(), G, TC, mesh)
    arguments = (
        abstract_arguments.sampler_copy(tiny, mesh, "bfloat16"),
        *abstract_arguments.prompts(mesh, P, TP),
    )
    assert (
        "__cudnn$fmha" in abstract_arguments.compile_for(target, mesh, program, *arguments).as_text()
    ) == fused


@pytest.mark.parametrize("size", PUBLISHED)
@pytest.mark.parametrize("kernel", ["auto", "xla"])
def test_every_head_layout_has_its_kernel_and_gradient(target, size, kernel):
    """Heads split over `tensor` where they divide; rows of 300 are padded to whole blocks on TPUs."""
    cfg, mesh = PUBLISHED[size], topology_mesh(target, SIZES)
    rows = NamedSharding(mesh, PartitionSpec(ROWS, None, "tensor"))
    array = lambda n: jax.ShapeDtypeStruct((8, 300, n, cfg.head_dim), jnp.bfloat16, sharding=rows)
    total = lambda *qkv: causal_attention(*qkv, kernel).astype(jnp.float32).sum()
    given = array(cfg.num_heads), array(cfg.num_kv_heads), array(cfg.num_kv_heads)
    with jax.set_mesh(mesh):
        lowered = jax.jit(jax.grad(total, argnums=(0, 1, 2))).lower(*given)
    text = lowered.compile(compiler_options=compiler_options(target)).as_text()
    assert ("__cudnn$fmha" in text, "splash_mha" in text) == (
        kernel == "auto" and target.startswith("h"),
        kernel == "auto" and target.startswith("v"),
    )
    assert not re.findall("all-gather|all-to-all|collective-permute", text)


def test_packed_rows_use_the_same_kernels(target):
    """With their gradients, rows split over the mesh: no device needs another's segments."""
    mesh = topology_mesh(target, SIZES)
    on = lambda *axes: NamedSharding(mesh, PartitionSpec(ROWS, None, *axes))
    array = lambda n: jax.ShapeDtypeStruct((8, 300, n, 64), jnp.bfloat16, sharding=on("tensor"))
    segments = jax.ShapeDtypeStruct((8, 300), jnp.int32, sharding=on())
    total = lambda *qkv, segments: causal_attention(*qkv, "auto", segments).astype(jnp.float32).sum()
    with jax.set_mesh(mesh):
        lowered = jax.jit(jax.grad(total, argnums=(0, 1, 2))).lower(
            array(4), array(2), array(2), segments=segments
        )
    text = lowered.compile(compiler_options=compiler_options(target)).as_text()
    assert ("__cudnn$fmha" in text, "splash_mha" in text) == (target.startswith("h"), target.startswith("v"))
    assert not re.findall("all-gather|all-to-all|collective-permute", text)


def test_a_rollout_prefills_long_prompts_with_splash_where_tensor_is_split(tiny):
    """Rows are split by `jax.shard_map` already there, and the heads by another one within."""
    try:
        mesh = topology_mesh("v5e:2x4", SIZES)
    except MissingExtra as absent:
        pytest.skip(str(absent))
    program = make_generate(tiny, Vocabulary((3, 5), 0, tiny.vocab_size), SamplingParams(), G, TC, mesh)
    arguments = (
        abstract_arguments.sampler_copy(tiny, mesh, "bfloat16"),
        *abstract_arguments.prompts(mesh, P, 256),
    )
    assert "splash_mha" in abstract_arguments.compile_for("v5e:2x4", mesh, program, *arguments).as_text()


def test_no_device_attends_over_the_rows_of_others(target, tiny):
    """Left to itself the compiler gathers the rows and splits D, as the weights are split."""
    rows, T, H = P * G // 2, TP + TC, tiny.head_dim
    whole = rf"bf16\[{rows},(?:\d+,{T}|{T},\d+),{H}\]"
    assert not re.findall(whole, compiled(target, "update", tiny).as_text())


def test_cpu_never_traces_cudnn(monkeypatch):
    """cuDNN's attention raises while it is traced where the library is absent."""

    def attention(q, k, v, *, mask, is_causal, implementation):
        assert implementation == "xla"
        return q

    monkeypatch.setattr(jax.nn, "dot_product_attention", attention)
    x = jnp.ones((2, 4, 2, 8), jnp.bfloat16)
    jax.jit(lambda x: causal(jnp.int32(0), x, x, x, None)[0])(x)


@pytest.mark.parametrize(
    ("target", "devices"), [("v4:2x2x1", 4), ("v5p:2x2x1", 4), ("v6e:2x2", 4), ("tpu7x:2x2x1", 8)]
)
def test_a_target_has_as_many_devices_as_jax_shows_there(target, devices):
    """A chip of v4 and v5p is one device, a chip of tpu7x two."""
    try:
        assert topology_mesh(target).size == devices
    except MissingExtra as absent:
        pytest.skip(str(absent))


@pytest.mark.parametrize(
    ("target", "sizes", "message"),
    [
        ("v5:2x4", None, "did you mean 'v5"),
        ("h100", None, "such as h100:8"),
        ("v5e:2by4", None, "such as v5e:2x4"),
        ("v5e:2x3", None, "v5e:2x3"),
        ("v5e:2x4", {"fsdp": 4}, "4 places, but v5e:2x4 has 8 devices"),
        ("h100:2x2x2", None, "hosts x devices"),
    ],
)
def test_impossible_targets_are_refused_in_a_sentence(target, sizes, message):
    with pytest.raises(UserError) as refused:
        topology_mesh(target, sizes)
    if isinstance(refused.value, MissingExtra):
        pytest.skip(str(refused.value))
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("target", TARGETS)
def test_a_missing_compiler_is_named_with_its_fix(target, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtra, match=r"pip install 'grpo-jax\[plan\]'"):
        topology_mesh(target)


def test_describing_a_target_leaves_the_environment_alone(target):
    before = dict(os.environ)
    topology_mesh(target)
    assert dict(os.environ) == before


def test_two_hosts_of_gpus_make_one_mesh():
    try:
        mesh = topology_mesh("h100:2x8", {"data": 2, "fsdp": 8})
    except MissingExtra as absent:
        pytest.skip(str(absent))
    assert mesh.devices.shape == (2, 8, 1)
