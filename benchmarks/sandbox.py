"""Programs a second of the sandbox that the reward `code` runs them in, as JSON.

    python benchmarks/sandbox.py --programs 40 --at_once 1 2

Each program is `print(int(input()) + 1)`: what is measured is the start of two interpreters and the walls.
`processor_ms` is what a program costs in processor time, the supervisor included, whatever else the machine does.
"""

import argparse
import json
import os
import platform
import resource
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import date
from typing import Any

from hardware import processor

from grpo_jax.sandbox import run

CODE = "print(int(input()) + 1)"
WALLS = {
    "all": ("namespaces", "root", "user", "landlock", "seccomp"),
    "no namespaces": ("landlock", "seccomp"),
    "limits only": (),
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--programs", type=int, default=40)
    parser.add_argument("--at_once", type=int, nargs="+", default=[1, os.cpu_count() or 1])
    args = parser.parse_args()
    found = [measure(name, args.programs, at_once) for name in WALLS for at_once in args.at_once]
    about = {"processor": processor(), "cores": os.cpu_count(), "kernel": platform.release()}
    about |= {"python": platform.python_version(), "date": str(date.today()), "programs": args.programs}
    print(json.dumps(about | {"found": found}, indent=2))


def measure(name: str, programs: int, at_once: int) -> dict[str, Any]:
    """Run so many programs, `at_once` at a time."""
    one = lambda number: run(CODE, str(number), walls=WALLS[name])
    walls = one(0).walls
    before, begun = processor_seconds(), time.perf_counter()
    with ThreadPoolExecutor(at_once) as threads:
        outcomes = list(threads.map(one, range(programs)))
    seconds, used = time.perf_counter() - begun, processor_seconds() - before
    assert [outcome.stdout for outcome in outcomes] == [f"{number + 1}\n" for number in range(programs)]
    return {
        "walls": walls,
        "at_once": at_once,
        "programs_per_second": round(programs / seconds, 1),
        "processor_ms": round(1000 * used / programs, 1),
    }


def processor_seconds() -> float:
    """Of this process and of all that it has waited for."""
    both = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in both)


if __name__ == "__main__":
    main()
