"""LoRA and QLoRA from the settings to the folders that they leave: trained, exported, resumed, read again."""

import json
import re
import shutil

import jax
import numpy as np
import pytest

from grpo_jax import GRPOConfig, GRPOTrainer
from grpo_jax.cli import main
from grpo_jax.models.hf import load_config, load_params
from grpo_jax.models.lora import Base, LoRA, joined, merged
from grpo_jax.models.peft import load_adapters, read_lora
from grpo_jax.models.quantized import dequantize
from grpo_jax.models.safetensors_io import open_folder, read_header
from grpo_jax.training.adapter_arguments import adapters_of

pytestmark = pytest.mark.usefixtures("shared_programs")

LORA = {"lora_r": 4, "lora_alpha": 8, "beta": 0.04, "micro_batch_size": 8, "eval_prompts": 0}
LORA |= {"max_steps": 3, "mesh": "data=1", "lora_dropout": 0.2}  # a checkpoint after step 2, and the last


@pytest.fixture(scope="module")
def trained(tiny_settings, options, tmp_path_factory, shared_programs):
    """`trained(name, **settings)`: the folder of a run of the command, made once for each name."""
    home, made = tmp_path_factory.mktemp("lora"), {}

    def run(name, **settings):
        if name not in made:
            settings = tiny_settings | LORA | settings
            assert main(["train", *options(settings | {"output_dir": home / name})]) == 0
            made[name] = home / name
        return made[name]

    return run


def metrics_of(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def tensors_of(folder):
    return {name: tensor.open().astype(np.float32) for name, tensor in open_folder(folder).items()}


def adapter_of(run):
    """Name -> values in PEFT's format."""
    return {n: t.open() for n, t in read_header(run / "adapter" / "adapter_model.safetensors").items()}


@pytest.fixture(scope="module")
def tuned(tiny_model, options, tmp_path_factory):
    """The folder of a run of `sft` on an int8 base."""
    home = tmp_path_factory.mktemp("tuned")
    rows = [{"prompt": f"{i}", "completion": "aaa"} for i in range(32)]
    (home / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = {
        "model": tiny_model,
        "dataset": home / "rows.jsonl",
        "output_dir": home / "run",
        "mesh": "data=1",
    }
    settings |= {
        "max_steps": 3,
        "rows_per_step": 8,
        "learning_rate": 1e-2,
        "lora_r": 2,
        "base_weights": "int8",
        "lora_dropout": 0.1,
    }
    assert main(["sft", *options(settings)]) == 0
    return home / "run"


@pytest.fixture
def run_of(trained, tuned):
    """`run_of(verb)`: the folder of its run."""
    return {"train": trained("nf4", base_weights="nf4"), "sft": tuned}.get


@pytest.mark.parametrize("verb", ["train", "sft"])
def test_a_run_trains_its_adapters_alone(run_of, tiny_model, verb):
    """What has no adapter leaves as it came, bit by bit; and B, zero at first, has moved."""
    before, after = tensors_of(tiny_model), tensors_of(run_of(verb) / "hf")
    moved = {name.split(".")[-2] for name in before if not np.array_equal(before[name], after[name])}
    assert moved == {f"{name}_proj" for name in ("q", "k", "v", "o", "gate", "up", "down")}
    assert all(np.abs(values).max() > 1e-4 for values in adapter_of(run_of(verb)).values())


def test_sft_learns_by_its_adapters(tuned):
    nll = [row["nll"] for row in metrics_of(tuned)]
    assert nll[-1] < nll[0]
    assert read_lora(tuned / "adapter").rank == 2


def test_the_reference_is_the_base(trained):
    """With B = 0 the policy is the reference: the divergence of the first step is exactly 0, and not after it."""
    rows = metrics_of(trained("nf4", base_weights="nf4"))
    first, *later = [row["kl"] for row in rows]
    assert first == 0
    assert all(kl > 0 for kl in later)
    assert len({row["reward"] for row in rows}) > 1


def test_the_sampler_draws_from_the_quantised_base_itself(trained):
    """The learner's log-probs are the sampler's, but for rounding; those of the published weights are not. From the
    second step on, when B is not 0, dropout thins the adapters in the update alone."""
    rows = metrics_of(trained("nf4", base_weights="nf4"))
    first, *later = [row["sampling/sampling_logp_difference/max"] for row in rows]
    assert first < 1e-4
    assert all(difference > 1e-4 for difference in later)


def test_optimizer_moments_exist_for_adapters_only(trained, tiny_model):
    run = trained("nf4", base_weights="nf4")
    notes = json.loads((run / "checkpoints" / "3" / "notes" / "metadata").read_text())["tensors"]
    assert not [
        name for name in notes if "lora_" not in name and "count" not in name and "updates" not in name
    ]


# ---- the folders ----


def test_peft_opens_the_adapter_with_the_same_logits(trained, tiny_model):
    """Beside the model, merged by PEFT, and as merged here: one function."""
    peft, torch = pytest.importorskip("peft"), pytest.importorskip("torch")
    from transformers import AutoModelForCausalLM

    run = trained("nf4", base_weights="nf4")
    tokens = torch.arange(3, 60)[None]
    load = lambda folder: AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        beside = peft.PeftModel.from_pretrained(load(tiny_model), run / "adapter")
        ours, theirs = load(run / "hf")(tokens).logits, beside(tokens).logits
        start = load(tiny_model)(tokens).logits
    np.testing.assert_allclose(ours, theirs, atol=2e-4)
    assert (theirs - start).abs().max() > 0.01


def test_an_adapter_made_by_peft_can_be_trained_further(trained, tiny_model, tiny_settings, tmp_path):
    """One that PEFT made and saved, of some layers, with a scale of its own."""
    peft, torch = pytest.importorskip("peft"), pytest.importorskip("torch")
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    config = peft.LoraConfig(
        r=2, lora_alpha=6, target_modules=["q_proj", "down_proj"], use_rslora=True, init_lora_weights=False
    )
    model = peft.get_peft_model(AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32), config)
    model.save_pretrained(tmp_path / "theirs")
    cfg, lora = load_config(tiny_model), read_lora(tmp_path / "theirs")
    assert (lora.rank, lora.alpha, lora.targets, lora.use_rslora) == (2, 6, ("q", "down"), True)
    ours = merged(joined(load_adapters(tmp_path / "theirs", cfg, lora), Base(_plain(tiny_model), lora.scale)))
    theirs = model.merge_and_unload().state_dict()
    q = np.asarray(ours["layers"]["q"]["kernel"][1]).reshape(cfg.hidden_size, -1).T
    np.testing.assert_allclose(q, theirs["model.layers.1.self_attn.q_proj.weight"], atol=1e-6)

    settings = (
        tiny_settings | LORA | {"adapter": str(tmp_path / "theirs"), "output_dir": None, "max_steps": 2}
    )
    settings = {name: value for name, value in settings.items() if not name.startswith("lora_")}
    trainer = GRPOTrainer(str(tiny_model), args=GRPOConfig(**settings))
    trainer.train()
    assert set(trainer.trained.params["layers"]) == {"q", "down"}
    # The reference is where the training starts; log-probs of two programs differ by 1e-7, and k3 is their gap squared.
    first, second = (row["kl"] for row in trainer.state.log_history)
    assert first < 1e-12 < second


def _plain(folder):
    return load_params(folder, load_config(folder))


def test_a_lora_config_of_peft_is_accepted(tiny_settings, tiny_model):
    peft = pytest.importorskip("peft")
    given = peft.LoraConfig(
        r=3, lora_alpha=12, target_modules=["up_proj", "o_proj"], use_rslora=True, lora_dropout=0.05
    )
    args = GRPOConfig(**tiny_settings | {"output_dir": None})
    trainer = GRPOTrainer(str(tiny_model), args=args, peft_config=given)
    assert trainer.components.policy.lora == LoRA(3, 12.0, ("o", "up"), use_rslora=True)
    assert trainer.args.lora_dropout == 0.05
    trainer = GRPOTrainer(str(tiny_model), args=args, peft_config={"r": 2, "lora_alpha": 4})
    assert trainer.components.policy.lora == LoRA(2, 4.0, ("q", "v"))


def test_other_verbs_merge_the_adapter(trained, tiny_model, options, tmp_path, capsys):
    """What `generate` and `eval` do with model and adapter is what they do with the merged folder."""
    run, answers = trained("nf4", base_weights="nf4"), []
    for name, model in {
        "merged": {"model": run / "hf"},
        "beside": {"model": tiny_model, "adapter": run / "adapter"},
        "start": {"model": tiny_model},
    }.items():
        more = {"prompt": "say a", "max_completion_length": 8, "temperature": 0, "mesh": "data=1"}
        capsys.readouterr()
        assert main(["generate", *options(model | more)]) == 0
        answers.append((name, capsys.readouterr().out))
    assert answers[0][1] == answers[1][1]
    assert answers[0][1] != answers[2][1]


def test_export_writes_model_or_adapter_of_a_checkpoint(trained, tmp_path):
    run = trained("nf4", base_weights="nf4")
    assert main(["export", str(run), str(tmp_path / "hf")]) == 0
    assert main(["export", "--adapter", str(run), str(tmp_path / "adapter")]) == 0
    for name in ("hf", "adapter"):
        files = sorted(file.name for file in (run / name).iterdir())
        assert files == sorted(file.name for file in (tmp_path / name).iterdir())
        assert all((run / name / f).read_bytes() == (tmp_path / name / f).read_bytes() for f in files)


# ---- the same numbers ----


def test_a_resumed_run_ends_with_the_same_bits(trained, tiny_settings, options, tmp_path):
    """A run as step 3 left it when it died: with the checkpoint after step 2, and nothing that comes later."""
    whole = trained("nf4", base_weights="nf4")
    later = shutil.ignore_patterns("3", "hf", "adapter", "summary.json", "*_00003.parquet")
    run = shutil.copytree(whole, tmp_path / "run", ignore=later)
    assert main(["train", *options(tiny_settings | LORA | {"base_weights": "nf4", "output_dir": run})]) == 0
    here, there = adapter_of(run), adapter_of(whole)
    assert here.keys() == there.keys()
    assert all(np.array_equal(here[name], there[name]) for name in there)


def test_adapters_train_the_same_on_every_mesh(trained):
    """One device, and four that split the weights over two axes and the rows over one: the same training."""
    whole = metrics_of(trained("nf4", base_weights="nf4"))
    split = metrics_of(trained("split", base_weights="nf4", mesh="fsdp=2,tensor=2"))
    for name in ("reward", "grad_norm", "kl"):
        close = [row[name] for row in whole], [row[name] for row in split]
        np.testing.assert_allclose(*close, rtol=2e-3, atol=1e-5)


# ---- how far a quantised base is off ----


@pytest.mark.parametrize(("base", "most"), [("int8", 0.02), ("nf4", 0.12)])
def test_the_quantisation_error_of_the_base_is_printed(base, most, tiny_settings, tiny_model, capsys):
    from grpo_jax.models.families import summed_axes
    from grpo_jax.models.matrices import Matrix
    from grpo_jax.setup.policy import open_policy
    from grpo_jax.setup.weights import load_base

    config = GRPOConfig(model=str(tiny_model), mesh="data=1", dtype="float32")
    policy = open_policy(config, lora=LoRA(2, 4), base_weights=base)
    found = load_base(policy).params
    said = float(capsys.readouterr().out.split(": ")[1].split(" %")[0]) / 100
    off = all_ = 0.0
    for path, x in jax.tree_util.tree_leaves_with_path(_plain(tiny_model)):
        keys = tuple(key.key for key in path)
        leaf = found
        for key in keys:
            leaf = leaf[key]
        wide = np.asarray(
            leaf.plain(summed_axes()[keys]) if isinstance(leaf, Matrix) else jax.jit(dequantize)(leaf)
        )
        off += float(((wide - np.asarray(x, np.float64)) ** 2).sum())
        all_ += float((np.asarray(x, np.float64) ** 2).sum())
    assert said == pytest.approx((off / all_) ** 0.5, rel=0.06)
    assert 0 < said < most


# ---- as scripts give it ----


@pytest.mark.parametrize(("bits", "form"), [(4, "nf4"), (8, "int8")])
@pytest.mark.parametrize("as_object", [False, True])
def test_a_quantization_config_gives_the_base_its_form(bits, form, as_object):
    transformers = pytest.importorskip("transformers")
    asked = {f"load_in_{bits}bit": True}
    given = transformers.BitsAndBytesConfig(**asked) if as_object else asked
    found = adapters_of({"r": 4, "target_modules": ["q_proj"]}, given)
    assert (found["base_weights"], found["lora_r"]) == (form, 4)


def test_quantised_weights_in_a_scripts_settings_go_with_the_trainers_adapters(tiny_model):
    settings = {"base_weights": "nf4", "prompts_per_step": 8, "num_generations": 2, "output_dir": None}
    rows = [{"prompt": f"{i}: say a"} for i in range(8)]
    trainer = GRPOTrainer(
        tiny_model, "tag_count", GRPOConfig(**settings), rows, peft_config={"r": 4, "lora_alpha": 8}
    )
    assert (trainer.args.base_weights, trainer.args.lora_r) == ("nf4", 4)


# ---- what is refused ----


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (
            {"base_weights": "nf4"},
            "base_weights = nf4: weights that are trained are not quantised; set lora_r",
        ),
        ({"lora_r": 4, "lora_target_modules": "q_pro"}, "no linear layer 'q_pro' .did you mean 'q_proj'"),
        ({"lora_r": 4, "adapter": "x"}, "lora_r = 4: the adapter x has a rank of its own"),
        (
            {"lora_r": 4, "base_weights": "nf4", "rollout_weights": "int8"},
            "rollout_weights = int8: with base_weights",
        ),
        ({"adapter": "nowhere"}, "adapter 'nowhere': no such folder"),
        ({"load_in_4bit": "true"}, "write base_weights: nf4"),
    ],
)
def test_conflicting_adapter_settings_are_refused(settings, says, tiny_settings, options, capsys):
    assert main(["train", *options(tiny_settings | settings)]) == 2
    assert re.search(says, capsys.readouterr().err)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"use_dora": True}, "use_dora = True is not supported; leave it out"),
        ({"rank_pattern": {"q_proj": 8}}, "rank_pattern"),
        ({"r": 5}, r"has shape \[4, 32\]; the model and r need \[5, 32\]"),
        ({"r": "four"}, "r and lora_alpha must be numbers"),
    ],
)
def test_unsupported_adapter_configs_are_refused(
    change, says, trained, tiny_model, options, tmp_path, capsys
):
    shutil.copytree(trained("nf4", base_weights="nf4") / "adapter", tmp_path / "adapter")
    file = tmp_path / "adapter" / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    given = {"model": tiny_model, "adapter": tmp_path / "adapter", "prompt": "a", "max_completion_length": 4}
    assert main(["generate", *options(given)]) == 2
    assert re.search(says, capsys.readouterr().err)
