"""The verb `plan`, on processors that stand for the target: the same programs and tables without its compilers."""

import json
import math

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec

from grpo_jax.cli import main
from grpo_jax.commands import plan as command
from grpo_jax.config import GRPOConfig
from grpo_jax.models.config import PUBLISHED
from grpo_jax.models.transformer import abstract_params
from grpo_jax.plans import compiled, planned_run, report, roofline
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
}


@pytest.fixture
def processors(monkeypatch, tmp_path):
    """Targets `v5e:...` are eight processors with so much memory; what is found is kept in a folder of its own."""
    chips = {"memory": 1 << 30}
    made = lambda target, sizes=None: make_mesh(sizes or {"fsdp": 8})
    monkeypatch.setattr(planned_run, "topology_mesh", made)
    monkeypatch.setattr("grpo_jax.plans.search.topology_mesh", made)
    for module in (planned_run, report, roofline):
        monkeypatch.setattr(module, "chip_of", lambda target: Chip(chips["memory"], 1e12, 1e14, 1e11))
    monkeypatch.setattr(compiled, "compiler_options", lambda target: {})
    monkeypatch.setattr(command, "prepare", lambda: None)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return chips


@pytest.fixture
def plan(processors, tiny_model, options, tmp_path):
    """`plan(memory, **settings)`: exit code and JSON of the verb."""

    def run(memory=1 << 30, *words, **settings):
        processors["memory"] = memory
        given = SETTINGS | {"model": tiny_model} | settings
        file = tmp_path / "plan.json"
        code = main(["plan", *options(given), "--target", "v5e:2x4", "--json", str(file), *words])
        return code, json.loads(file.read_text())

    return run


def test_a_reward_models_memory_is_counted(plan, reward_model):
    _, without = plan()
    _, found = plan(rewards=f"countdown,model:{reward_model}")
    stage = found["stages"]["reward judge"]
    assert stage["beside"] > without["bytes"]["weights"], "the policy's state, and the sampler's copy"
    assert stage["temporary"] > 0
    held = found["bytes"]["reward models"]
    assert 0 < held < stage["arguments"]
    assert found["stages"]["update"]["beside"] == without["stages"]["update"]["beside"] + held


def test_an_unusable_reward_model_is_refused(plan, tiny_model, capsys, tmp_path):
    for name, message in (
        (tiny_model, "a reward model is a Qwen2ForSequenceClassification"),
        ("nowhere", "rewards: model 'nowhere': no such folder"),
    ):
        with pytest.raises(FileNotFoundError):
            plan(rewards=f"model:{name}")
        assert message in capsys.readouterr().err


def test_a_run_fits_if_its_largest_program_fits(plan, capsys):
    code, found = plan()
    assert (code, found["fits"]) == (0, True)
    assert set(found["stages"]) == {"copy", "prompts", "rollout", "score", "update"}
    assert found["peak_bytes"] == max(stage["peak_with_beside"] for stage in found["stages"].values())
    assert "fits: at most" in capsys.readouterr().out
    tight = int(found["peak_bytes"] / 0.9 * 0.97)
    code, less = plan(tight)
    assert (code, less["fits"]) == (1, False)
    assert "does not fit" in capsys.readouterr().out


def test_compiled_programs_are_reused_by_the_next_plan(plan, monkeypatch):
    plan()
    monkeypatch.setattr(compiled, "_compile", lambda *_: pytest.fail("compiled again"))
    assert plan()[0] == 0
    with pytest.raises(BaseException, match="compiled again"):
        plan(max_completion_length=25)


def test_more_length_buckets_than_widths_are_accepted(plan):
    """24 tokens have five: 24, 12, 6, 3 and 1."""
    assert plan(length_buckets=9, micro_batch_size=16)[0] == 0


def test_memory_falls_as_devices_double(plan):
    """Weights, moments and activations of the update, on one, two and eight devices."""
    peaks = [plan(mesh=f"fsdp={n}")[1]["stages"]["update"]["peak_with_beside"] for n in (1, 2, 8)]
    assert peaks == sorted(peaks, reverse=True)
    assert peaks[-1] < 0.5 * peaks[0]


@pytest.mark.parametrize(
    "settings", [{}, {"lora_r": 2}, {"lora_r": 2, "base_weights": "nf4", "mesh": "fsdp=2"}]
)
def test_planned_bytes_equal_the_arguments_of_the_update(plan, settings):
    """The compiler's count of the update's arguments is the sum of what is held for it, and the batch."""
    _, found = plan(**settings)
    held = {
        name: found["bytes"].get(name, 0) for name in ("weights", "adapters", "frozen weights", "optimizer")
    }
    batch = found["stages"]["update"]["arguments"] - sum(held.values())
    assert 0 < batch < 20_000
    assert found["stages"]["update"]["beside"] == found["bytes"]["reference"]


def test_a_search_chooses_the_fastest_settings_that_fit(plan, capsys):
    """With much memory all is computed at once and nothing twice; with less, in parts. It prints the settings that it
    planned."""
    code, roomy = plan(1 << 30, "--search")
    assert (code, roomy["micro_batch_size"], roomy["gradient_checkpointing"]) == (0, 32, "none")
    capsys.readouterr()
    code, tight = plan(int(roomy["peak_bytes"] / 0.9 * 0.8), "--search")
    assert code == 0
    assert tight["peak_bytes"] < roomy["peak_bytes"]
    said = capsys.readouterr().out
    assert f"micro_batch_size: {tight['micro_batch_size']}" in said
    assert f"gradient_checkpointing: {tight['gradient_checkpointing']}" in said
    assert plan(int(roomy["peak_bytes"] * 0.1), "--search")[0] == 1


def test_the_micro_batch_is_the_largest_that_fits(plan):
    peak = lambda rows: plan(micro_batch_size=rows)[1]["stages"]["update"]["peak_with_beside"]
    whole, half = peak(32), peak(16)
    between = int((whole + half) / 2 / 0.9)
    found = [plan(m, auto_micro_batch=True)[1]["micro_batch_size"] for m in (1 << 30, between)]
    assert found == [32, 16]


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
    processors["memory"] = 1 << 40
    seconds = lambda **more: (
        roofline.bound(
            PlannedRun(GRPOConfig(model="1.5b", **SETTINGS | more), "v5e:2x4", PUBLISHED["1.5b"])
        ).update
    )
    kept = seconds(gradient_checkpointing="none")
    assert seconds(gradient_checkpointing="full") == pytest.approx(kept * 4 / 3)
    assert seconds(gradient_checkpointing="none", lora_r=4) == pytest.approx(kept * 2 / 3)


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


def test_rows_that_do_not_divide_are_named(plan, capsys, tiny_model, options):
    given = SETTINGS | {"model": tiny_model, "prompts_per_step": 6}
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
