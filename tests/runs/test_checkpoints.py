"""Saving, resuming, falling back: all damage is detected, and a restore gives the bits that were saved."""

import dataclasses
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from grpo_jax.errors import UserError
from grpo_jax.runs.checkpoints import Checkpoints
from grpo_jax.runs.digest import digest, on_devices


@partial(jax.tree_util.register_dataclass, data_fields=["step", "params", "opt"], meta_fields=[])
@dataclasses.dataclass(frozen=True)
class State:
    step: jax.Array
    params: dict
    opt: tuple


OPTIMIZER = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3))


def mesh(shape, names=("fsdp", "tensor")):
    return jax.make_mesh(shape, names, axis_types=(AxisType.Auto,) * len(names))


def on(mesh, tree, spec=("fsdp",)):
    """The tree on `mesh`: matrices by `spec`, everything else replicated."""
    shardings = jax.tree.map(
        lambda x: NamedSharding(mesh, PartitionSpec(*spec) if x.ndim > 1 else PartitionSpec()), tree
    )
    return jax.tree.map(jax.device_put, tree, shardings)


def make_state(step=0, seed=0):
    rng = np.random.default_rng([seed, step])
    params = {
        "embed": rng.normal(size=(64, 32)).astype(np.float32),
        "norm": rng.normal(size=7).astype(jnp.bfloat16),
    }
    return on(mesh((4, 2)), State(jnp.int32(step), jax.tree.map(jnp.asarray, params), OPTIMIZER.init(params)))


def abstract(state):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)


def bits(tree):
    return [np.asarray(x).tobytes() for x in jax.tree.leaves(tree)]


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A folder with steps 10 and 20; copied by the tests that damage it."""
    folder = tmp_path_factory.mktemp("saved")
    with Checkpoints(folder) as checkpoints:
        for step in (10, 20):
            checkpoints.save(step, make_state(step), {"num_tokens": step * 100})
    return folder


@pytest.fixture
def folder(saved, tmp_path):
    return pathlib.Path(shutil.copytree(saved, tmp_path / "checkpoints"))


def restore(folder, like=None, **options):
    """(step, state, extra), and the messages."""
    said: list[str] = []
    with Checkpoints(folder, say=said.append) as checkpoints:
        return checkpoints.restore(abstract(like or make_state()), **options), said


def test_newest_step_comes_back_bit_for_bit_with_its_types(folder):
    (step, state, extra), said = restore(folder)
    assert (step, extra, said) == (20, {"num_tokens": 2000}, [])
    assert bits(state) == bits(make_state(20))
    assert jax.tree.structure(state) == jax.tree.structure(make_state(20))


def test_named_step_is_that_step_or_a_user_error(folder):
    assert restore(folder, step=10)[0][0] == 10
    with pytest.raises(UserError, match=r"step: 15 is not in .* it has \[10, 20\]"):
        restore(folder, step=15)


def test_nothing_saved_yet_restores_nothing(tmp_path):
    assert restore(tmp_path / "new") == (None, [])


def test_other_mesh_gets_the_same_bits_in_its_own_sharding(folder):
    for other, spec in ((mesh((8, 1)), ("fsdp",)), (mesh((2, 4)), ("tensor", "fsdp")), (mesh((1, 1)), ())):
        like = on(other, make_state(), spec)
        (step, state, _), said = restore(folder, like)
        assert (step, said) == (20, [])
        assert bits(state) == bits(make_state(20))
        assert state.params["embed"].sharding == like.params["embed"].sharding


@pytest.mark.parametrize("size", [64, 1_000_000])
def test_state_may_be_donated_as_soon_as_save_returns(tmp_path, size):
    """On CPU what Orbax writes is the device's own buffer: a donating step must not reach into it.

    The expected values come from arithmetic, as looking at the state would itself protect its buffers.
    """
    state = on(mesh((8, 1)), {"a": jnp.arange(size, dtype=jnp.float32).reshape(8, -1), "n": jnp.float32(0)})
    forward = jax.jit(lambda tree: jax.tree.map(lambda x: x + 1, tree), donate_argnums=0)
    with Checkpoints(tmp_path) as checkpoints:
        for save in range(1, 4):
            for _ in range(30):
                state = forward(state)
            checkpoints.save(save, state)
        for _ in range(30):
            state = forward(state)
        checkpoints.wait()
        for save in range(1, 4):
            back = checkpoints.restore(abstract(state), step=save)[1]
            assert float(back["n"]) == 30 * save
            assert np.array_equal(np.ravel(back["a"]), np.arange(size) + 30 * save)


def test_saves_after_a_resume_keep_the_newest_steps(folder):
    with Checkpoints(folder, keep=2) as checkpoints:
        checkpoints.restore(abstract(make_state()))
        checkpoints.save(30, make_state(30))
        checkpoints.save(40, make_state(40))
    assert sorted(int(p.name) for p in folder.iterdir()) == [30, 40]
    assert restore(folder)[0][0] == 40


def test_keep_0_keeps_every_step(tmp_path):
    with Checkpoints(tmp_path, keep=0) as checkpoints:
        for step in range(5):
            checkpoints.save(step, {"a": jnp.arange(3)})
        checkpoints.wait()
        assert checkpoints.steps() == [0, 1, 2, 3, 4]


# --- damage ---


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty(path):
    path.write_bytes(b"")


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0x10
    path.write_bytes(data)


def drop(path):
    path.unlink()


@pytest.mark.parametrize("damage", [cut, empty, flip, drop])
def test_each_file_damaged_in_turn_gives_the_right_bits_or_the_step_before(saved, tmp_path, damage):
    names = sorted(p.relative_to(saved) for p in (saved / "20").rglob("*") if p.is_file())
    fell_back = 0
    for i, name in enumerate(names):
        folder = pathlib.Path(shutil.copytree(saved, tmp_path / str(i)))
        damage(folder / name)
        (step, state, extra), said = restore(folder)
        assert bits(state) == bits(make_state(step)), name
        assert extra == {"num_tokens": step * 100}
        assert len(said) == (step != 20), name
        fell_back += step == 10
    assert fell_back >= 3  # at least the data, the index and the run state


def test_flipped_byte_in_a_large_tensor_is_seen(tmp_path):
    """Orbax keeps no checksum of the values: without our digest this one comes back as another number."""
    state = {"a": jnp.asarray(np.random.default_rng(0).normal(size=(64, 1000)).astype(np.float32))}
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(10, state)
        checkpoints.save(20, state)
    flip(max((tmp_path / "20" / "state").rglob("*"), key=lambda p: p.stat().st_size if p.is_file() else 0))
    (step, back, _), said = restore(tmp_path, state)
    assert step == 10
    assert bits(back) == bits(state)
    assert "20 is damaged" in said[0]
    assert said[0].endswith("; trying step 10")


def test_changed_run_state_is_seen(folder):
    notes = folder / "20" / "notes" / "metadata"
    notes.write_text(notes.read_text().replace('"num_tokens": 2000', '"num_tokens": 2001'))
    assert restore(folder)[0][0] == 10


def test_every_step_damaged_is_a_user_error_and_nothing_is_deleted(folder):
    for step in ("10", "20"):
        cut(folder / step / "state" / "_METADATA")
    before = sorted(folder.rglob("*"))
    with pytest.raises(UserError, match=r"steps \[10, 20\] are all damaged"):
        restore(folder)
    assert sorted(folder.rglob("*")) == before


def test_damaged_named_step_is_not_replaced_by_another(folder):
    cut(folder / "20" / "state" / "_METADATA")
    with pytest.raises(UserError, match="step 20 is damaged"):
        restore(folder, step=20)


@pytest.mark.parametrize("wreck", ["truncated", "emptied"])
def test_step_after_a_fallback_can_be_saved_again(folder, wreck):
    if wreck == "truncated":
        cut(folder / "20" / "state" / "manifest.ocdbt")
    else:
        shutil.rmtree(folder / "20")
        (folder / "20").mkdir()
    with Checkpoints(folder, say=lambda text: None) as checkpoints:
        assert checkpoints.restore(abstract(make_state()))[0] == 10
        checkpoints.save(15, make_state(15))  # a smaller step than the damaged one's
        checkpoints.save(20, make_state(20, seed=1))
    (step, state, _), said = restore(folder)
    assert (step, said) == (20, [])
    assert bits(state) == bits(make_state(20, seed=1))
    assert restore(folder, step=15)[0][0] == 15


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda p: p | {"embed": jnp.zeros((64, 40))},
            r"embed'\] is float32\[64, 32\] there and float32\[64, 40\]",
        ),
        (lambda p: p | {"norm": p["norm"].astype(jnp.float32)}, "norm.* is bfloat16.* there and float32"),
        (lambda p: p | {"head": jnp.zeros(3)}, r"head'\] is nothing there and float32\[3\] here"),
        (lambda p: {"embed": p["embed"]}, r"norm'\] is bfloat16\[7\] there and nothing here"),
    ],
)
def test_state_of_another_model_is_refused_not_cut_or_padded(folder, change, message):
    state = make_state()
    other = dataclasses.replace(state, params=change(state.params))
    with pytest.raises(UserError, match=message):
        restore(folder, other)


def test_out_of_memory_is_not_taken_for_damage(folder, monkeypatch):
    def too_large(*_, **__):
        raise MemoryError

    monkeypatch.setattr("orbax.checkpoint.PyTreeCheckpointHandler.restore", too_large)
    with pytest.raises(MemoryError):
        restore(folder)


# --- kill -9 ---

KILLED = """
import os, signal, sys, numpy as np, jax.numpy as jnp
from grpo_jax.runs.checkpoints import Checkpoints
checkpoints = Checkpoints(sys.argv[1])
state = lambda n: {"a": jnp.asarray(np.random.default_rng(n).random(1_000_000, "f4"))}
checkpoints.save(1, state(1), {"at": 1})
checkpoints.wait()
os.rename = os.replace = lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL)  # dies at the commit
checkpoints.save(2, state(2), {"at": 2})
checkpoints.wait()
"""


def test_kill_in_the_middle_of_a_save_leaves_the_step_before_and_is_tidied_up(tmp_path):
    done = subprocess.run([sys.executable, "-c", KILLED, tmp_path], stderr=subprocess.PIPE, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert [p.name for p in tmp_path.iterdir() if "tmp" in p.name], "not killed during a save"
    like = {"a": jnp.zeros(1_000_000)}
    with Checkpoints(tmp_path, say=pytest.fail) as checkpoints:
        assert checkpoints.steps() == [1]
        step, state, extra = checkpoints.restore(like)
        assert (step, extra) == (1, {"at": 1})
        assert bits(state) == [np.random.default_rng(1).random(1_000_000, "f4").tobytes()]
        checkpoints.save(3, like, {"at": 3})
    assert sorted(p.name for p in tmp_path.iterdir()) == ["1", "3"]


def test_reader_leaves_the_save_of_another_process_alone(folder):
    unfinished = folder / "30.orbax-checkpoint-tmp-5"
    unfinished.mkdir()
    with Checkpoints(folder, read_only=True) as checkpoints:
        assert checkpoints.restore(abstract(make_state()))[0] == 20
        with pytest.raises(RuntimeError, match="read_only"):
            checkpoints.save(20, make_state())
    assert unfinished.exists()
    with Checkpoints(folder) as checkpoints:  # the run itself, resumed
        assert checkpoints.steps() == [10, 20]
        checkpoints.save(25, make_state(25))
    assert not unfinished.exists()


def test_reading_a_run_that_never_saved_makes_no_folder(tmp_path):
    with Checkpoints(tmp_path / "none", read_only=True) as checkpoints:
        assert checkpoints.restore(abstract(make_state())) is None
    assert not (tmp_path / "none").exists()


# --- in separate processes ---


def python(code, *arguments, **options):
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options
    )


RESTORING = """
import gc, sys, time, jax
from jax.sharding import NamedSharding, PartitionSpec
from grpo_jax.runs.checkpoints import Checkpoints
mesh = jax.make_mesh((8,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
leaf = jax.ShapeDtypeStruct((64, 1000), "float32", sharding=NamedSharding(mesh, PartitionSpec("x")))
like = {str(i): leaf for i in range(8)}
print("START", file=sys.stderr)
with Checkpoints(sys.argv[1]) as checkpoints:
    print(checkpoints.restore(like)[0])
gc.collect()
time.sleep(0.2)
"""


def test_damaged_step_is_reported_in_one_sentence_without_tracebacks(tmp_path):
    x = np.random.default_rng(0).normal(size=(64, 1000)).astype(np.float32)
    state = {str(i): jnp.asarray(x) for i in range(8)}
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(10, on(mesh((8, 1)), state))
        checkpoints.save(20, on(mesh((8, 1)), state))
    empty(max((tmp_path / "20" / "state").rglob("*"), key=lambda p: p.stat().st_size if p.is_file() else 0))
    out, err = python(RESTORING, tmp_path).communicate()
    assert out == "10\n", err
    said = err.partition("START\n")[2].splitlines()
    assert len(said) == 1, err
    assert "20 is damaged" in said[0]


TOGETHER = """
import pathlib, sys, jax, numpy as np
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding, PartitionSpec
from grpo_jax.runs.checkpoints import Checkpoints
folder, process, port = pathlib.Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
jax.config.update("jax_cpu_collectives_implementation", "gloo")
jax.distributed.initialize(f"127.0.0.1:{port}", 2, process)
mesh = jax.make_mesh((len(jax.devices()),), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
sharding = NamedSharding(mesh, PartitionSpec("x"))

def state(seed):
    x = np.random.default_rng(seed).normal(size=(64, 1000)).astype("f4")
    return {"a": jax.make_array_from_callback(x.shape, sharding, lambda index: x[index])}

with Checkpoints(folder) as checkpoints:
    for step in (10, 20):
        checkpoints.save(step, state(step))
multihost_utils.sync_global_devices("saved")
if process == 0:  # the shards of process 1 only: process 0 can read all that it needs
    largest = max((folder / "20/state/ocdbt.process_1").rglob("*"), key=lambda p: p.stat().st_size)
    largest.write_bytes(b"")
multihost_utils.sync_global_devices("damaged")
with Checkpoints(folder) as checkpoints:
    step, back, _ = checkpoints.restore(state(0))
    same = all(
        np.array_equal(a.data, b.data)
        for a, b in zip(back["a"].addressable_shards, state(step)["a"].addressable_shards)
    )
    checkpoints.save(20, state(21))
print(step, same, checkpoints.steps())
"""


def test_processes_fall_back_together_when_only_one_of_them_meets_the_damage(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    both = [python(TOGETHER, tmp_path, process, port) for process in (0, 1)]
    try:
        for process in both:
            out, err = process.communicate(timeout=120)
            assert out.splitlines()[-1:] == ["10 True [10, 20]"], err
    finally:
        for process in both:
            process.kill()
            process.communicate()


# --- the digest ---


def test_digest_is_the_same_however_a_tensor_is_sharded():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(64, 32)))
    found = {
        int(on_devices(on(mesh(s), x, spec)))
        for s, spec in (((4, 2), ("fsdp",)), ((2, 4), ("tensor", "fsdp")))
    }
    assert found == {digest(x)}, "that of a small tensor is taken on the host"


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int32", "uint32", "int8", "bool"])
def test_digest_sees_each_changed_element_and_each_swap(dtype):
    x = np.arange(6).reshape(2, 3).astype(jnp.dtype(dtype)) if dtype != "bool" else np.zeros((2, 3), bool)
    known = {digest(jnp.asarray(x))}
    assert known == {int(on_devices(jnp.asarray(x)))}
    for index in np.ndindex(x.shape):
        y = x.copy()
        y[index] = 1 if dtype == "bool" else 100
        known.add(digest(jnp.asarray(y)))
    assert len(known) == 7
    if dtype != "bool":
        assert digest(jnp.asarray(x[::-1])) not in known


def test_digest_sees_signs_flipped_in_pairs():
    """A plain weighted sum would not: two flips of the highest bit add up to 2^32."""
    x = np.ones(8, np.float32)
    y = x.copy()
    y[[2, 5]] *= -1
    assert digest(jnp.asarray(x)) != digest(jnp.asarray(y))


def test_digest_tells_negative_zero_and_not_a_number_from_zero():
    assert len({digest(jnp.float32(v)) for v in (0.0, -0.0, float("nan"))}) == 3
