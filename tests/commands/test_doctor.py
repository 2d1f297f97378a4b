"""The doctor reports what the machine has and what is missing, also when JAX or a package is broken."""

import sys
import types
from importlib import metadata

import pytest

from grpo_jax.commands import doctor


@pytest.fixture(autouse=True)
def bare_machine(monkeypatch):
    """No accelerator and no JAX_PLATFORMS, whatever machine the tests run on."""
    monkeypatch.setattr(doctor, "has_nvidia", lambda: False)
    monkeypatch.setattr(doctor, "has_tpu", lambda: False)
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)


def said(check) -> str:
    return "\n".join(f"{finding.level}: {finding.text}" for finding in check())


def test_a_machine_with_only_a_cpu_is_usable(monkeypatch, capsys):
    monkeypatch.setattr(doctor, "unmet", lambda package, extra="": [])
    assert doctor.doctor() == 0
    out = capsys.readouterr().out
    for word in (
        "Python 3.",
        "jax 0.",
        "platform cpu",
        "GiB memory free",
        "disk:",
        "extras installed",
        "Usable.",
    ):
        assert word in out


def test_a_jax_that_cannot_start_is_not_usable(monkeypatch, capsys):
    broken = types.SimpleNamespace(devices=lambda: (_ for _ in ()).throw(RuntimeError("TPU is busy\nmore")))
    monkeypatch.setitem(sys.modules, "jax", broken)
    monkeypatch.setenv("JAX_PLATFORMS", "tpu")
    assert doctor.doctor() == 1
    out = capsys.readouterr().out
    assert "x JAX cannot compute here: TPU is busy (JAX_PLATFORMS=tpu is set" in out
    assert "Not usable yet" in out
    assert "more" not in out


def test_a_missing_jax_is_reported_not_raised(monkeypatch):
    monkeypatch.setitem(sys.modules, "jax", None)
    assert "broken: JAX cannot compute here: import of jax" in said(doctor.devices)


@pytest.mark.parametrize("name", ["psutil", "packaging.requirements"])
def test_a_missing_package_of_the_doctor_itself_is_reported(name, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, name, None)
    assert doctor.doctor() == 1
    assert f"x {name.partition('.')[0]} is not installed; run: pip install" in capsys.readouterr().out


@pytest.mark.parametrize(("driver", "extra"), [(550, "cuda12"), (580, "cuda13"), (None, "cuda13")])
def test_a_gpu_that_jax_does_not_use_is_named_with_the_extra_for_its_driver(driver, extra, monkeypatch):
    monkeypatch.setattr(doctor, "has_nvidia", lambda: True)
    monkeypatch.setattr(doctor, "nvidia_driver", lambda: driver)
    text = said(lambda: doctor.unused("cpu"))
    assert text.startswith("note: this machine has an NVIDIA GPU")
    assert f"pip install 'grpo-jax[{extra}]'" in text
    assert said(lambda: doctor.unused("gpu")) == ""


def test_a_tpu_that_jax_does_not_use_is_named(monkeypatch):
    monkeypatch.setattr(doctor, "has_tpu", lambda: True)
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    text = said(lambda: doctor.unused("cpu"))
    assert "pip install 'grpo-jax[tpu]'" in text
    assert "JAX_PLATFORMS=cpu is set; unset it" in text


def test_memory_of_devices_is_shown(monkeypatch):
    stats = {"bytes_in_use": 2**30, "bytes_limit": 120 * 2**30}
    chip = types.SimpleNamespace(id=0, device_kind="TPU v5p", platform="tpu", memory_stats=lambda: stats)
    fake = types.SimpleNamespace(
        devices=lambda: [chip] * 4,
        local_devices=lambda: [chip],
        block_until_ready=lambda value: value,
        numpy=types.SimpleNamespace(ones=lambda n: types.SimpleNamespace(sum=lambda: n)),
    )
    monkeypatch.setitem(sys.modules, "jax", fake)
    text = said(doctor.devices)
    assert "JAX computes on 4 x TPU v5p" in text
    assert "device 0: 120.0 GiB for JAX, 1.0 GiB in use" in text


# ---- what the machine shows ----


@pytest.mark.parametrize(
    ("files", "tpu"),
    [([], False), (["dev/accel0"], True), (["dev/vfio/0"], True), (["dev/vfio/vfio"], False)],
)
def test_a_tpu_is_seen_by_its_device_file(files, tpu, tmp_path, monkeypatch):
    monkeypatch.undo()
    for name in files:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert doctor.has_tpu(tmp_path) is tpu


def test_a_gpu_is_seen_by_its_device_file_or_its_tool(tmp_path, monkeypatch):
    monkeypatch.undo()
    monkeypatch.setattr(doctor.shutil, "which", lambda name: None)
    assert not doctor.has_nvidia(tmp_path)
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev/nvidia0").touch()
    assert doctor.has_nvidia(tmp_path)


@pytest.mark.parametrize(
    ("answer", "driver"), [("580.65.06\n", 580), ("NVIDIA-SMI has failed", None), ("", None)]
)
def test_the_drivers_version_is_read(answer, driver, monkeypatch):
    done = types.SimpleNamespace(stdout=answer)
    monkeypatch.setattr(doctor.subprocess, "run", lambda *_, **__: done)
    assert doctor.nvidia_driver() == driver


def test_a_memory_limit_of_the_container_is_shown(tmp_path, monkeypatch):
    assert doctor.container_limit(tmp_path) is None
    (tmp_path / "memory.max").write_text("max\n")
    assert doctor.container_limit(tmp_path) is None
    (tmp_path / "memory.max").write_text(f"{2**30}\n")
    assert doctor.container_limit(tmp_path) == 2**30
    monkeypatch.setattr(doctor, "container_limit", lambda: 2**30)
    assert "note: this container may use 1.0 GiB of it" in said(doctor.memory)


# ---- packages ----


def fake_packages(monkeypatch, requires, versions):
    def version(name):
        if name not in versions:
            raise metadata.PackageNotFoundError(name)
        return versions[name]

    monkeypatch.setattr(doctor.metadata, "requires", lambda name: requires.get(name))
    monkeypatch.setattr(doctor.metadata, "version", version)


def test_unmet_follows_extras_into_other_packages(monkeypatch):
    requires = {
        "grpo-jax": ["jax>=0.10,<0.12", "optax", 'jax[cuda13]; extra == "cuda13"', 'torch; extra == "test"'],
        "jax": ["numpy", 'jax-cuda13-plugin==0.10; extra == "cuda13"'],
    }
    fake_packages(monkeypatch, requires, {"jax": "0.10.2"})
    assert doctor.unmet("grpo-jax") == ["optax"]
    assert doctor.unmet("grpo-jax", "cuda13") == ["jax-cuda13-plugin==0.10"]
    assert doctor.unmet("grpo-jax", "test") == ["torch"]


def test_a_version_outside_the_range_is_unmet(monkeypatch):
    fake_packages(monkeypatch, {"grpo-jax": ["jax>=0.10,<0.12"]}, {"jax": "0.9.1"})
    assert doctor.unmet("grpo-jax") == ["jax<0.12,>=0.10"]
    assert "broken: jax<0.12,>=0.10 is needed" in said(doctor.versions)
