"""Running programs: what comes back, how walls are described, and what is refused."""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from grpo_jax.commands import doctor
from grpo_jax.errors import UserError
from grpo_jax.sandbox import Limits, SandboxError, open_sandbox, protections, run, select, supervisor
from grpo_jax.sandbox.protections import WALLS, described, open_to

ROOT = Path(__file__).resolve().parents[2]


@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\r"), max_size=200))
@settings(max_examples=5, deadline=None, suppress_health_check=list(HealthCheck))
def test_text_goes_in_and_comes_out(text):
    outcome = run("import sys; sys.stdout.write(sys.stdin.read()); sys.exit(3)", text)
    assert (outcome.stdout, outcome.stderr, outcome.exit_code, outcome.ended) == (text, "", 3, "exit")


def test_no_two_programs_share_anything():
    code = "import os; print(os.listdir('.')); open('left', 'w').close(); print(hash('a'))"
    first, second = run(code), run(code)
    assert first.stdout == second.stdout
    assert first.stdout.startswith("['main.py']\n")


def test_the_outcome_has_the_exit_code_the_signal_and_stderr():
    assert run("1 / 0").stderr.endswith("ZeroDivisionError: division by zero\n")
    assert run("import ctypes; ctypes.string_at(0)").signal == 11
    assert run("print(", "").exit_code == 1
    assert run("\x00").exit_code == 1
    assert run("\ud800").exit_code == 1
    assert run("").ok


@pytest.mark.parametrize(
    "field", ["cpu", "wall", "memory", "processes", "threads", "files", "open_files", "output"]
)
def test_limits_are_above_zero(field):
    with pytest.raises(ValueError, match=f"{field} = 0"):
        Limits(**{field: 0})
    with pytest.raises(ValueError, match=field):
        Limits(**{field: float("nan")})


def test_a_program_is_the_main_module_of_a_bare_interpreter():
    code = """
import sys, __main__
print(__name__, __file__, sys.argv, __main__.__dict__ is globals(), sorted(n for n in globals() if n[0] != "_"))
print([path for path in sys.path if "site-packages" in path or "dist-packages" in path])
if input():
    exit()
"""
    outcome = run(code, "yes")
    assert outcome.stdout == "__main__ main.py ['main.py'] True ['sys']\n[]\n"
    assert outcome.ok
    assert run("quit(4)").exit_code == 4
    assert 'File "main.py", line 2' in run("\nboom").stderr


def test_no_descriptor_is_leaked():
    run("")
    before = os.listdir("/proc/self/fd") if os.path.exists("/proc/self/fd") else []
    run("import os; os.close(0)", "x" * 100_000)
    run("while True: print('x' * 1000)", limits=Limits(output=1000))
    assert len(os.listdir("/proc/self/fd")) == len(before)


def test_programs_run_from_several_threads_at_a_time():
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(4) as threads:
        outcomes = list(threads.map(lambda n: run("print(int(input()) ** 2)", str(n)), range(8)))
    assert [outcome.stdout for outcome in outcomes] == [f"{n * n}\n" for n in range(8)]


def test_a_program_dies_with_the_process_that_asked_for_it(tmp_path):
    code = "import time; time.sleep(47.11)"
    for walls in ("", ", walls=()"):
        script = (
            "from grpo_jax.sandbox import Limits, run; print('go', flush=True); "
            f"run({code!r}, limits=Limits(wall=60){walls})"
        )
        environment = os.environ | {"PYTHONPATH": str(ROOT), "TMPDIR": str(tmp_path)}
        asking = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, env=environment)
        asking.stdout.readline()
        wait(lambda asking=asking: len(family(asking.pid)) >= 2)
        members = family(asking.pid)
        asking.kill()
        asking.wait()
        asking.stdout.close()
        wait(lambda members=members: not any(alive(pid) for pid in members), seconds=6)
        wait(lambda: os.listdir(tmp_path) == [])


def family(pid):
    import psutil

    return [child.pid for child in psutil.Process(pid).children(recursive=True)]


def alive(pid):
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False


def wait(condition, seconds=15):
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.05)


def test_a_supervisor_that_dies_is_a_sandbox_error(monkeypatch):
    monkeypatch.setattr("grpo_jax.sandbox.local._MAIN", "import os; os.write(2, b'boom'); os._exit(1)")
    with pytest.raises(SandboxError, match="boom"):
        run("print(1)")


# ---- walls ----


def test_walls_and_gaps_are_described_in_words():
    assert open_to(WALLS) == open_to(["namespaces", "root"]) == open_to(["landlock", "seccomp"]) == []
    assert open_to([]) == ["the machine's files", "the network", "other processes"]
    assert open_to(["landlock", "user"]) == ["the machine's files", "the network"]
    assert described(["seccomp", "landlock"]) == (
        "limits on time, memory and output, Landlock, a filter of system calls"
    )
    assert "nothing keeps a program from the machine's files, the network" in described(["user"])


def test_strict_runs_nothing_where_there_are_gaps(tmp_path):
    marker = tmp_path / "ran"
    with pytest.raises(SandboxError, match="nothing keeps a program from the machine's files"):
        run(f"open({str(marker)!r}, 'w')", strict=True, walls=["seccomp"])
    assert not marker.exists()


def test_a_kernel_without_walls_is_warned_of_or_refused(monkeypatch):
    bare = lambda code, stdin="", limits=None, strict=False: run(code, stdin, limits, strict=strict, walls=())
    monkeypatch.setattr("grpo_jax.sandbox.local.run", bare)
    select.open_sandbox.cache_clear()
    with pytest.warns(UserWarning, match="nothing keeps a program from the machine's files"):
        assert open_sandbox("local")("print(1)").stdout == "1\n"
    with pytest.raises(UserError, match=r"sandbox = strict: .* run the sandbox server in a container"):
        open_sandbox("strict")
    assert "nothing keeps a program from" in select.here()
    select.open_sandbox.cache_clear()


def test_every_wall_has_a_description_and_every_required_wall_exists():
    used = set().union(*(needed for enough in protections.SUFFICIENT_WALLS.values() for needed in enough))
    assert used <= set(WALLS) == set(protections.WORDS)


def test_the_doctor_describes_the_walls_of_this_machine():
    (finding,) = doctor.sandbox()
    assert finding.text.startswith(
        "programs of the reward code would run with limits on time, memory and output"
    )
    assert (finding.level == "note") == bool(open_to(run("").walls))


def test_a_python_that_the_programs_user_cannot_reach_is_an_error():
    python = os.path.realpath(sys.executable)
    if os.geteuid() or all(p.stat().st_mode & 0o001 for p in Path(python).parents):
        pytest.skip("every user can reach this Python")
    with pytest.raises(SandboxError, match=r"user \d+ cannot reach .*; install Python where all can"):
        run("print(1)", walls=["user", "landlock", "seccomp"])


# ---- folders ----


def test_a_folder_is_removed_with_its_content_but_not_what_it_links_to():
    with tempfile.TemporaryDirectory() as outside:
        precious = Path(outside) / "precious"
        precious.write_text("x")
        folder = tempfile.mkdtemp()
        os.symlink(outside, f"{folder}/link")
        os.makedirs(f"{folder}/a/b/c")
        Path(f"{folder}/a/b/file").write_text("x")
        os.symlink(outside, f"{folder}/a/b/link")
        os.chmod(f"{folder}/a/b", 0)
        os.chmod(f"{folder}/a", 0)
        supervisor.remove(folder)
        assert not os.path.exists(folder)
        assert precious.read_text() == "x"
        os.symlink(outside, folder)
        supervisor.remove(folder)
        assert precious.read_text() == "x"
        assert not os.path.lexists(folder)
