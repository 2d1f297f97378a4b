"""Shared fixtures. Eight virtual CPU devices, a compilation cache, and data beyond the shipped ones."""

import functools
import gc
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

# Nearly all time of the suite is compiling. LLVM without optimizations, and XLA's older generator of loops, compile the
# update of the demo's model in a seventh of the time; a program that is not split for many threads costs a seventh less
# again. The formulas are the same, and most programs run a few times. TESTS_COMPILE_AS_USERS_DO=1 leaves the compiler
# alone.
QUICK_FLAGS = "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
if os.environ.get("TESTS_COMPILE_AS_USERS_DO"):
    QUICK_FLAGS = ""
OUR_FLAGS = f"--xla_force_host_platform_device_count=8 {QUICK_FLAGS}".strip()
if OUR_FLAGS not in os.environ.get("XLA_FLAGS", ""):  # xdist's workers have it from their parent
    os.environ["XLA_FLAGS"] = f"{OUR_FLAGS} {os.environ.get('XLA_FLAGS', '')}".strip()
if QUICK_FLAGS:
    os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# The plan extra brings TPU and CUDA compilers without their hardware: JAX must not look for that everywhere.
os.environ.setdefault("JAX_PLATFORMS", "cpu")

ROOT = pathlib.Path(__file__).resolve().parents[1]
LONGEST_FIRST = (
    "learner/test_learner.py",
    "recipes/test_recipes.py",
    "rollout/test_segments.py",
    "training/test_lora_training.py",
    "test_resume.py",
    "pipelines/test_pipeline.py",
    "sandbox/test_attacks.py",
    "test_distributed.py",
    "training/test_int8_rollout.py",
    "training/test_sft.py",
    "plans/test_plan_verb.py",
    "learner/test_update.py",
    "commands/test_verbs.py",
    "rollout/test_sampling.py",
    "test_trainer.py",
    "training/test_published_objectives.py",
    "demo/test_demo.py",
    "rewards/test_every_reward.py",
    "scoring/test_reward_faults.py",
    "test_trl_scripts.py",
    "rewards/test_reward_pool.py",
    "rollout/test_generate.py",
    "training/test_curriculum.py",
    "test_trainer_api.py",
    "rewards/test_code_reward.py",
    "rollout/test_repetition.py",
    "runs/test_loggers.py",
    "runs/test_checkpoints.py",
    "learner/test_optimizers.py",
    "learner/test_losses.py",
    "sharding/test_meshes_agree.py",
    "training/test_capacity.py",
)
"""Workers take whole files. A long one that starts last would leave the other worker without work."""


def pytest_collection_finish():
    """Tracing makes many objects, and a pass of the collector over those of PyTorch and JAX takes a fifth of a second:
    what the imports made is left out, and passes are fewer."""
    gc.freeze()
    gc.set_threshold(100_000, 50, 100)


def pytest_collection_modifyitems(items):
    place = {ROOT / "tests" / name: i for i, name in enumerate(LONGEST_FIRST)}
    items.sort(key=lambda item: place.get(item.path, len(place)))


@pytest.fixture(scope="session", autouse=True)
def compilation_cache():
    """Identical programs compile once for all test processes and runs."""
    import jax

    jax.config.update("jax_compilation_cache_dir", str(ROOT / ".cache" / "jax"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)


MAPPINGS = pathlib.Path("/proc/self/maps")
MOST_MAPPINGS = 10_000


@pytest.fixture(scope="module", autouse=True)
def clear_compiled_programs():
    """A process keeps what it has compiled, each program in several memory mappings (a module of tests: up to 29,000).
    Linux allows 65,530, and past that a compilation crashes instead of failing."""
    yield
    jax = sys.modules.get("jax")
    if jax and MAPPINGS.exists() and MAPPINGS.read_bytes().count(b"\n") > MOST_MAPPINGS:
        jax.clear_caches()
        gc.collect()


def shared(make):
    """`make`, called once for arguments that print alike."""
    made = {}

    def kept(*args, **named):
        key = repr((args, named))
        if key not in made:
            made[key] = make(*args, **named)
        return made[key]

    return kept


@pytest.fixture(scope="module")
def shared_programs():
    """For modules of many runs with equal samplers or learners: their programs are traced once. What a run says of its
    compilations is then not its own."""
    from grpo_jax.learner import learner
    from grpo_jax.rollout import sampler
    from grpo_jax.setup import learner as setup
    from grpo_jax.training import sft_trainer

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sampler, "Programs", functools.cache(sampler.Programs))
        # An update has the optimizer's functions among its arguments.
        patch.setattr(setup, "make_optimizer", shared(setup.make_optimizer))
        for make in ("make_update", "make_score"):
            patch.setattr(learner, make, shared(getattr(learner, make)))
        patch.setattr(sft_trainer, "make_update", shared(sft_trainer.make_update))
        yield


@pytest.fixture(scope="session")
def process_environment():
    """`process_environment(devices=1, **more)`: the environment of a process that a test starts."""

    def make(devices=1, **more):
        return os.environ | {
            "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices} {QUICK_FLAGS}".strip(),
            "JAX_COMPILATION_CACHE_DIR": str(ROOT / ".cache" / "jax"),
            "PYTHONPATH": str(ROOT),
            **more,
        }

    return make


class Command:
    """A command line in a process of its own, much as subprocess.Popen has it."""

    def __init__(self, ask, words, point, cwd, files, environment):
        self.files = {name: pathlib.Path(f"{files}.{name}") for name in ("out", "err")}
        where = {name: str(file) for name, file in self.files.items()} | {"cwd": str(cwd)}
        words = list(map(str, words))
        self.ask, self.returncode = ask, None
        self.pid = ask({"words": words, "point": point, "environment": environment} | where)

    def poll(self):
        """The exit status; None while it runs."""
        if self.returncode is None:
            self.returncode = self.ask({"poll": self.pid})
        return self.returncode

    def wait(self, seconds=300):
        """Itself, ended; killed, if it does not end in time."""
        end = time.monotonic() + seconds
        while self.poll() is None:
            if time.monotonic() > end:
                self.send_signal(signal.SIGKILL)
            time.sleep(0.02)
        return self

    def send_signal(self, number):
        os.kill(self.pid, number)

    @property
    def stdout(self):
        return self.files["out"].read_text()

    @property
    def stderr(self):
        return self.files["err"].read_text()


@pytest.fixture(scope="session")
def command(process_environment, tmp_path_factory):
    """`command(words, point="never", cwd=".", devices=1, **environment)`: the command line as a process that was forked
    from one that has imported everything (`killed_run.py`), and is killed when it comes to the point. It keeps all
    that it compiles."""
    home, started = tmp_path_factory.mktemp("commands"), []
    server = subprocess.Popen(
        [sys.executable, str(ROOT / "tests" / "killed_run.py")],
        env=process_environment(JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS="0"),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )

    def ask(request):
        server.stdin.write(json.dumps(request) + "\n")
        server.stdin.flush()
        return json.loads(server.stdout.readline())

    def start(words, point="never", cwd=".", devices=1, **environment):
        environment["XLA_FLAGS"] = process_environment(devices)["XLA_FLAGS"]
        files = home / str(len(started))
        started.append(Command(ask, words, point, cwd, files, environment))
        return started[-1]

    yield start
    for one in started:
        if one.poll() is None:
            one.send_signal(signal.SIGKILL)
    server.communicate()


@pytest.fixture(scope="session")
def shared_data() -> pathlib.Path:
    """GSM8K and knights-and-knaves folders kept beside the checkout; tests that need them skip without."""
    folder = ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"data beyond the shipped ones is absent: {folder}")
    return folder


@pytest.fixture(scope="session")
def tiny():
    """A shape that every mesh of eight devices divides: 8 heads over 4, hidden 32, vocabulary 40."""
    from grpo_jax.models.config import ModelConfig

    return ModelConfig(
        vocab_size=40,
        hidden_size=32,
        intermediate_size=64,
        num_layers=2,
        num_heads=8,
        num_kv_heads=4,
        head_dim=8,
        rope_theta=1e4,
        rms_norm_eps=1e-6,
        tie_word_embeddings=False,
        max_position_embeddings=512,
    )


@pytest.fixture(scope="session")
def tiny_model(random_params, tmp_path_factory) -> pathlib.Path:
    """A whole model folder with a character tokenizer. Its weights are random, but far from uniform, and every
    mesh of eight devices divides them."""
    from grpo_jax.models.config import ModelConfig
    from grpo_jax.models.hf import save_model

    folder = tmp_path_factory.mktemp("model") / "tiny"
    cfg = ModelConfig(
        vocab_size=104,
        hidden_size=32,
        intermediate_size=64,
        num_layers=2,
        num_heads=4,
        num_kv_heads=2,
        head_dim=8,
        rope_theta=1e4,
        rms_norm_eps=1e-6,
        tie_word_embeddings=True,
        max_position_embeddings=1024,
    )
    save_model(folder, cfg, random_params(cfg))
    _character_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def reward_model(tmp_path_factory) -> pathlib.Path:
    """A reward model's folder as transformers writes it: another shape than `tiny_model`'s, float32, and random, but
    far from zero; the same characters, under a template of its own."""
    import torch
    from transformers import Qwen2Config, Qwen2ForSequenceClassification

    folder = tmp_path_factory.mktemp("reward") / "judge"
    shape = {"vocab_size": 104, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 3}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256}
    torch.manual_seed(0)
    model = Qwen2ForSequenceClassification(Qwen2Config(**shape, **heads, num_labels=1, pad_token_id=0))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    model.save_pretrained(folder)
    tokenizer = _character_tokenizer()
    tokenizer.chat_template = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"
    tokenizer.save_pretrained(folder)
    return folder


def _character_tokenizer():
    """A token for each printable character; three of the model's 104 rows are padding."""
    from tokenizers import Tokenizer, decoders, models
    from transformers import PreTrainedTokenizerFast

    symbols = ["<pad>", "<|im_start|>", "<|im_end|>", *map(chr, range(32, 127)), "\n", "\t", "\r"]
    tokenizer = Tokenizer(models.BPE(vocab={symbol: i for i, symbol in enumerate(symbols)}, merges=[]))
    tokenizer.decoder = decoders.Fuse()
    made = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<pad>",
        additional_special_tokens=["<|im_start|>"],
    )
    made.chat_template = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    return made


@pytest.fixture(scope="session")
def tiny_settings(tiny_model, tmp_path_factory):
    """Settings of a small run on `tiny_model` that learns something in every step and divides over eight
    devices: its reward counts vowels, which even a random model writes now and then."""
    folder = tmp_path_factory.mktemp("rows")
    for split, count in (("train", 40), ("test", 8)):
        rows = [{"prompt": f"{split} {i}: say a", "letter": "aeiou"[i % 5]} for i in range(count)]
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {
        "model": str(tiny_model),
        "dataset": str(folder),
        "rewards": f"{pathlib.Path(__file__).parent / 'tiny_rewards.py'}:vowels",
        "reward_workers": 1,
        "max_steps": 5,
        "save_steps": 2,
        "prompts_per_step": 8,
        "num_generations": 2,
        "max_prompt_length": 32,
        "max_completion_length": 8,
        "eval_prompts": 8,
        "log_completions_steps": 1,
        "learning_rate": 1e-2,
    }


@pytest.fixture(scope="session")
def options():
    """`options(settings)`: the settings as words of a command line."""
    return lambda settings: [word for name, value in settings.items() for word in (f"--{name}", str(value))]


class Dies(Exception):
    pass


class DiesAfter:
    """A callback that raises after a step, as if the process had died there."""

    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **_):
        if state.global_step == self.step:
            raise Dies


@pytest.fixture(scope="session")
def train(tiny_settings, tmp_path_factory):
    """`train(dies_after, given, **changes)`: the folder of a run of `tiny_settings` with changes, and what is `given`
    to the trainer, which dies after these steps and is started again."""

    from grpo_jax import GRPOConfig, GRPOTrainer

    def run(dies_after=(), given=None, **changes):
        folder = tmp_path_factory.mktemp("trained") / "run"
        settings = tiny_settings | {"output_dir": str(folder), "save_steps": 1, "eval_prompts": 0} | changes
        model = settings.pop("model")
        for step in (*dies_after, None):
            callbacks = [] if step is None else [DiesAfter(step)]
            trainer = GRPOTrainer(model, args=GRPOConfig(**settings), callbacks=callbacks, **(given or {}))
            if step is None:
                trainer.train()
            else:
                with pytest.raises(Dies):
                    trainer.train()
        return folder

    return run


@pytest.fixture(scope="session")
def random_params():
    """`random_params(cfg, seed)`: float32 parameters none of which is zero or one, so that a forgotten bias
    or norm shows, and large enough that distributions over tokens are far from uniform."""
    import jax
    import numpy as np

    from grpo_jax.models.transformer import abstract_params

    def make(cfg, seed=0):
        rng = np.random.default_rng(seed)

        def leaf(path, x):
            centre = 1.0 if path[-1].key == "scale" else 0.0
            return jax.numpy.asarray(rng.normal(centre, 0.2, x.shape).astype(np.float32))

        return jax.tree_util.tree_map_with_path(leaf, abstract_params(cfg))

    return make


@pytest.fixture(scope="session")
def tiny_params(tiny, random_params):
    """Parameters of `tiny`; session-wide, so never donate them."""
    return random_params(tiny)


@pytest.fixture(scope="session")
def mesh_1():
    """The mesh of one device."""
    from grpo_jax.sharding.mesh import make_mesh

    return make_mesh({"data": 1})


@pytest.fixture
def one_device(mesh_1):
    """The mesh of one device, set for the test."""
    import jax

    with jax.set_mesh(mesh_1):
        yield mesh_1


@pytest.fixture(scope="session")
def jaxpr_equations():
    """`jaxpr_equations(f, *args)`: every primitive application in f's jaxpr, inner ones included."""
    import jax
    from jax.extend.core import jaxprs_in_params

    def walk(jaxpr):
        for equation in jaxpr.eqns:
            yield equation
            for inner in jaxprs_in_params(equation.params):
                yield from walk(inner)

    return lambda f, *args: list(walk(jax.make_jaxpr(f)(*args).jaxpr))
