"""The plan that is printed before the first step: its numbers are those of the settings, and of real arrays."""

import pathlib
import re
from contextlib import redirect_stderr, redirect_stdout

import jax
import jax.numpy as jnp
import optax
import pytest

from grpo_jax import GRPOConfig, GRPOTrainer
from grpo_jax.models.cache import empty_cache
from grpo_jax.plans.report import sized
from grpo_jax.rollout.state import layer_on_mesh
from grpo_jax.setup.weights import load_trained
from grpo_jax.sharding import hosts
from grpo_jax.training.run_summary import bytes_held, plan_of, show_plan

ROOT = pathlib.Path(__file__).resolve().parents[2]
ROWS = [{"prompt": f"{i:2}: say a"} for i in range(40)]


def exact(completions, **columns):
    return [0.0 for _ in completions]


def short(completions, **columns):
    return [0.0 for _ in completions]


@pytest.fixture(scope="module")
def components(tiny_model):
    """`components(**settings)` of a trainer; nothing is compiled."""
    small = {
        "prompts_per_step": 8,
        "num_generations": 4,
        "max_prompt_length": 32,
        "max_completion_length": 16,
    }
    small |= {"mesh": "data=1", "max_steps": 10, "output_dir": None}

    def make(rows=ROWS, eval_rows=None, functions=exact, optimizer=None, **settings):
        args = GRPOConfig(**small | settings)
        return GRPOTrainer(
            tiny_model, functions, args, rows, eval_dataset=eval_rows, optimizers=optimizer
        ).components

    return make


# ---- numbers ----

LINES = [
    ("data", {}, "40 prompts; 10 steps of 8 take 80 prompts, 2 passes over the data"),
    ("data", {"max_steps": 1}, "40 prompts; 1 step of 8 takes 8 prompts, 0.2 passes over the data"),
    ("data", {"num_train_epochs": 1, "max_steps": -1}, "5 steps of 8 take 40 prompts, 1 pass over the data"),
    (
        "data",
        {"rows": [*ROWS, {"prompt": "x" * 33}]},
        "40 prompts (1 longer than max_prompt_length left out)",
    ),
    ("data", {"dynamic_sampling": True}, "take at least 80 prompts, 2 passes"),
    ("rewards", {"functions": [exact, short], "reward_weights": [1, 0.5]}, "exact + 0.5 x short"),
    ("rewards", {"overlong_buffer": 4}, "exact - a punishment of up to 1 for the last 4 tokens"),
    ("rewards", {"beta": 0.1, "kl_in": "reward"}, "exact - 0.1 x divergence from the reference model"),
    (
        "rollout",
        {},
        "8 prompts x 4 completions = 32 rows a step; a row has up to 32 prompt and 16 completion",
    ),
    ("rollout", {}, "at most 512 tokens are sampled a step"),
    ("rollout", {"dynamic_sampling": True, "max_rollouts_per_step": 3}, "(3 times at most)"),
    ("rollout", {"dynamic_sampling": True, "max_rollouts_per_step": 3}, "at most 1,536 tokens"),
    ("update", {}, "1 update of the weights a step, from 32 rows"),
    (
        "update",
        {"micro_batch_size": 8},
        "from 32 rows, computed 8 rows at a time (4 micro-batches); micro-batches",
    ),
    (
        "update",
        {"num_iterations": 3, "num_minibatches": 2, "micro_batch_size": 4},
        "6 updates of the weights a step: 3 passes over 32 rows in 2 mini-batches of 16, computed 4 rows at a "
        "time (4 micro-batches)",
    ),
    ("update", {"gradient_samples": 2}, "1 update of the weights a step, from 16 rows (of the 32 sampled)"),
    ("passes", {}, "goes through the model forward and backward"),
    (
        "passes",
        {"beta": 0.1, "num_iterations": 2},
        "once for the reference's log-probs, once for the old log-probs, forward and backward 2 times",
    ),
    (
        "passes",
        {"top_entropy_quantile": 0.2, "micro_batch_size": 8},
        "for the entropies, forward and backward",
    ),
    ("loss", {}, "dapo, beta 0 (no reference model); with one update a step the ratio is 1"),
    ("loss", {"beta": 0.1}, "dapo, beta 0.1 (a reference model)"),
    ("training", {}, "10 steps, 10 updates; AdamW, learning rate 1e-06, linear to 0, no warm-up"),
    (
        "training",
        {"num_iterations": 2, "warmup_ratio": 0.25, "lr_scheduler_type": "cosine"},
        "10 steps, 20 updates; AdamW, learning rate 1e-06, cosine to 0 after 3 steps of warm-up",
    ),
    ("training", {"lr_scheduler_type": "constant"}, "learning rate 1e-06, constant, no warm-up"),
    ("training", {"optimizer": optax.sgd(1.0)}, "10 steps, 10 updates; the optimizer given"),
    ("checkpoints", {}, "none, and nothing is written: output_dir is none"),
    ("checkpoints", {"output_dir": "r", "save_steps": 4}, "every 4 steps and after the last step, in r"),
    ("checkpoints", {"output_dir": "r", "save_steps": 50}, "after the last step, in r"),
    ("evaluation", {}, "none (no held-out prompts)"),
    (
        "evaluation",
        {"eval_rows": ROWS[:5]},
        "5 held-out prompts x 1 completion, greedy: before and after the",
    ),
    (
        "evaluation",
        {"eval_rows": ROWS, "eval_prompts": 30, "eval_samples": 2, "eval_temperature": 0.6, "eval_steps": 5},
        "30 held-out prompts x 2 completions, at temperature 0.6: before and after the training, and every 5 steps",
    ),
    ("devices", {"mesh": "fsdp=4,tensor=2"}, "8 x cpu (mesh data=1,fsdp=4,tensor=2), computing in float32"),
    ("devices", {"rollout_weights": "int8"}, "computing in float32, sampling from int8 weights"),
    ("devices", {"rollout_cache": "int8"}, "computing in float32, keys and values in int8 while sampling"),
]


@pytest.mark.parametrize(("title", "settings", "says"), LINES)
def test_the_plan_states_the_numbers_of_its_settings(components, title, settings, says):
    assert says in plan_of(components(**settings))[title]


def test_a_single_reward_is_listed_without_weight_or_other_terms(components):
    assert plan_of(components())["rewards"] == "exact"


def test_an_objective_that_shows_progress_gets_no_note_on_the_ratio(components):
    for changes in (
        {"beta": 0.1},
        {"num_iterations": 2},
        {"entropy_coef": 0.1},
        {"loss_type": "cispo", "epsilon_high": 5.0},
    ):
        assert "ratio" not in plan_of(components(**changes))["loss"], changes


# ---- bytes ----


def on_first(tree):
    """Bytes of the arrays on the first device."""
    first = jax.devices()[0]
    shards = [shard for x in jax.tree.leaves(tree) for shard in x.addressable_shards if shard.device == first]
    return sum(shard.data.nbytes for shard in shards)


def cache_of(components, prompts, samples):
    """Keys and values as the rollout makes them."""
    c, policy = components.config, components.policy
    widths = samples, c.max_prompt_length, c.max_completion_length
    empty = lambda: empty_cache(policy.cfg, prompts, *widths, jnp.dtype(policy.dtype)).layers
    cache = jax.jit(lambda: tuple(map(layer_on_mesh, empty())))()
    return on_first(cache)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"mesh": "fsdp=8", "dtype": "bfloat16", "beta": 0.1},
        {"mesh": "data=2,fsdp=2,tensor=2", "beta": 0.1, "eval_samples": 3, "eval_temperature": 1.0},
        {"mesh": "tensor=2", "optimizer": optax.sgd(0.1, momentum=0.9)},
        {"mesh": "fsdp=8", "dtype": "bfloat16", "beta": 0.1, "sync_ref_model": True},
        {"mesh": "fsdp=4,tensor=2", "optim": "adafactor"},
        {"mesh": "fsdp=8", "optim": "muon", "adam_moments": "bfloat16"},
        {"rollout_weights": "int8"},
        {"rollout_weights": "int8", "mesh": "fsdp=4,tensor=2", "dtype": "bfloat16"},
    ],
)
def test_planned_bytes_equal_those_of_the_real_arrays(components, settings):
    made = components(eval_rows=ROWS[:5], **settings)
    with jax.set_mesh(made.policy.mesh):
        weights = load_trained(made.policy, 0)
        if made.config.beta and not made.config.sync_ref_model:
            made.learner.set_reference(weights)
        state = made.learner.init(weights)
        copy = made.policy.rollout_copy(state.params)
        real = {
            "weights": on_first(state.params),
            "optimizer": on_first(state.opt_state),
            "reference": on_first(state.reference or made.learner.reference),
            "gradients": on_first(state.params),  # one for each weight, in its dtype
            "copy of the weights": on_first(copy),
            "cache": cache_of(made, made.config.prompts_per_step, made.config.num_generations),
            "evaluation cache": cache_of(made, made.evaluator.prompts_per_step, made.config.eval_samples),
        }
    assert bytes_held(made) == real
    assert real["weights"] > 1000


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1536, "1.5 KiB"),
        (123 * 2**20, "123 MiB"),
        (1000 * 2**20, "0.977 GiB"),
        (5e12, "4,657 GiB"),
    ],
)
def test_sizes_are_printed_in_readable_units(size, text):
    assert sized(size) == text


# ---- how it is shown ----

IDLE_PENALTY = {"beta": 0.1, "kl_estimator": "k1", "use_bias_correction_kl": False}


def shown(components, capsys, monkeypatch, width=80):
    monkeypatch.setenv("COLUMNS", str(width))
    show_plan(components)
    return capsys.readouterr()


def test_the_plan_is_wrapped_to_the_width_of_the_terminal(components, capsys, monkeypatch):
    made = components(eval_rows=ROWS[:5], beta=0.1, num_iterations=2, micro_batch_size=8, overlong_buffer=4)
    lines = shown(made, capsys, monkeypatch).out.splitlines()
    assert lines[0] == "The plan of this run"
    assert max(map(len, lines)) <= 80
    titles = [line.split()[0] for line in lines[1:] if line[:3].strip()]
    assert titles == list(plan_of(made))
    words = " ".join(line[15:].strip() for line in lines[1:])
    assert " ".join(plan_of(made)["update"].split()) in words, "nothing is cut off"


def test_names_are_printed_as_they_are_and_not_as_markup(components, capsys, monkeypatch):
    made = components(output_dir="runs/[red]x:smile:")
    assert "in runs/[red]x:smile:" in shown(made, capsys, monkeypatch).out


def test_only_the_writing_host_prints_the_plan(components, capsys, monkeypatch):
    monkeypatch.setattr(hosts, "is_writer", lambda: False)
    assert shown(components(**IDLE_PENALTY), capsys, monkeypatch) == ("", "")


def test_a_penalty_without_effect_is_noted_on_stderr(components, capsys, monkeypatch):
    """On stderr, in one line, in words that are no markup."""
    found = shown(components(**IDLE_PENALTY), capsys, monkeypatch)
    assert found.err.startswith("note: kl_estimator = k1: in the loss its expected gradient is zero; write ")
    assert len(found.err.splitlines()) == 1
    assert "note:" not in found.out
    assert shown(components(), capsys, monkeypatch).err == ""


def test_the_plan_is_printed_once_and_before_the_first_step(tiny_model, tmp_path, monkeypatch):
    """Both streams in one file, as in a job's log: one is kept back until it is flushed, the other is not."""
    monkeypatch.setenv("COLUMNS", "80")
    settings = {"max_steps": 2, "prompts_per_step": 8, "num_generations": 2, "max_completion_length": 8}
    settings |= {"max_prompt_length": 32, "reward_workers": 1, "mesh": "data=1", "output_dir": None}
    log = tmp_path / "log"
    with log.open("a") as out, log.open("a", buffering=1) as err, redirect_stdout(out), redirect_stderr(err):
        GRPOTrainer(tiny_model, short, GRPOConfig(**settings), ROWS[:16]).train()
    text = log.read_text()
    assert text.count("The plan of this run") == 1
    first = text.index("step 1/2")
    assert text.index("The plan of this run") < text.index("activations on top") < first
    assert re.findall(r"step (\d)/2", text) == ["1", "2"]
