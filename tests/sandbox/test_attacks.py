"""Programs that attack their surroundings. `confinement.attack` asserts after each that nothing outside was harmed."""

import socket
import textwrap

import pytest

from grpo_jax.sandbox import run
from tests.sandbox.confinement import CONFINEMENTS, EVERY_WALL, IS_ROOT, attack

FULL = CONFINEMENTS[0]
MIB = 2**20
_PROBE = run("")
pytestmark = pytest.mark.skipif("seccomp" not in _PROBE.walls, reason="this kernel has no seccomp for us")


def program(text):
    return textwrap.dedent(text)


@pytest.fixture(params=CONFINEMENTS, ids=str)
def confinement(request):
    return request.param


# ---- processes ----

FORKS = program("""
    import os, time
    made = 0
    for _ in range(40):
        try:
            if os.fork() == 0:
                time.sleep(60)
            made += 1
        except OSError as fault:
            print(made, fault.errno, flush=True)
            break
    time.sleep(60)
""")
# 32 processes at most, whatever the walls: this bomb goes off on the machine that runs the tests.
BOMB = program("""
    import os, time
    for _ in range(5):
        try:
            os.fork()
        except OSError:
            pass
    print("x", end="", flush=True)
    while True:
        time.sleep(60)
""")


def test_a_program_cannot_fork(confinement):
    assert attack(confinement, FORKS, wall=1.0)["stdout"] == "0 1\n"


@pytest.mark.parametrize("walls", [EVERY_WALL, ("user", "landlock")], ids=["all", "no-namespaces"])
def test_a_program_that_may_fork_cannot_exceed_its_processes(confinement, walls):
    walls = [wall for wall in walls if wall in confinement.walls]
    found = attack(confinement, FORKS, wall=1.0, processes=16, threads=1, walls=walls)
    assert found["ended"] == "wall"
    made, error = map(int, found["stdout"].split())
    assert (made, error) == (16, 11)


@pytest.mark.parametrize(
    "walls", [EVERY_WALL, ("user", "landlock"), ()], ids=["all", "no-namespaces", "bare"]
)
def test_every_process_of_a_fork_bomb_ends(confinement, walls):
    found = attack(
        confinement, BOMB, wall=1.0, processes=32, walls=[wall for wall in walls if wall in confinement.walls]
    )
    assert found["ended"] == "wall"
    assert len(found["stdout"]) > 8


def test_threads_are_bounded(confinement):
    code = """
        import threading, time
        threading.stack_size(32768)
        for count in range(100):
            try:
                threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
            except RuntimeError:
                break
        print(count)
    """
    assert int(attack(confinement, program(code), threads=8)["stdout"]) <= 16


DAEMON = program("""
    import os, sys, time
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            for descriptor in (0, 1, 2):
                os.close(descriptor)
            time.sleep(60)
        os._exit(0)
    print("left")
    time.sleep(0.2)
""")


@pytest.mark.parametrize(
    "walls", [EVERY_WALL, ("user", "landlock"), ()], ids=["all", "no-namespaces", "bare"]
)
def test_a_daemon_does_not_outlive_its_program(confinement, walls):
    found = attack(
        confinement, DAEMON, processes=8, walls=[wall for wall in walls if wall in confinement.walls]
    )
    assert found["stdout"] == "left\n"
    assert found["ended"] == "exit"


def test_a_daemon_that_holds_stdout_open_delays_nothing():
    code = DAEMON.replace("(0, 1, 2)", "(0,)")
    for walls in (EVERY_WALL, ()):
        assert attack(FULL, code, processes=8, walls=walls)["took"] < 3


KILL = """
    import ctypes, os, resource, signal
    libc = ctypes.CDLL(None, use_errno=True)
    parent = os.getppid()
    tries = {
        "kill": lambda: os.kill(@PARENT@, signal.SIGKILL),
        "supervisor": lambda: os.kill(parent, signal.SIGKILL) if parent > 1 else os.kill(1, signal.SIGKILL),
        "group": lambda: os.killpg(os.getpgid(@PARENT@), signal.SIGKILL),
        "limit": lambda: resource.prlimit(@PARENT@, resource.RLIMIT_CPU, (0, 0)),
        "trace": lambda: libc.ptrace(16, @PARENT@, None, None) and os.open("/none", 0),
    }
    for name, do in tries.items():
        try:
            do()
            print(name, "done")
        except OSError as fault:
            print(name, "refused")
"""


def test_a_program_cannot_kill_limit_or_trace_the_process_that_asked_for_it(confinement):
    found = attack(confinement, program(KILL))
    lines = found["stdout"].split("\n")
    assert found["exit_code"] == 0
    # The first process of a namespace cannot be killed from within, though the kernel does not say so.
    assert [line for line in lines if line.endswith("done")] in ([], ["supervisor done"])


def test_a_program_that_kills_all_that_it_can_reach_kills_nothing_outside():
    # Only where it can reach no other process: in a namespace of its own, and as a user of its own.
    code = """
        import os
        assert os.getpid() < 10
        try:
            os.kill(-1, 9)
        except OSError:
            pass
        print("alone")
    """
    apart = [confinement for confinement in CONFINEMENTS if "namespaces" in confinement.walls]
    if not apart:
        pytest.skip("this machine gives programs no namespaces")
    for confinement in apart:
        assert attack(confinement, program(code))["stdout"] == "alone\n"


def test_a_program_that_kills_its_own_group_kills_itself(confinement):
    found = attack(confinement, "import os; os.kill(0, 9)")
    assert (found["ended"], found["signal"]) == ("signal", 9)


# ---- time ----


@pytest.mark.parametrize("walls", [EVERY_WALL, ()], ids=["all", "bare"])
def test_a_sleeping_program_ends_at_the_wall_clock_limit(confinement, walls):
    found = attack(confinement, "import time; print('on', flush=True); time.sleep(60)", wall=1.0, walls=walls)
    assert (found["ended"], found["signal"], found["stdout"]) == ("wall", 9, "on\n")
    assert 1.0 <= found["took"] < 6


def test_a_busy_loop_ends_at_the_cpu_limit(confinement):
    found = attack(confinement, "while True: pass", cpu=1, wall=8.0)
    assert found["ended"] == "cpu"


def test_a_program_that_ignores_signals_ends_at_the_cpu_limit():
    code = """
        import signal
        for number in set(signal.Signals) - {signal.SIGKILL, signal.SIGSTOP}:
            signal.signal(number, signal.SIG_IGN)
        while True: pass
    """
    found = attack(FULL, program(code), cpu=1, wall=8.0)
    assert (found["ended"], found["signal"]) == ("cpu", 9)


def test_a_program_that_stops_itself_ends_at_the_wall_clock_limit():
    assert (
        attack(FULL, "import os, signal; os.kill(os.getpid(), signal.SIGSTOP)", wall=1.0)["ended"] == "wall"
    )


# ---- memory and output ----


def test_a_memory_bomb_gets_a_memory_error(confinement):
    found = attack(confinement, "x = bytearray(2**20)\nwhile True: x += bytes(2**24)", memory=200 * MIB)
    assert (found["ended"], found["exit_code"]) == ("memory", 1)


def test_shared_memory_and_memory_files_are_refused(confinement):
    code = """
        import ctypes, errno, os
        libc = ctypes.CDLL(None, use_errno=True)
        print(libc.shmget(0, 2**20, 0o1600))
        try:
            os.memfd_create("a")
        except OSError as fault:
            print(fault.errno == errno.EPERM)
    """
    assert attack(confinement, program(code))["stdout"] == "-1\nTrue\n"


def test_endless_output_is_cut_and_ended(confinement):
    for stream in ("stdout", "stderr"):
        found = attack(
            confinement, f"import sys\nwhile True: sys.{stream}.write('x' * 10_000)", output=100_000
        )
        assert found["ended"] == "output"
        assert len(found[stream]) == 100_000


def test_output_of_just_the_limit_is_whole():
    found = attack(FULL, "print('x' * 99_999)", output=100_000)
    assert (found["ended"], found["exit_code"], len(found["stdout"])) == ("exit", 0, 100_000)


def test_bytes_that_are_not_utf8_become_replacement_characters(confinement):
    found = attack(confinement, r"import os; os.write(1, b'a\xff\xfe\x00b')")
    assert found["stdout"] == "a\ufffd\ufffd\x00b"


def test_a_program_that_closes_its_outputs_runs_to_its_end():
    code = "import os, time\nfor d in (0, 1, 2): os.close(d)\ntime.sleep(0.3)\nos._exit(5)"
    found = attack(FULL, code)
    assert (found["exit_code"], found["ended"]) == (5, "exit")


def test_a_program_may_leave_its_input_unread(confinement):
    found = attack(confinement, "print('done')", stdin="x" * 1_000_000)
    assert (found["stdout"], found["exit_code"]) == ("done\n", 0)


def test_input_larger_than_a_pipe_arrives():
    assert (
        attack(FULL, "import sys; print(len(sys.stdin.read()))", stdin="x" * 1_000_000)["stdout"]
        == "1000000\n"
    )


# ---- files ----


def test_files_outside_cannot_be_written(confinement):
    code = """
        import os
        for path in ("@MARKER@", "/etc/passwd", os.__file__, "/usr/lib/harm", "/dev/shm/harm", "/harm"):
            try:
                open(path, "a").write("harm")
                print("wrote", path)
            except OSError:
                pass
        acts = (
            os.unlink, os.utime, lambda p: os.chmod(p, 0), lambda p: os.rename(p, p + "x"), lambda p: os.truncate(p, 0),
            lambda p: os.open(p, os.O_TRUNC), lambda p: os.setxattr(p, "user.harm", b"1"),
            lambda p: os.fchmod(os.open(p, os.O_RDONLY), 0), lambda p: os.chown(p, -1, -1),
        )
        for path in ("@MARKER@", os.__file__):
            for act in acts:
                try:
                    act(path)
                    print("harmed", path)
                except OSError:
                    pass
    """
    assert attack(confinement, program(code))["stdout"] == ""


def test_pythons_files_cannot_be_written_even_by_their_owner():
    code = """
        import errno, os
        for path in (os.__file__, os.path.dirname(os.__file__) + "/lib-dynload", "/", "/dev"):
            try:
                os.close(os.open(path, os.O_WRONLY if os.path.isfile(path) else os.O_WRONLY | os.O_TMPFILE))
                print("opened", path)
            except OSError as fault:
                if fault.errno != errno.EROFS:
                    print(path, fault)
    """
    if "root" not in _PROBE.walls:
        pytest.skip("this machine gives programs no file system of their own")
    # Without a user of its own it is the user of the tests: perhaps root, perhaps Python's owner.
    assert attack(FULL, program(code), walls=["namespaces", "root"])["stdout"] == ""


def test_files_outside_cannot_be_read(confinement):
    code = """
        import os
        for path in ("@MARKER@", "/etc/passwd", "/etc/shadow", "/proc/@PARENT@/environ", "/proc/1/environ",
                     f"/proc/{os.getppid()}/environ", "/root/.bashrc", "/root/.ssh", "/home"):
            for read in (lambda p: open(p, "rb").read(), os.listdir):
                try:
                    if found := read(path):
                        print("read", path, found[:80])
                except OSError:
                    pass
    """
    assert attack(confinement, program(code))["stdout"] == ""


def test_the_supervisors_environment_cannot_be_read_even_by_the_same_user():
    code = """
        import os
        try:
            print(open(f"/proc/{os.getppid()}/environ").read())
        except OSError:
            print("refused")
    """
    able = [confinement for confinement in CONFINEMENTS if confinement.user or not IS_ROOT]
    if not able:
        pytest.skip("this machine gives programs no user of their own")
    for confinement in able:
        assert attack(confinement, program(code), walls=())["stdout"] == "refused\n"


def test_links_and_parent_folders_give_no_access_to_files_outside(confinement):
    code = """
        import os
        os.symlink("@MARKER@", "link")
        os.symlink("/", "slash")
        for path in ("link", "slash@MARKER@", "../" * 20 + "@MARKER@"[1:], "/proc/self/root@MARKER@",
                     "/proc/1/root@MARKER@", "/proc/@PARENT@/root@MARKER@", "/proc/@PARENT@/cwd/../../..@MARKER@"):
            try:
                print("read", path, open(path).read())
            except OSError:
                pass
        try:
            os.link("@MARKER@", "hard")
            print("linked")
        except OSError:
            pass
    """
    assert attack(confinement, program(code))["stdout"] == ""


@pytest.mark.parametrize("walls", [EVERY_WALL, ()], ids=["all", "bare"])
def test_a_programs_folder_is_removed_whatever_it_made_of_it(confinement, walls):
    # In the folder: links to outside, unreadable folders, and folders nested deeper than a path can be long.
    code = """
        import os
        os.symlink("@MARKER@", "link"); os.symlink("/", "slash")
        os.makedirs("closed/inside"); open("closed/inside/file", "w").close()
        try:
            os.chmod("closed/inside", 0); os.chmod("closed", 0)
        except OSError:
            os.mkdir("shut", 0)
        home = os.getcwd()
        try:
            for depth in range(700):
                os.mkdir("deeper"); os.chdir("deeper")
        except OSError:
            pass
        open("-rf", "w").close()
        print("made")
    """
    walls = [wall for wall in confinement.walls if walls]
    assert attack(confinement, program(code), walls=walls)["stdout"] == "made\n"


@pytest.mark.skipif(not IS_ROOT, reason="only root has another user to run it as")
def test_a_programs_folder_cannot_be_replaced_by_a_link(confinement):
    if confinement.user:
        pytest.skip("the same user may replace the folder, and could harm its files without it")
    code = """
        import os
        here = os.getcwd()
        for act in (lambda: os.rename(here, here + "x"), lambda: os.rmdir(here)):
            try:
                act()
                os.symlink(os.path.dirname("@MARKER@"), here)
                print("replaced")
            except OSError:
                pass
    """
    assert attack(confinement, program(code), walls=["user"])["stdout"] == ""


def test_the_size_of_a_file_is_limited(confinement):
    code = """
        import errno, signal
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        try:
            with open("big", "wb") as file:
                for _ in range(64):
                    file.write(bytes(2**20))
        except OSError as fault:
            print(fault.errno in (errno.EFBIG, errno.ENOSPC))
    """
    assert attack(confinement, program(code), files=4 * MIB)["stdout"] == "True\n"


def test_the_size_of_all_files_is_limited_on_a_file_system_of_its_own():
    code = """
        try:
            for number in range(64):
                open(str(number), "wb").write(bytes(2**20))
        except OSError:
            print(number)
    """
    found = attack(FULL, program(code), files=8 * MIB)
    if "root" not in found["walls"]:
        pytest.skip("this machine gives programs no file system of their own")
    assert int(found["stdout"]) <= 8


INSIDE = {"landlock", "seccomp"}


@pytest.mark.parametrize(
    ("denied", "walls"),
    [
        (["unshare"], INSIDE),
        (["mount"], INSIDE | {"namespaces"}),
        (["pivot_root"], INSIDE | {"namespaces"}),
        (["mount_setattr"], {"namespaces", "root", "seccomp"}),
    ],
    ids=lambda value: "-".join(sorted(value)),
)
def test_other_walls_protect_where_the_kernel_or_a_container_denies_some(confinement, denied, walls):
    if "root" not in confinement.walls:
        pytest.skip("this confinement has no namespaces anyway")
    code = """
        import os, socket
        acts = {
            "read": lambda: open("@MARKER@").read(), "write": lambda: open("@MARKER@", "w"),
            "etc": lambda: open("/etc/passwd").read(), "environ": lambda: open("/proc/@PARENT@/environ").read(),
            "kill": lambda: os.kill(@PARENT@, 9), "socket": lambda: socket.socket(), "fork": lambda: os.fork(),
            "temporary": lambda: open("/tmp/../tmp/victim-harm", "w") if os.getcwd() != "/work" else 1 / 0,
        }
        for name, act in acts.items():
            try:
                act()
                print(name)
            except (OSError, ZeroDivisionError):
                pass
        open("own", "w").write("fine")
    """
    found = attack(confinement, program(code), strict=True, denied=denied)
    assert (found.get("error"), found["stdout"], found["exit_code"]) == (None, "", 0), found["stderr"]
    assert set(found["walls"]) - {"user"} == walls


# ---- inheritance and privileges ----


def test_a_program_inherits_neither_environment_nor_descriptors(confinement):
    code = """
        import os
        print("SECRET" in os.environ, sorted(os.environ))
        for descriptor in range(3, 60):
            try:
                os.fstat(descriptor)
                print("open", descriptor)
            except OSError:
                pass
        try:
            os.write(@FILE@, b"harm")
            print("wrote")
        except OSError:
            pass
        print(os.getsid(0) == os.getpid())
    """
    names = ["HOME", "LANG", "MALLOC_ARENA_MAX", "PATH", "PYTHONHASHSEED", "TMPDIR"]
    assert attack(confinement, program(code))["stdout"] == f"False {names}\nTrue\n"


def test_a_program_has_no_capabilities(confinement):
    code = """
        import os
        names = ("CapEff", "CapPrm", "NoNewPrivs")
        try:
            print([line.split()[1] for line in open("/proc/self/status") if line.startswith(names)])
        except OSError:
            pass
        for act in (lambda: os.setuid(0), lambda: os.chroot("."), lambda: os.mknod("d", 0o20600, os.makedev(1, 1))):
            try:
                act()
                print("did")
            except OSError:
                pass
    """
    found = attack(confinement, program(code))["stdout"]
    if "namespaces" in confinement.walls:
        assert found == f"{['0' * 16, '0' * 16, '1']}\n"
    else:
        assert "did" not in found


# ---- the network ----


@pytest.mark.parametrize("only", [None, "namespaces", "seccomp"])
def test_no_connection_is_made(confinement, only):
    if only and only not in confinement.walls:
        pytest.skip("not among the walls of this confinement")
    walls = confinement.walls if only is None else [only]
    with socket.create_server(("127.0.0.1", 0)) as listener:
        code = f"""
            import socket
            listener = ("127.0.0.1", {listener.getsockname()[1]})
            for family, address in ((socket.AF_INET, listener), (socket.AF_UNIX, "\\0x")):
                try:
                    with socket.socket(family) as s:
                        s.settimeout(1)
                        s.connect(address)
                        s.sendall(b"secret")
                        print("connected")
                except OSError as fault:
                    print("refused")
        """
        assert attack(confinement, program(code), walls=walls)["stdout"] == "refused\n" * 2
        listener.settimeout(0.2)
        with pytest.raises(TimeoutError):
            listener.accept()


def test_asyncio_works_without_a_network(confinement):
    code = """
        import asyncio
        async def main():
            print(await asyncio.to_thread(lambda: 7))
        asyncio.run(main())
    """
    found = attack(confinement, program(code))
    assert found["stdout"] == "7\n", found["stderr"]


def test_a_program_cannot_make_a_pair_of_datagram_sockets(confinement):
    code = "import socket\ntry: socket.socketpair(type=socket.SOCK_DGRAM)\nexcept OSError: print('refused')"
    assert attack(confinement, code)["stdout"] == "refused\n"
