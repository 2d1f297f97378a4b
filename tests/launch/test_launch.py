"""The launch scripts without a cloud: stand-ins for gcloud, nvidia-smi and srun record their arguments.

The stand-in for gcloud also runs the workers' text, here, in one folder a worker.
"""

import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import time

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
LAUNCH = ROOT / "launch"
SCRIPTS = ("tpu_vm.sh", "gpu.sh", "slurm.sbatch")
AWKWARD = [
    "train",
    "gsm8k",
    "--output_dir",
    "gs://b/my run",
    "--system_prompt",
    'it\'s $HOME; "now" `id`\n*',
    "",
]
TPU = ("--name", "demo", "--zone", "us-west4-a")

OPTIONS = {
    "tpu_vm.sh": [
        "--name",
        "--zone",
        "--project",
        "--type",
        "--version",
        "--spot",
        "--repo",
        "--env",
        "--yes",
    ],
    "gpu.sh": ["--gpus", "--cuda", "--python"],
    "slurm.sbatch": ["sbatch"],
}

# Under a lock, since two workers may call at once.
RECORD = """{ flock 1; printf '%s\\0' "$@" $'\\n'; } >>"$LOG/${0##*/}"\n"""

GCLOUD = (
    RECORD
    + """
case " $* " in
  *" describe "*) [[ $STATE == absent ]] && exit 1; echo "$STATE" ;;
  *" scp "*)
    for worker in 0 1; do mkdir -p "$WORKERS/$worker" && cp "$5" "$WORKERS/$worker/grpo-jax.tar.gz"; done ;;
  *" ssh "*)
    for argument in "$@"; do
      [[ $argument == --worker=* ]] && workers=${argument#*=}
      [[ $argument == --command=* ]] && text=${argument#*=}
    done
    [[ $workers == all ]] && workers="0 1"
    for worker in $workers; do
      mkdir -p "$WORKERS/$worker"
      (cd "$WORKERS/$worker" && HOME=$PWD WORKER=$worker bash -c "$text") & jobs+=" $!"
    done
    for job in $jobs; do wait "$job" || failed=1; done
    exit "${failed:-0}" ;;
esac
"""
)
CURL = """
case $* in
  *worker-network-endpoints) echo "$ENDPOINTS" ;;
  *agent-worker-number) echo "$WORKER" ;;
esac
"""
# A run that lasts until SIGTERM, then saves; 20 s at most, so that a failing test leaves nothing behind.
LONG_RUN = """
printf "%s\\0" "$@" >argv
sleep 20 &
trap 'echo saved; kill $!; exit 0' TERM
echo "FLAG=${FLAG:-}"
wait $!
"""
SRUN = (
    RECORD
    + """
while [[ $1 == --* ]]; do shift; done
for ((node = 0; node < ${SLURM_NNODES:-1}; node++)); do SLURM_LOCALID=0 SLURM_PROCID=$node "$@"; done
exit "${SRUN_STATUS:-0}"
"""
)


def executable(path: pathlib.Path, body: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("#!/usr/bin/env bash\n" + body)
    path.chmod(0o755)


class FakeMachine:
    """A checkout with only the scripts in it, a folder of stand-ins first on PATH, and what they recorded."""

    def __init__(self, folder: pathlib.Path):
        self.checkout, self.bin, self.log, self.workers = (
            folder / n for n in ("check out", "bin", "log", "workers")
        )
        shutil.copytree(LAUNCH, self.checkout / "launch")
        for made in (self.bin, self.log, self.workers):
            made.mkdir()
        inherited = {
            k: v for k, v in os.environ.items() if not k.startswith(("SLURM_", "XLA_", "CUDA_", "SRUN_"))
        }
        self.env = inherited | {"PATH": f"{self.bin}:{os.environ['PATH']}", "LOG": str(self.log)}
        self.env |= {"WORKERS": str(self.workers), "STATE": "READY", "ENDPOINTS": "a:b:10.0.0.2,a:b:10.0.0.3"}

    def stand_in(self, **bodies: str) -> None:
        for name, body in bodies.items():
            executable(self.bin / name.replace("_", "-"), body)

    def __call__(self, script: str, *args: str, **env: str) -> subprocess.CompletedProcess:
        return self.bash(str(self.checkout / "launch" / script), *args, **env)

    def bash(self, *args: str, **env: str) -> subprocess.CompletedProcess:
        return subprocess.run(
            ["bash", *args],
            env=self.env | env,
            cwd=self.checkout,
            capture_output=True,
            text=True,
            timeout=20,
            stdin=subprocess.DEVNULL,
        )

    def recorded(self, name: str) -> list[list[str]]:
        """The argument lists with which a stand-in was called, in order."""
        path = self.log / name
        return [call.split("\0") for call in path.read_text().split("\0\n\0")[:-1]] if path.exists() else []


@pytest.fixture
def machine(tmp_path):
    machine = FakeMachine(tmp_path)
    yield machine
    for pid_file in machine.workers.glob("*/grpo-jax/launch.pid"):
        pid = int(pid_file.read_text())
        if "grpo-jax" in command_line(pid):  # not another process with the same number
            os.kill(pid, signal.SIGTERM)


@pytest.fixture
def forbidden(machine):
    """Every outside program fails and is recorded."""
    names = ("gcloud", "nvidia_smi", "srun", "scontrol", "squeue", "curl", "tar", "python3", "pip")
    machine.stand_in(**dict.fromkeys(names, 'echo "$0 $*" >>"$LOG/trace"; exit 9\n'))
    return machine


@pytest.fixture
def pod(machine):
    """Two workers with grpo-jax installed."""
    machine.stand_in(gcloud=GCLOUD, curl=CURL)
    for worker in "01":
        executable(machine.workers / worker / "grpo-jax" / ".venv/bin/grpo-jax", LONG_RUN)
    return machine


@pytest.fixture
def node(machine):
    """A machine with two GPUs where grpo-jax is installed for CUDA 13; the run records its settings."""
    machine.stand_in(nvidia_smi='printf "%s\\n" "${DRIVER:-580.65.06}" "${DRIVER:-580.65.06}"\n')
    executable(machine.checkout / ".venv/bin/python", RECORD + '[[ $1 != - || $2 == "jax_cuda13_plugin" ]]\n')
    executable(machine.checkout / ".venv/bin/grpo-jax", RECORD + 'env >>"$LOG/env"\n')
    return machine


@pytest.fixture
def job(node):
    """Inside a Slurm job of two nodes whose time is not up."""
    node.stand_in(
        srun=SRUN,
        scontrol=RECORD + 'if [[ $1 == show ]]; then printf "node07\\nnode08\\n"; fi\n',
        squeue='date -d "${LEFT:-3600} seconds" +%Y-%m-%dT%H:%M:%S\n',
    )
    node.env |= {"SLURM_JOB_ID": "4100", "SLURM_NNODES": "2", "SLURM_JOB_NODELIST": "node[07-08]"}
    node.env |= {"SLURM_SUBMIT_DIR": str(node.checkout)}
    return node


def command_line(pid: int) -> str:
    try:
        return pathlib.Path(f"/proc/{pid}/cmdline").read_text()
    except FileNotFoundError:
        return ""


def wait_for(path: pathlib.Path, text: str) -> str:
    for _ in range(100):
        if path.exists() and text in path.read_text():
            break
        time.sleep(0.02)
    return path.read_text()


# --- all three


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_names_every_option(forbidden, script):
    done = forbidden(script, "--help")
    assert done.returncode == 0
    assert done.stderr == ""
    assert [option for option in (*OPTIONS[script], "--dry-run", "--help") if option not in done.stdout] == []


@pytest.mark.parametrize(
    ("script", "args", "word"),
    [
        ("tpu_vm.sh", ["up", *TPU, "--colour", "red"], "--colour"),
        ("tpu_vm.sh", ["fly", *TPU], "fly"),
        ("tpu_vm.sh", [], "no verb"),
        ("tpu_vm.sh", ["run", "--zone", "z", "--", "train"], "--name"),
        ("tpu_vm.sh", ["run", "--name", "demo", "--", "train"], "--zone"),
        ("tpu_vm.sh", ["run", "--name", "--zone", "z"], "--name needs a value"),
        ("tpu_vm.sh", ["run", "--name", "De mo", "--zone", "z"], "De mo"),
        ("tpu_vm.sh", ["create", *TPU], "--type"),
        ("tpu_vm.sh", ["run", *TPU], "nothing to run"),
        ("tpu_vm.sh", ["up", *TPU, "--type", "v6e-8"], "nothing to run"),
        ("tpu_vm.sh", ["run", *TPU, "train"], "after --"),
        ("tpu_vm.sh", ["run", *TPU, "--env", "-x"], "--env"),
        ("tpu_vm.sh", ["run", *TPU, "--env=1x=2"], "NAME=VALUE"),
        ("tpu_vm.sh", ["delete", *TPU], "--yes"),
        ("gpu.sh", ["--colour", "train"], "--colour"),
        ("gpu.sh", [], "nothing to run"),
        ("gpu.sh", ["--gpus", "a,b", "train"], "a,b"),
        ("gpu.sh", ["--cuda", "11", "train"], "11"),
        ("slurm.sbatch", ["--colour", "train"], "--colour"),
        ("slurm.sbatch", [], "nothing to run"),
        ("slurm.sbatch", ["train"], "sbatch"),
    ],
)
def test_a_wrong_command_is_one_line_and_starts_nothing(forbidden, script, args, word):
    done = forbidden(script, *args)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert word in done.stderr
    assert not (forbidden.log / "trace").exists()


@pytest.mark.parametrize(
    ("script", "args"),
    [
        *(("tpu_vm.sh", [verb, *TPU]) for verb in ("install", "follow", "stop", "delete")),
        ("tpu_vm.sh", ["up", *TPU, "--type", "v6e-16", "--", *AWKWARD]),
        ("gpu.sh", AWKWARD),
        ("slurm.sbatch", AWKWARD),
    ],
)
def test_a_dry_run_starts_nothing(forbidden, script, args):
    done = forbidden(script, "--dry-run", *args)
    assert done.returncode == 0, done.stderr
    assert done.stdout
    assert not (forbidden.log / "trace").exists()


def test_shellcheck_finds_nothing():
    shellcheck = shutil.which(
        "shellcheck", path=f"{pathlib.Path(sys.executable).parent}:{os.environ['PATH']}"
    )
    if shellcheck is None:
        pytest.skip("shellcheck is neither beside the Python nor on PATH")
    done = subprocess.run([shellcheck, *(LAUNCH / s for s in SCRIPTS)], capture_output=True, text=True)
    assert done.stdout == ""


def test_no_recommended_xla_flag_is_unknown_to_this_jaxlib():
    """An unknown name in XLA_FLAGS ends every run at its start."""
    text = "".join((LAUNCH / name).read_text() for name in ("README.md", *SCRIPTS))
    found = set(re.findall(r"--(xla_gpu_\w+)(?:=(\w+))?", text))
    assert found
    flags = " ".join(f"--{name}={'1' if value in ('', 'N') else value}" for name, value in sorted(found))
    environ = os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, "-c", "import jax; jax.devices()"], env=environ, capture_output=True
    )
    assert done.returncode == 0, done.stderr.decode()[:500]


# --- tpu_vm.sh


def test_run_starts_every_worker_with_the_arguments_and_its_own_number(pod):
    done = pod("tpu_vm.sh", "run", *TPU, "--project", "p", "--env", "FLAG=a b 'c'", "--", *AWKWARD)
    assert done.returncode == 0, done.stderr
    (call,) = pod.recorded("gcloud")
    assert call[:6] == ["compute", "tpus", "tpu-vm", "ssh", "demo", "--worker=all"]
    assert call[-2:] == ["--zone=us-west4-a", "--project=p"]
    for worker in "01":
        folder = pod.workers / worker / "grpo-jax"
        assert "FLAG=a b 'c'" in wait_for(folder / "launch.log", "FLAG")
        cluster = ["--coordinator", "10.0.0.2:8476", "--num_processes", "2", "--process_id", worker]
        assert (folder / "argv").read_text().split("\0")[:-1] == [*AWKWARD, *cluster]


def test_a_single_worker_gets_no_coordinator(pod):
    pod("tpu_vm.sh", "run", *TPU, "--", "train", "demo", ENDPOINTS="a:b:10.0.0.2")
    wait_for(pod.workers / "0/grpo-jax/launch.log", "FLAG")
    assert (pod.workers / "0/grpo-jax/argv").read_text().split("\0")[:-1] == ["train", "demo"]


def test_a_run_outlives_the_connection_and_saves_when_it_is_stopped(pod):
    assert pod("tpu_vm.sh", "run", *TPU, "--", "train").returncode == 0
    folder = pod.workers / "1/grpo-jax"
    wait_for(folder / "launch.log", "FLAG")
    pid = int((folder / "launch.pid").read_text())
    assert os.getsid(pid) == pid
    again = pod("tpu_vm.sh", "run", *TPU, "--", "train")
    assert again.returncode != 0
    assert "stop it first" in again.stderr
    stopped = pod("tpu_vm.sh", "stop", *TPU)
    assert stopped.stdout.count("saved and stopped") == 2
    assert "saved" in (folder / "launch.log").read_text()
    assert "nothing is running" in pod("tpu_vm.sh", "stop", *TPU).stdout
    assert "saved" in pod("tpu_vm.sh", "follow", *TPU).stdout
    assert "--worker=0" in pod.recorded("gcloud")[-1]


def test_a_pasted_dry_run_makes_the_same_call_as_the_run(pod):
    command = ("run", *TPU, "--env", "FLAG=it's", "--", *AWKWARD)
    printed = pod("tpu_vm.sh", *command[: -len(AWKWARD) - 1], "--dry-run", "--", *AWKWARD).stdout
    assert pod.bash("-c", printed).returncode == 0
    wait_for(pod.workers / "0/grpo-jax/launch.log", "FLAG")
    pod("tpu_vm.sh", "stop", *TPU)
    pod("tpu_vm.sh", *command)
    calls = pod.recorded("gcloud")
    assert calls[0] == calls[-1]


def test_install_copies_the_code_without_caches_and_runs(machine):
    machine.stand_in(gcloud=GCLOUD, python3=RECORD)
    code = ("grpo_jax/runs/report.py", "my rewards.py", "models/transformer.py")
    ignored = (
        ".git/config",
        ".venv/bin/python",
        "runs/a/config.yaml",
        ".cache/x",
        "models/__pycache__/q.pyc",
    )
    for name in code + ignored:
        (machine.checkout / name).parent.mkdir(parents=True, exist_ok=True)
        (machine.checkout / name).write_text(name)
    (machine.checkout / "grpo_jax/models").symlink_to("../models")
    done = machine("tpu_vm.sh", "install", *TPU)
    assert done.returncode == 0, done.stderr
    there = machine.workers / "1/grpo-jax"
    assert [name for name in code if not (there / name).exists()] == []
    assert [name for name in ignored if (there / name).exists()] == []
    assert (there / "grpo_jax/models").is_symlink()
    assert machine.recorded("python3")[-1][-2:] == ["--editable", ".[tpu]"]


def test_install_from_a_repository_clones_it_on_the_workers(machine):
    machine.stand_in(gcloud=GCLOUD, python3=RECORD, git=RECORD)
    assert machine("tpu_vm.sh", "install", *TPU, "--repo", "https://example.org/a b.git").returncode == 0
    assert machine.recorded("git") == [["clone", "--", "https://example.org/a b.git", "."]] * 2
    assert [call[3] for call in machine.recorded("gcloud")] == ["ssh"]


@pytest.mark.parametrize(
    ("state", "verbs"),
    [
        ("READY", ["describe", "scp", "ssh", "ssh"]),
        ("absent", ["describe", "create", "scp", "ssh", "ssh"]),
        ("PREEMPTED", ["describe", "delete", "create", "scp", "ssh", "ssh"]),
        ("STOPPED", ["describe"]),
    ],
)
def test_up_makes_what_is_missing_and_nothing_else(pod, state, verbs):
    pod.stand_in(gcloud=GCLOUD.replace("bash -c", "true"), tar="")
    (pod.checkout / ".cache").mkdir()
    (pod.checkout / ".cache/grpo-jax.tar.gz").touch()
    done = pod("tpu_vm.sh", "up", *TPU, "--type", "v5litepod-16", "--spot", "--", "train", STATE=state)
    calls = pod.recorded("gcloud")
    assert [call[3] for call in calls] == verbs
    assert (done.returncode == 0) == (state != "STOPPED")
    for call in calls:
        if call[3] == "create":
            wanted = ["--accelerator-type=v5litepod-16", "--version=v2-alpha-tpuv5-lite", "--spot"]
            assert call[5:8] == wanted


def test_delete_with_yes_does_not_ask(pod):
    assert pod("tpu_vm.sh", "delete", *TPU, "--yes").returncode == 0
    assert pod.recorded("gcloud") == [
        ["compute", "tpus", "tpu-vm", "delete", "demo", "--quiet", "--zone=us-west4-a"]
    ]


# --- gpu.sh


def test_gpu_passes_on_the_arguments_and_sets_the_environment(node):
    done = node("gpu.sh", "--gpus", "0,1", *AWKWARD, XLA_FLAGS="--xla_gpu_autotune_level=0")
    assert done.returncode == 0, done.stderr
    assert node.recorded("grpo-jax") == [AWKWARD]
    settings = (node.log / "env").read_text()
    assert "CUDA_VISIBLE_DEVICES=0,1\n" in settings
    assert "CUDA_DEVICE_ORDER=PCI_BUS_ID\n" in settings
    flags = "--xla_gpu_enable_latency_hiding_scheduler=true --xla_gpu_autotune_level=0"
    assert f"XLA_FLAGS={flags}\n" in settings
    assert "XLA_CLIENT_MEM_FRACTION=0.9\n" in settings
    assert [call[0] for call in node.recorded("python")] == ["-"]  # installed already: no pip


def test_gpu_sets_no_memory_fraction_beside_the_users(node):
    node("gpu.sh", "train", XLA_PYTHON_CLIENT_MEM_FRACTION="0.5")
    assert "XLA_CLIENT_MEM_FRACTION" not in (node.log / "env").read_text()


def test_one_gpu_gets_no_flag_for_several(node):
    node("gpu.sh", "--gpus=1", "train")
    assert "XLA_FLAGS" not in (node.log / "env").read_text()


@pytest.mark.parametrize(("driver", "extra"), [("550.54.15", "cuda12"), ("525.60.13", "cuda12")])
def test_an_older_driver_gets_cuda_12(node, driver, extra):
    done = node("gpu.sh", "train", DRIVER=driver)
    assert done.returncode == 0, done.stderr
    assert node.recorded("python")[-1] == ["-m", "pip", "install", "--editable", f"{node.checkout}[{extra}]"]


@pytest.mark.parametrize(
    ("args", "env", "word"),
    [
        (["--gpus", "0,7"], {}, "no GPU 7"),
        ([], {"DRIVER": "470.1"}, "too old"),
        ([], {"DRIVER": "?"}, "no driver"),
    ],
)
def test_gpu_says_what_the_machine_lacks(node, args, env, word):
    done = node("gpu.sh", *args, "train", **env)
    assert done.returncode == 2
    assert word in done.stderr
    assert node.recorded("grpo-jax") == []


def test_a_pasted_gpu_dry_run_starts_the_same_command(node):
    node.stand_in(python3=RECORD)
    printed = node("gpu.sh", "--dry-run", "--cuda", "12", *AWKWARD).stdout
    assert node.bash("-c", printed).returncode == 0
    assert node.recorded("grpo-jax") == [AWKWARD]
    assert node.recorded("python")[-1][-1] == f"{node.checkout}[cuda12]"


# --- slurm.sbatch


def test_every_node_gets_its_number_the_coordinator_and_all_its_gpus(job):
    done = job("slurm.sbatch", *AWKWARD)
    assert done.returncode == 0, done.stderr
    shared = [*AWKWARD, "--coordinator", "node07:61444", "--num_processes", "2", "--process_id"]
    assert job.recorded("grpo-jax") == [[*shared, "0"], [*shared, "1"]]
    assert job.recorded("srun")[0][:3] == ["--nodes=2", "--ntasks=2", "--ntasks-per-node=1"]
    # With SLURM_LOCALID there, JAX would show each process one GPU.
    assert "SLURM_LOCALID" not in (job.log / "env").read_text()


def test_a_single_node_needs_no_coordinator(job):
    job("slurm.sbatch", *AWKWARD, SLURM_NNODES="1")
    assert job.recorded("grpo-jax") == [AWKWARD]


@pytest.mark.parametrize(
    ("status", "left", "ran", "requeued"),
    [
        ("0", "60", "9000", True),  # asked to stop, has saved
        ("143", "60", "9000", True),  # ended by the signal
        ("1", "60", "9000", False),  # an error would come again
        ("0", "3600", "9000", False),  # done before the time was up
        ("0", "60", "20", False),  # a short job would be queued for ever
    ],
)
def test_only_a_run_that_ran_out_of_time_is_queued_again(job, status, left, ran, requeued):
    done = job("slurm.sbatch", "train", SRUN_STATUS=status, LEFT=left, SECONDS=ran)
    assert done.returncode == int(status)
    assert (["requeue", "4100"] in job.recorded("scontrol")) == requeued


def test_the_slurm_directives_signal_the_run_and_allow_requeueing():
    text = (LAUNCH / "slurm.sbatch").read_text()
    directives = re.findall(r"^#SBATCH (\S+)", text.split("set -euo")[0], re.MULTILINE)
    assert {"--signal=TERM@120", "--requeue", "--ntasks-per-node=1", "--open-mode=append"} <= set(directives)


def test_a_missing_installation_is_reported_before_any_node_starts(job):
    (job.checkout / ".venv/bin/grpo-jax").unlink()
    done = job("slurm.sbatch", "train")
    assert done.returncode == 2
    assert "pip install" in done.stderr
    assert job.recorded("srun") == []


def test_a_pasted_slurm_dry_run_makes_the_same_call_as_the_job(job):
    printed = job("slurm.sbatch", "--dry-run", *AWKWARD).stdout
    assert job.bash("-c", printed).returncode == 0
    job("slurm.sbatch", *AWKWARD)
    first, second = job.recorded("srun")
    assert first == second
