"""The verb `plan`, on processors that stand for the target: the same programs and tables without its compilers."""

import contextlib
import functools
import io
import json
import math
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec

from grpo_jax.cli import main
from grpo_jax.commands import plan as command
from grpo_jax.config import GRPOConfig
from grpo_jax.models.config import PUBLISHED
from grpo_jax.models.transformer import abstract_params
from grpo_jax.plans import compiled, planned_run, report, roofline, search
from grpo_jax.plans.fitting import fitted
from grpo_jax.plans.hlo import collective_bytes
from grpo_jax.plans.planned_run import PlannedRun, shape_of
from grpo_jax.sharding.mesh import make_mesh
from grpo_jax.sharding.targets import Chip, MissingExtra, topology_mesh

SETTINGS = {
    "prompts_per_step": 8,
    "num_generations": 4,
    "max_prompt_length": 16,
    "max_completion_length": 24,
    "rollout_segment": 8,
    "beta": 0.1,
    "mesh": "fsdp=8,tensor=1",
    "gradient_checkpointing": "none",
}
"""What a search finds too, so that its programs are compiled once."""


MEMORY = 1 << 30


@dataclass(frozen=True)
class Found:
    """What the verb did: its exit code, its JSON, and what it printed."""

    code: int
    json: dict
    printed: str


@pytest.fixture(scope="module")
def processors(tmp_path_factory):
    """`with processors(memory)`: targets `v5e:...` are eight processors with so much memory each; what is found is kept
    in a folder of this module's own."""
    cache = tmp_path_factory.mktemp("cache")
    made = lambda target, sizes=None: make_mesh(sizes or {"fsdp": 8})

    @contextlib.contextmanager
    def patched(memory=MEMORY):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(planned_run, "topology_mesh", made)
            patch.setattr(search, "topology_mesh", made)
            for module in (planned_run, report, roofline):
                patch.setattr(module, "chip_of", lambda target: Chip(memory, 1e12, 1e14, 1e11))
            patch.setattr(compiled, "compiler_options", lambda target: {})
            patch.setattr(command, "prepare", lambda: None)
            patch.setenv("XDG_CACHE_HOME", str(cache))
            yield

    return patched


@pytest.fixture(scope="module")
def plan(processors, tiny_model, options, tmp_path_factory):
    """`plan(memory, **settings)`: the verb."""
    file = tmp_path_factory.mktemp("plan") / "plan.json"

    def run(memory=MEMORY, *words, **settings):
        given, printed = SETTINGS | {"model": tiny_model} | settings, io.StringIO()
        with processors(memory), contextlib.redirect_stdout(printed):
            code = main(["plan", *options(given), "--target", "v5e:2x4", "--json", str(file), *words])
        return Found(code, json.loads(file.read_text()), printed.getvalue())

    return run


@pytest.fixture(scope="module")
def planned(plan, reward_model):
    """A plan with a reward model."""
    return plan(rewards=f"countdown,model:{reward_model}")


@pytest.fixture(scope="module")
def update(processors, tiny_model):
    """`update(**settings)`: (the planned run, its update's phase). Nothing else of the plan is compiled."""

    @functools.cache
    def compile_(settings):
        config = GRPOConfig(model=str(tiny_model), **SETTINGS | dict(settings))
        run = PlannedRun(config, "v5e:2x4", shape_of(config.model))
        with processors():
            job = run.update()
            return run, report.Phase("update", compiled.compiled(job, run.target, run.mesh), job.beside)

    return lambda **settings: compile_(tuple(settings.items()))


def test_a_reward_models_memory_is_counted(planned, update):
    found, (run, without) = planned.json, update()
    stage = found["stages"]["reward judge"]
    assert stage["beside"] > run.held["weights"], "the policy's state, and the sampler's copy"
    assert stage["temporary"] > 0
    held = found["bytes"]["reward models"]
    assert 0 < held < stage["arguments"]
    assert found["stages"]["update"]["beside"] == without.beside + held


def test_an_unusable_reward_model_is_refused(processors, tiny_model, options, capsys):
    for name, message in (
        (tiny_model, "a reward model is a Qwen2ForSequenceClassification"),
        ("nowhere", "rewards: model 'nowhere': no such folder"),
    ):
        given = SETTINGS | {"model": tiny_model, "rewards": f"model:{name}"}
        with processors():
            assert main(["plan", *options(given), "--target", "v5e:2x4"]) == 2
        assert message in capsys.readouterr().err


def test_a_run_fits_if_its_largest_program_fits(plan, planned, reward_model):
    stages = planned.json["stages"]
    assert (planned.code, planned.json["fits"]) == (0, True)
    assert set(stages) == {"copy", "prompts", "rollout", "reward judge", "score", "update"}
    assert planned.json["peak_bytes"] == max(stage["peak_with_beside"] for stage in stages.values())
    assert "fits: at most" in planned.printed
    less = plan(int(planned.json["peak_bytes"] / 0.9 * 0.97), rewards=f"countdown,model:{reward_model}")
    assert (less.code, less.json["fits"]) == (1, False)
    assert "does not fit" in less.printed


def test_compiled_programs_are_reused_by_the_next_plan(plan, planned, monkeypatch):
    monkeypatch.setattr(compiled, "_compile", lambda *_: pytest.fail("compiled again"))
    assert plan().code == 0
    with pytest.raises(BaseException, match="compiled again"):
        plan(max_completion_length=25)


def test_more_length_buckets_than_widths_are_accepted(update):
    """One token has one."""
    run, phase = update(max_completion_length=1, length_buckets=9, micro_batch_size=16)
    assert run.learner.widths == 9
    assert phase.compilation.whole


def test_memory_falls_as_devices_double(update):
    """Weights, moments and activations of the update, on one, two and eight devices."""
    peaks = [update(**mesh)[1].peak for mesh in ({"mesh": "fsdp=1"}, {"mesh": "fsdp=2"}, {})]
    assert peaks == sorted(peaks, reverse=True)
    assert peaks[-1] < 0.5 * peaks[0]


@pytest.mark.parametrize(
    "settings", [{}, {"lora_r": 2}, {"lora_r": 2, "base_weights": "nf4", "mesh": "fsdp=2"}]
)
def test_planned_bytes_equal_the_arguments_of_the_update(update, processors, settings):
    """The compiler's count of the update's arguments is the sum of what is held for it, and the batch."""
    run, phase = update(**settings)
    with processors():
        parts = report.parts_of(run, [phase])
    held = [parts.get(name, 0) for name in ("weights", "adapters", "frozen weights", "optimizer")]
    assert 0 < phase.compilation.arguments - sum(held) < 20_000
    assert phase.beside == parts["reference"]


def test_a_search_chooses_the_fastest_settings_that_fit(plan, monkeypatch):
    """With much memory all is computed at once and nothing twice; with less, in parts. It prints the settings that it
    planned."""
    found = plan(MEMORY, "--search")
    roomy = found.json
    assert (found.code, roomy["micro_batch_size"], roomy["gradient_checkpointing"]) == (0, 32, "none")
    found = plan(int(roomy["peak_bytes"] / 0.9 * 0.95), "--search")
    tight = found.json
    assert found.code == 0
    assert tight["peak_bytes"] < roomy["peak_bytes"]
    assert f"micro_batch_size: {tight['micro_batch_size']}" in found.printed
    assert f"gradient_checkpointing: {tight['gradient_checkpointing']}" in found.printed
    monkeypatch.setattr(search, "_TRIES", 2)
    assert plan(int(roomy["peak_bytes"] * 0.1), "--search").code == 1


def test_the_micro_batch_is_the_largest_that_fits(plan, update, processors):
    assert plan(auto_micro_batch=True).json["micro_batch_size"] == 32
    (run, whole), (_, half) = (update(micro_batch_size=rows) for rows in (32, 16))
    run = replace(run, config=run.config.replace(micro_batch_size=0, auto_micro_batch=True))
    with processors(int((whole.peak + half.peak) / 2 / 0.9)):
        found = fitted(run, lambda tried, job: compiled.compiled(job, tried.target, tried.mesh))
    assert found.config.micro_batch_size == 16


@pytest.mark.parametrize(
    ("error", "bytes_"),
    [
        (
            "RESOURCE_EXHAUSTED: XLA:TPU ... Ran out of memory. Used 17.05G of 15.75G hbm. Exceeded",
            17.05 * 2**30,
        ),
        (
            "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO temporaries (16.98G)",
            16.98 * 2**30 + 7,
        ),
        ("INTERNAL: RET_CHECK failure", None),
    ],
)
def test_the_memory_a_program_needs_is_read_from_the_compilers_error(error, bytes_):
    assert compiled.needed(error, 7) == (None if bytes_ is None else int(bytes_))


# ---- formulas ----


@pytest.mark.parametrize("name", PUBLISHED)
def test_operations_are_two_for_each_weight(name):
    """But for embeddings that are only looked up, biases and norms; tied ones are multiplied with."""
    cfg = PUBLISHED[name]
    leaves = jax.tree_util.tree_leaves_with_path(abstract_params(cfg)["layers"])
    matrices = [math.prod(x.shape) for path, x in leaves if path[-1].key == "kernel"]
    weights = sum(matrices) + cfg.vocab_size * cfg.hidden_size
    assert roofline.forward_flops(cfg, 10, 0) == 20 * weights
    per_layer = roofline.forward_flops(cfg, 1, 100) - roofline.forward_flops(cfg, 1, 0)
    assert per_layer == 4 * 100 * cfg.num_layers * cfg.num_heads * cfg.head_dim


def test_checkpointing_costs_a_third_more_and_adapters_save_a_third(processors):
    def seconds(**more):
        config = GRPOConfig(model="1.5b", **SETTINGS | more)
        with processors(1 << 40):
            return roofline.bound(PlannedRun(config, "v5e:2x4", PUBLISHED["1.5b"])).update

    kept = seconds()
    assert seconds(gradient_checkpointing="full") == pytest.approx(kept * 4 / 3)
    assert seconds(lora_r=4) == pytest.approx(kept * 2 / 3)


def test_collectives_in_loops_count_as_often_as_they_run():
    """A sum over eight devices in each of five rounds, and in as many rounds as the data says."""
    mesh, split = make_mesh({"fsdp": 8}), (PartitionSpec("fsdp"), PartitionSpec())

    def summed(x, rounds):
        one = lambda _, x: jax.lax.psum(x, "fsdp") / 8
        return jax.lax.fori_loop(0, rounds, one, jax.lax.fori_loop(0, 5, one, x))

    by_part = jax.shard_map(summed, mesh=mesh, in_specs=split, out_specs=split[0], check_vma=False)
    text = jax.jit(by_part).lower(jnp.zeros(8 * 1000), 3).compile().as_text()
    assert collective_bytes(text, [3]) == {"all-reduce": 4000 * (5 + 3)}
    assert collective_bytes(text, [7]) == {"all-reduce": 4000 * (5 + 7)}


# ---- messages ----


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("Qwen/Qwen2.5-7B-Instruct", "7b"),
        ("Qwen/Qwen2.5-Math-1.5B", "1.5b"),
        ("0.5b", "0.5b"),
        ("72B", "72b"),
    ],
)
def test_published_shapes_are_found_by_name(name, size):
    assert shape_of(name) == PUBLISHED[size]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--model", "7b"], "--target: say for which chips"),
        (["--model", "7b", "--target", "h1000:8"], "no chip called 'h1000' (did you mean 'h100'?)"),
        (["--model", "7b", "--target", "h100"], "give chip:topology, such as h100:8"),
        (["--model", "8b", "--target", "v5e:2x4"], "no published size 8b; there are 0.5b, 1.5b"),
    ],
)
def test_unknown_and_missing_arguments_are_named(words, says, capsys):
    assert main(["plan", *words]) == 2
    assert says in capsys.readouterr().err


def test_an_absent_compiler_is_refused_with_the_command_that_installs_it(monkeypatch, capsys):
    monkeypatch.setattr("grpo_jax.sharding.targets._exists", lambda module: False)
    for target in ("v5e:2x4", "h100:8"):
        assert main(["plan", "--model", "7b", "--target", target]) == 2
        assert "run: pip install 'grpo-jax[plan]'" in capsys.readouterr().err


def test_rows_that_do_not_divide_are_named(processors, capsys, tiny_model, options):
    given = SETTINGS | {"model": tiny_model, "prompts_per_step": 6}
    with processors():
        assert main(["plan", *options(given), "--target", "v5e:2x4"]) == 2
    assert "prompts_per_step = 6 does not divide over the mesh's 8 row shards" in capsys.readouterr().err


def test_targets_are_listed(capsys):
    assert main(["plan", "--targets"]) == 0
    listed = capsys.readouterr().out
    assert all(
        chip in listed for chip in ("v4", "v5e", "v5p", "v6e", "tpu7x", "a100", "h100", "h200", "b200")
    )


# ---- proofs for real chips, where their compilers are installed ----

PROOFS = [
    # QLoRA of 1.5B on one GPU: 8 completions of 1,024 tokens in 5 GB
    ("h100:1", "1.5b", {"base_weights": "nf4", "lora_r": 16, "max_completion_length": 1024}, 5e9),
    # LoRA of 7B, 20,000 tokens: in 54 GB
    ("h100:1", "7b", {"lora_r": 16, "max_completion_length": 20000}, 54e9),
]


@pytest.mark.parametrize(("target", "model", "settings", "most"), PROOFS)
def test_adapters_on_large_models_fit_the_memory_given(target, model, settings, most, monkeypatch, tmp_path):
    try:
        topology_mesh(target)
    except MissingExtra as absent:
        pytest.skip(str(absent))
    pytest.importorskip("nvidia.cudnn", reason="cuDNN is absent: pip install 'grpo-jax[plan]'")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    group = {"prompts_per_step": 1, "num_generations": 8, "micro_batch_size": 1, "beta": 0.04}
    config = GRPOConfig(model=model, **group | settings)
    found = report.plan_of(PlannedRun(config, target, PUBLISHED[model]))
    assert found.fits
    assert found.worst.peak <= most
