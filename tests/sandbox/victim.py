"""A process that uses the sandbox as a worker does, and holds what a program must not reach.

Reads {"code", "stdin", "limits", "walls", "strict"} as JSON, runs the program, and writes its outcome and the state
of the surroundings. It adopts orphans, so that none is overlooked.
"""

import ctypes
import dataclasses
import json
import os
import struct
import subprocess
import sys
import time

from grpo_jax.sandbox import Limits, SandboxError, linux, run, seccomp

ALLOWED = (0x06, 0x7FFF0000, 0, 0)


def main() -> None:
    wanted = json.load(sys.stdin)
    ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER
    deny(wanted["denied"])
    file = os.open(wanted["marker"], os.O_RDWR)
    os.set_inheritable(file, True)
    bystander = subprocess.Popen(["sleep", "60"], start_new_session=True)
    code = wanted["code"].replace("@PARENT@", str(os.getpid())).replace("@FILE@", str(file))
    begun = time.monotonic()
    try:
        limits = Limits(**wanted["limits"])
        outcome = dataclasses.asdict(
            run(code, wanted["stdin"], limits, strict=wanted["strict"], walls=wanted["walls"])
        )
    except SandboxError as fault:
        outcome = {"error": str(fault)}
    outcome["took"] = time.monotonic() - begun
    outcome["bystander"] = bystander.poll()
    bystander.kill()
    bystander.wait()
    outcome["survivors"] = survivors()
    outcome["folders"] = os.listdir(os.environ["TMPDIR"])
    outcome["descriptors"] = sorted(int(name) for name in os.listdir("/proc/self/fd"))[:-1]
    outcome["file"] = file
    print(json.dumps(outcome))


def deny(calls: list[str]) -> None:
    """Have these system calls refused to this process and its children, as a kernel or a container may do."""
    column = seccomp._MACHINES[linux.machine()][0]
    steps = [(0x20, 0, 0, 0)]
    for name in calls:
        steps += seccomp._on(seccomp._REFUSED[name][column], [seccomp._refusal()])
    code = b"".join(struct.pack("=HBBI", op, yes, no, value) for op, value, yes, no in [*steps, ALLOWED])
    if calls:
        buffer = ctypes.create_string_buffer(code)
        linux.prctl(linux.NO_NEW_PRIVILEGES, 1)
        header = struct.pack("@HP", len(code) // 8, ctypes.addressof(buffer))
        linux.prctl(linux.SECCOMP, 2, ctypes.create_string_buffer(header))


def survivors() -> list[str]:
    with open(f"/proc/self/task/{os.getpid()}/children") as children:
        return children.read().split()


if __name__ == "__main__":
    main()
