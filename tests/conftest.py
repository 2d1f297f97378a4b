"""Shared fixtures. Eight virtual CPU devices, a compilation cache, and data beyond the shipped ones."""

import os
import pathlib

os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=8")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# The plan extra brings TPU and CUDA compilers without their hardware: JAX must not look for that everywhere.
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session", autouse=True)
def compilation_cache():
    """Identical programs compile once for all test processes and runs."""
    import jax

    jax.config.update("jax_compilation_cache_dir", str(ROOT / ".cache" / "jax"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)


@pytest.fixture(scope="session")
def shared_data() -> pathlib.Path:
    """GSM8K and knights-and-knaves folders kept beside the checkout; tests that need them skip without."""
    folder = ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"data beyond the shipped ones is absent: {folder}")
    return folder


@pytest.fixture(scope="session")
def tiny():
    """A shape that every mesh of eight places divides: 8 heads over 4, hidden 32, vocabulary 40."""
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
def random_params():
    """`random_params(cfg, seed)`: float32 parameters none of which is zero or one, so that a forgotten bias
    or norm shows, and large enough that distributions over tokens are far from uniform."""
    import jax
    import numpy as np

    from grpo_jax.models.qwen import abstract_params

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
