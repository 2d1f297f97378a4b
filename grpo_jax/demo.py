"""The demo's starting model: made here, with a tokenizer of its own, from nothing but the seed.

It has Qwen2.5's architecture with some hundred thousand parameters, and one symbol for every number. A short
cold start on worked examples teaches it to try, to check and to try again; then, on examples of which most give
up at the first failure, to do just that. What GRPO adds is to think on until the target is reached: success and
length grow together. See `data/tiny_countdown.py`.

What did not work: every example giving up after a failure with the same probability (later trials are then too
rare to be learned well, and GRPO has nothing to build on); verdicts without the target beside them (the model says
"yes" to any outcome); the usual small random weights (see `_random_params`); GRPO at a learning rate of 1e-3
(arithmetic decays faster than patience grows).
"""

import itertools
import json
import math
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax

from grpo_jax.config import GRPOConfig, SFTConfig
from grpo_jax.data import tiny_countdown
from grpo_jax.errors import UserError
from grpo_jax.models.config import ModelConfig
from grpo_jax.models.hf import save_model
from grpo_jax.models.qwen import Params, abstract_params, init
from grpo_jax.policy import Policy, open_policy
from grpo_jax.runs.folder import RunFolder, check_place
from grpo_jax.runs.progress import TrainingProgress
from grpo_jax.sft import FineTuner

SHAPE = ModelConfig(
    vocab_size=128,
    hidden_size=64,
    intermediate_size=192,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=16,
    rope_theta=1e4,
    rms_norm_eps=1e-6,
    tie_word_embeddings=True,
    max_position_embeddings=1024,  # room for the default lengths of `eval` and `generate`
)
COLD_START = SFTConfig(
    model="demo",
    dataset=tiny_countdown.NAME,
    max_steps=1600,
    rows_per_step=64,
    micro_batch_size=16,  # small enough for the cache of a core
    max_length=256,
    learning_rate=4e-3,
    lr_scheduler_type="linear",
    warmup_steps=20,
    logprob_chunk=65536,
    gradient_checkpointing="none",
    shuffle_dataset=False,  # the order teaches
)
PATIENT_STEPS = 1400
"""Steps of the cold start on examples that never give up; in the rest, most do so at the first failure."""
PATIENCE = 0.15
"""The share of the latter that do not."""
EXAMPLES = 12_800

_PAD, _END = "<pad>", "<|endoftext|>"
_WORDS = ["<think>", "</think>", "<answer>", "</answer>", " vs ", " yes", " no"]
_NEWLINE, _SPACE = "\u010a", "\u0120"  # as byte-level tokenizers write them


@contextmanager
def starting_model(config: GRPOConfig) -> Iterator[Path]:
    """The folder of the model that `model: demo` stands for: `start` in the run's folder, made when it is not
    there yet; in a temporary folder when the run has none. UserError where the demo cannot run."""
    _check(config)
    if config.output_dir is None:
        with tempfile.TemporaryDirectory() as home:
            yield _made(Path(home) / "start", config)
        return
    with RunFolder(config.output_dir) as run:
        started = check_place(run.path, config.model_dump(mode="json"))
        run.lock()
        start = _made(Path(run.path) / "start", config, keep=started)
    yield start


def _check(config: GRPOConfig) -> None:
    name, _, options = str(config.dataset).partition(":")
    if name != tiny_countdown.NAME:
        raise UserError(
            f"dataset = {config.dataset}: the model 'demo' reads {tiny_countdown.NAME} only; give another model"
        )
    tiny_countdown.options_of(options)
    if jax.process_count() > 1:
        raise UserError("model = demo: it is made by one process; start one, or give another model")
    if "://" in (config.output_dir or ""):
        raise UserError(
            f"output_dir = {config.output_dir}: the demo keeps its model there; give a local folder"
        )


def _made(start: Path, config: GRPOConfig, keep: bool = False) -> Path:
    """`start` itself, holding the model that the settings lead to."""
    options = str(config.dataset).partition(":")[2]
    recipe = {"seed": config.seed, "options": options, "steps": COLD_START.max_steps}
    if start.exists():
        if keep or _recipe_of(start) == recipe:
            print(f"Starting model: {start}, made before")
            return start
        _remove(start)
    with tempfile.TemporaryDirectory() as blank:
        _write_blank(Path(blank), recipe)
        policy = open_policy(config, blank)
        symbols = f"and a tokenizer of {len(policy.tokenizer)} symbols"
        print(f"Building a Qwen2.5-shaped model of {_size()} random parameters {symbols}")
        save_model(start, policy.cfg, _cold_start(policy, config, options), policy.folder)
    print(f"Starting model: {start}")
    return start


def _recipe_of(start: Path) -> dict[str, Any] | None:
    try:
        return json.loads((start / "config.json").read_text(encoding="utf-8")).get("grpo_jax_demo")
    except (OSError, ValueError):
        return None


def _remove(start: Path) -> None:
    """Make room: the run that this model was made for never began."""
    if _recipe_of(start) is None:
        raise UserError(f"output_dir: {start} is there and not the demo's model; give another output_dir")
    shutil.rmtree(start)


def _write_blank(folder: Path, recipe: dict[str, Any]) -> None:
    """A whole model folder with random weights; its config.json says from what it was made."""
    save_model(folder, SHAPE, _random_params(recipe["seed"]))
    tokenizer = _tokenizer()
    tokenizer.save_pretrained(folder)
    ends = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    _update_json(folder / "config.json", ends | {"grpo_jax_demo": recipe})
    _update_json(folder / "generation_config.json", ends)


def _random_params(seed: int) -> Params:
    """Matrices with a standard deviation of 0.12: the usual 0.02 is for widths of thousands, and on a width of 64
    it takes several times the steps to learn anything."""
    wider = lambda path, x: x * 6 if path[-1].key in ("kernel", "embedding") else x
    return jax.tree_util.tree_map_with_path(wider, init(SHAPE, jax.random.key(seed)))


def _size() -> str:
    return f"{sum(math.prod(x.shape) for x in jax.tree.leaves(abstract_params(SHAPE))):,}"


def _update_json(file: Path, values: dict[str, Any]) -> None:
    known = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    file.write_text(json.dumps(known | values, indent=2) + "\n", encoding="utf-8")


def _tokenizer() -> Any:
    """One symbol a number, a tag, a verdict or a sign.

    Built as Qwen2.5's tokenizer is, because transformers opens every model of its type with that: bytes, pairs of
    bytes to merge (none here), and whole words on top.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    numbers = [str(n) for n in range(tiny_countdown.LARGEST + 1)]
    words = [word for word in (*_WORDS, *numbers) if len(word) > 1]
    bytes_used = [_PAD, *"0123456789+-=:", _NEWLINE, _SPACE]
    tokenizer = Tokenizer(models.BPE(vocab={byte: i for i, byte in enumerate(bytes_used)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_tokens([AddedToken(word, normalized=False) for word in words])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token=_PAD, eos_token=_END)


def _lessons(options: str, seed: int) -> list[dict[str, str]]:
    """The cold start's rows in their order: first how to try, then how to give up."""
    rows_of = lambda steps, patience: itertools.islice(
        itertools.cycle(tiny_countdown.worked_examples(options, seed, EXAMPLES, patience)),
        steps * COLD_START.rows_per_step,
    )
    rest = COLD_START.max_steps - PATIENT_STEPS
    return [*rows_of(PATIENT_STEPS, 1.0), *rows_of(rest, PATIENCE)]


def _cold_start(policy: Policy, config: GRPOConfig, options: str) -> Params:
    """The weights after a short fine-tuning on worked examples."""
    rows, steps = _lessons(options, config.seed), COLD_START.max_steps
    print(f"Cold start: {steps} steps on {len(rows)} worked examples, of which this is one:")
    print(rows[0]["prompt"] + rows[0]["completion"])
    tuner = FineTuner(COLD_START.replace(seed=config.seed), policy, rows)
    with jax.set_mesh(policy.mesh), TrainingProgress(steps) as progress:
        state = tuner.start()
        for step in range(steps):
            state, metrics = tuner(state, step)
            progress.update(step + 1, metrics)
    return state.params


def train_demo(config: GRPOConfig) -> int:
    """GRPO from the demo's starting model, which lives as long as the run."""
    from grpo_jax.rewards import RewardPool
    from grpo_jax.trainer import GRPOTrainer

    # A wrong name ends the run here, and not after the cold start.
    RewardPool(config.rewards)
    with starting_model(config) as folder:
        trainer = GRPOTrainer(folder, args=config)
        trainer.args = trainer.args.replace(
            model=config.model
        )  # the folder moves with the run; the name stays
        trainer.train()
    return 0
