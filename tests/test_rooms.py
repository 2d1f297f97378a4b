"""A room imports only what the table here allows (ARCHITECTURE.md has it in words), and none import one another in a
circle."""

import ast
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parents[1]
PHASES = {"data", "rollout", "rewards", "learner", "runs"}
FOUNDATION = {"models", "sharding", "program"}
BUILDING = {"config", *PHASES, *FOUNDATION}

MAY_USE = {
    "sharding": set(),
    "program": set(),
    "models": {"sharding"},
    "sandbox": set(),
    "recipes": set(),
    "data": set(),
    "rollout": FOUNDATION,
    "learner": FOUNDATION,
    "runs": {"sharding"},
    "rewards": {"sandbox"},
    "config": {"data", "recipes", "sharding"},
    "setup": BUILDING,
    "scoring": {"setup", *BUILDING},
    "evaluation": {"scoring", "setup", *BUILDING},
    "plans": {"scoring", "setup", *BUILDING},
    "pipelines": {"evaluation", "setup", *BUILDING},
    "training": {"plans", "evaluation", "scoring", "setup", *BUILDING},
    "trainer": {"training", "evaluation", "scoring", "setup", *BUILDING},
    "demo": {"training", "scoring", "setup", *BUILDING},
    "commands": {
        "recipes",
        "trainer",
        "training",
        "demo",
        "pipelines",
        "plans",
        "evaluation",
        "scoring",
        "setup",
        "sandbox",
    }
    | BUILDING,
    "cli": {"commands", "config", "evaluation", "sharding"},
}
EVERYWHERE = {"errors", "__version__"}
ENTRY_POINTS = {"__init__", "__main__"}  # the package's own: lazy names, and `python -m grpo_jax`
CONFIG_MAY_KNOW = {"data.layouts", "data.curation.cleaning", "data.sft.mixture_entry", "sharding.mesh_spec"}
WITHOUT_JAX = ("config", "data", "rewards", "sandbox", "recipes", "errors")


def modules():
    """(dotted name under grpo_jax, path) of every file of the product."""
    for base in ("grpo_jax", "models", "sharding"):
        for path in sorted((ROOT / base).rglob("*.py")):
            parts = path.relative_to(ROOT / base).with_suffix("").parts
            if base == "grpo_jax" and parts[0] in ("models", "sharding"):
                continue  # the links
            yield ".".join(parts if base == "grpo_jax" else (base, *parts)), path


def imports(path):
    """Dotted names under grpo_jax that a file imports, wherever in it."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        assert not getattr(node, "level", 0), f"{path}: a relative import, which this test does not follow"
        if isinstance(node, ast.ImportFrom) and node.module == "grpo_jax":
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("grpo_jax."):
            yield node.module.removeprefix("grpo_jax.")
        elif isinstance(node, ast.Import):
            yield from (
                a.name.removeprefix("grpo_jax.") for a in node.names if a.name.startswith("grpo_jax.")
            )


IMPORTS = [(name, used) for name, path in modules() for used in imports(path)]
room = lambda name: name.split(".")[0]


def test_every_room_has_a_row_in_the_table():
    assert {room(name) for name, _ in modules()} - ENTRY_POINTS - {"errors"} == MAY_USE.keys()


def test_rooms_use_only_what_the_table_allows():
    wrong = [
        f"{name} imports {used}"
        for name, used in IMPORTS
        if room(name) not in ENTRY_POINTS
        and room(used) not in {room(name), *EVERYWHERE}
        and room(used) not in MAY_USE.get(room(name), set())
    ]
    assert wrong == []


def test_the_table_has_no_circle():
    def below(name, path=()):
        assert name not in path, " -> ".join([*path, name])
        for used in MAY_USE[name]:
            below(used, (*path, name))

    for name in ("cli", "commands", "demo"):
        below(name)


def test_phases_do_not_import_one_another():
    assert all(not MAY_USE[phase] & PHASES for phase in PHASES)


def test_config_imports_only_the_listed_modules_of_other_rooms():
    used = {used for name, used in IMPORTS if room(name) == "config" and room(used) in ("data", "sharding")}
    assert used == CONFIG_MAY_KNOW


def test_linked_rooms_are_imported_through_the_package():
    """`models` and `sharding` alone are found in a checkout, and nowhere else."""
    for _, path in modules():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            assert not {"models", "sharding"} & set(tops(node)), path


def tops(node):
    """The packages that a statement imports."""
    if isinstance(node, ast.Import):
        return [alias.name.split(".")[0] for alias in node.names]
    return [(node.module or "").split(".")[0]] if isinstance(node, ast.ImportFrom) else []


def test_rooms_that_workers_and_help_need_load_no_jax():
    """Neither by themselves nor through what they import; a function may import it when it is called."""
    names = [
        f"grpo_jax.{name.removesuffix('.__init__')}" for name, _ in modules() if room(name) in WITHOUT_JAX
    ]
    loaded = "sorted({'jax', 'flax', 'optax', 'torch'} & sys.modules.keys())"
    code = f"import sys, importlib\nfor n in {names}: importlib.import_module(n)\nprint({loaded})"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_the_sandbox_imports_the_standard_library_only():
    for name, path in modules():
        if room(name) == "sandbox":
            for node in ast.walk(ast.parse(path.read_text())):
                assert set(tops(node)) <= {*sys.stdlib_module_names, "grpo_jax"}, name


def test_the_top_of_the_package_holds_only_these_files():
    assert {path.name for path in (ROOT / "grpo_jax").glob("*.py")} == {
        "__init__.py",
        "__main__.py",
        "cli.py",
        "errors.py",
        "program.py",
        "trainer.py",
    }


def test_the_tree_in_architecture_md_has_every_file_in_its_room():
    _, tree = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8").split("## The tree", 1)
    folders, listed = [], set()
    for line in tree.split("```")[1].splitlines():
        name = line.split()[0] if line.strip() else ""
        folders[(len(line) - len(line.lstrip())) // 2 :] = [name.rstrip("/")] if name.endswith("/") else []
        if name.endswith(".py"):
            listed.add("/".join([*folders, name]))
    existing = {str(path.relative_to(ROOT)) for _, path in modules() if not path.name.startswith("__")}
    assert {name for name in listed if not name.startswith("benchmarks/")} == existing
