"""The command line: `grpo-jax VERB ...`. Parses the arguments and calls the verb's function in `commands/`.

Options are generated from the settings, one per field, so that the two cannot differ. Heavy modules are imported by
the verb that needs them, so help and errors in the input appear at once.

Exit codes: 0 success; 1 a bug, with a traceback (`plan`, `doctor`: a negative answer); 2 invalid user input or a full
disk, explained in a few lines on stderr; 130 interrupted; 141 the reader of the output has gone.
"""

import argparse
import os
import sys
import typing
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from grpo_jax.commands import closed_output, data_options
from grpo_jax.commands.full_disk import full_disk
from grpo_jax.commands.starting import starting
from grpo_jax.config import EvalConfig, GenerateConfig, GRPOConfig, SFTConfig, load_settings
from grpo_jax.config.base import Settings, sections, unknown
from grpo_jax.config.load import S
from grpo_jax.config.reject import RejectConfig
from grpo_jax.errors import UserError, nearest

INTERRUPTED = 130
NOT_OPTIONS = {"verb", "source", "file", "run", "out", "data", "data_verb"}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line and return its exit code. Exceptions other than invalid input propagate.

    Called without `argv` it is the program: if it was interrupted, the process ends here, since at the interpreter's
    own end JAX waits for the compilation under way, for minutes, and may crash after it.
    """
    try:
        code = answer(argv)
        closed_output.flush_output()
        if argv is None and code == INTERRUPTED:
            os._exit(code)
        return code
    except (BrokenPipeError, SystemExit) as end:
        if not closed_output.reader_left(end):
            raise
        closed_output.discard_output()
        return closed_output.READER_LEFT


def answer(argv: Sequence[str] | None) -> int:
    """Run one command line, whose output may remain buffered, and return its exit code."""
    try:
        return run(list(sys.argv[1:] if argv is None else argv))
    except UserError as fault:
        print(f"error: {fault}", file=sys.stderr)
        return 2
    except Exception as fault:
        if not (full := full_disk(fault)):
            raise
        print(f"error: {full}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED


def run(argv: list[str]) -> int:
    """Parse `argv` and call its verb."""
    if argv and argv[0] not in (*VERBS, "-h", "--help"):
        raise UserError(f"{argv[0]}: no such verb{nearest(argv[0], VERBS)}; verbs are {', '.join(VERBS)}")
    parser = make_parser()
    args, extra = parser.parse_known_args(argv)
    if extra:
        raise UserError(unexpected(extra[0], args))
    if args.verb is None:
        parser.print_help()
        return 0
    return VERBS[args.verb][1](args)


def unexpected(word: str, args: argparse.Namespace) -> str:
    """The message for a word that is no option or argument of the verb."""
    if not word.startswith("-"):
        return f"{word}: not understood by {args.verb}; see grpo-jax {args.verb} --help"
    name = word.lstrip("-").partition("=")[0].replace("-", "_")
    return f"--{unknown(name, vars(args).keys() - NOT_OPTIONS)}"


class Parser(argparse.ArgumentParser):
    """An argument parser that raises UserError with one sentence instead of printing its usage and exiting."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message.removeprefix('argument ')}; see {self.prog} --help")

    def print_help(self, file: Any = None) -> None:
        """Print the help. argparse's own method swallows the error if the reader of stdout has gone."""
        print(self.format_help(), end="", file=file, flush=True)


def make_parser() -> argparse.ArgumentParser:
    """The parser of all verbs."""
    parser = Parser(prog="grpo-jax", description="GRPO post-training of language models in JAX.")
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", title="verbs")
    for name, (summary, _) in VERBS.items():
        verb = verbs.add_parser(name, help=summary, description=f"{summary}.", allow_abbrev=False)
        ARGUMENTS.get(name, lambda verb: None)(verb)
    return parser


# ---- arguments ----


def add_settings(verb: argparse.ArgumentParser, cls: type[Settings]) -> None:
    """Add one option per field of `cls`, grouped by section."""
    verb.usage = f"{verb.prog} [--setting VALUE ...]"
    for title, names in sections(cls).items():
        group = verb.add_argument_group(title)
        for name in names:
            add_setting(group, cls, name)
    add_hosts(verb)


def add_hosts(verb: argparse.ArgumentParser) -> None:
    """Add the options that identify this process among several."""
    hosts = verb.add_argument_group("Many hosts", "TPU pods and Slurm are recognised without these.")
    hosts.add_argument("--coordinator", metavar="HOST:PORT", help="address of process 0")
    hosts.add_argument("--num_processes", type=int, metavar="N", help="processes of the whole run")
    hosts.add_argument("--process_id", type=int, metavar="I", help="number of this process, from 0")


def add_recipe(verb: argparse.ArgumentParser, cls: type[Settings], without: str) -> None:
    """Like `add_settings`, for verbs that also take a recipe or a file."""
    text = f"a recipe's name (see `grpo-jax recipes`) or a YAML file of settings; without: {without}"
    verb.add_argument("source", nargs="?", metavar="RECIPE|FILE.yaml", help=text)
    small = "the recipe's own small form: a tiny model, data that make themselves, minutes on a laptop"
    verb.add_argument("--tiny", action="store_true", help=small)
    add_settings(verb, cls)
    verb.usage = f"{verb.prog} [RECIPE|FILE.yaml] [--setting VALUE ...]"


def add_setting(group: Any, cls: type[Settings], name: str) -> None:
    """Add the option of one field. Its value stays text here, and is checked when the settings are built."""
    field = cls.model_fields[name]
    needed = field.is_required()
    default = "" if needed else f" (default: {spelled(field.get_default(call_default_factory=True))})"
    alone: dict[str, Any] = {"nargs": "?", "const": "true"} if field.annotation is bool else {}
    text = f"{field.description}{default}".replace("%", "%%")
    group.add_argument(f"--{name}", metavar=kind(field.annotation), help=text, **alone)


def spelled(value: Any) -> str:
    """A value as it is written on the command line."""
    if isinstance(value, list):
        return ",".join(map(str, value))
    return str(value).lower() if value is None or isinstance(value, bool) else str(value)


def kind(annotation: Any) -> str:
    """The placeholder of the value in the help: its choices, or its type."""
    if typing.get_origin(annotation) is typing.Literal:
        return "{" + ",".join(typing.get_args(annotation)) + "}"
    words = {bool: "true|false", int: "N", float: "X"}
    return next((words[a] for a in (annotation, *typing.get_args(annotation)) if a in words), "TEXT")


def add_export(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("run", metavar="RUN", help="a run's folder")
    verb.add_argument("out", metavar="OUT", help="the folder to write")
    verb.add_argument("--adapter", action="store_true", help="only what was trained with lora_r, for PEFT")
    verb.add_argument("--step", type=int, metavar="N", help="which checkpoint (default: the newest)")
    add_quiet(verb)


def add_quiet(verb: argparse.ArgumentParser) -> None:
    """Add what the other verbs have as a setting."""
    verb.add_argument("--quiet", action="store_true", help="do not say what is happening")


def add_pipeline(verb: argparse.ArgumentParser) -> None:
    text = "a pipeline's name (see `grpo-jax recipes`) or a YAML file of steps"
    verb.add_argument("file", metavar="NAME|FILE.yaml", help=text)
    verb.add_argument("--output_dir", metavar="TEXT", help="in place of the file's: a folder for all steps")
    verb.add_argument(
        "--tiny", action="store_true", help="with the file's tiny settings: small enough for a CPU"
    )
    verb.add_argument("--dry-run", "--dry_run", action="store_true", help="print the steps, and run none")
    add_quiet(verb)
    add_hosts(verb)


def add_plan(verb: argparse.ArgumentParser) -> None:
    add_recipe(verb, GRPOConfig, "the defaults below")
    group = verb.add_argument_group("Plan")
    group.add_argument(
        "--target", metavar="CHIP:TOPOLOGY", help="such as v5e:2x4, h100:8, or h100:2x8 for two hosts"
    )
    group.add_argument(
        "--search", action="store_true", help="find mesh, micro_batch_size and gradient_checkpointing"
    )
    group.add_argument("--json", metavar="FILE", help="write the plan there, too")
    group.add_argument(
        "--targets", action="store_true", help="list the chips that are known, and nothing else"
    )


def add_eval(verb: argparse.ArgumentParser) -> None:
    add_settings(verb, EvalConfig)
    group = verb.add_argument_group("Tasks")
    group.add_argument("--list", action="store_true", help="list the tasks by name, and nothing else")


ARGUMENTS: dict[str, Callable[[argparse.ArgumentParser], Any]] = {
    "train": lambda verb: add_recipe(verb, GRPOConfig, "demo, or with --model the defaults below"),
    "sft": lambda verb: add_recipe(verb, SFTConfig, "the defaults below"),
    "eval": add_eval,
    "generate": lambda verb: add_settings(verb, GenerateConfig),
    "reject": lambda verb: add_recipe(verb, RejectConfig, "the defaults below"),
    "pipeline": add_pipeline,
    "export": add_export,
    "plan": add_plan,
    "data": lambda verb: data_options.add_data(verb, add_setting),
    "recipes": lambda verb: verb.add_argument("name", nargs="?", metavar="NAME", help="show this one whole"),
}

# ---- verbs ----


def settings(cls: type[S], args: argparse.Namespace) -> S:
    """The settings that `args` describe. Then joins the other processes, which must happen before devices are used."""
    given = {name: value for name in cls.model_fields if (value := getattr(args, name)) is not None}
    config = load_settings(cls, getattr(args, "source", None), given, tiny=getattr(args, "tiny", False))
    from grpo_jax.sharding.hosts import initialize

    initialize(*_hosts(args))
    return config


def _hosts(args: argparse.Namespace) -> tuple[str | None, int | None, int | None]:
    """(address of process 0, number of processes, number of this process), as given."""
    return args.coordinator, args.num_processes, args.process_id


def train(args: argparse.Namespace) -> int:
    # A model of the user's own must not inherit the tiny model's learning rate and lengths.
    args.source = args.source or (None if args.model else "demo")
    with starting(args):
        config = settings(GRPOConfig, args)
        from grpo_jax.commands.train import train

    return train(config)


def sft(args: argparse.Namespace) -> int:
    with starting(args):
        config = settings(SFTConfig, args)
        from grpo_jax.commands.sft import sft

    return sft(config)


def evaluate(args: argparse.Namespace) -> int:
    if args.list:
        from grpo_jax.evaluation.tasks import list_tasks

        return list_tasks()
    with starting(args):
        config = settings(EvalConfig, args)
        from grpo_jax.commands.evaluate import evaluate_command

    return evaluate_command(config)


def generate(args: argparse.Namespace) -> int:
    with starting(args):
        config = settings(GenerateConfig, args)
        from grpo_jax.commands.generate import generate_command

    return generate_command(config)


def reject(args: argparse.Namespace) -> int:
    with starting(args):
        config = settings(RejectConfig, args)
        from grpo_jax.commands.reject import reject_command

    return reject_command(config)


def pipeline(args: argparse.Namespace) -> int:
    from grpo_jax.commands.pipeline import pipeline_command

    return pipeline_command(
        args.file,
        output_dir=args.output_dir,
        tiny=args.tiny,
        dry_run=args.dry_run,
        quiet=args.quiet,
        hosts=_hosts(args),
    )


def export(args: argparse.Namespace) -> int:
    with starting(args):
        from grpo_jax.commands.export import export_command

    return export_command(args.run, args.out, args.step, args.adapter, args.quiet)


def plan(args: argparse.Namespace) -> int:
    from grpo_jax.commands.plan import list_targets, plan_command

    if args.targets:
        return list_targets()
    given = {name: value for name in GRPOConfig.model_fields if (value := getattr(args, name)) is not None}
    config = load_settings(GRPOConfig, args.source, given, tiny=args.tiny)
    return plan_command(config, args.target, args.search, args.json)


def doctor(args: argparse.Namespace) -> int:
    from grpo_jax.commands.doctor import doctor

    return doctor()


def recipes(args: argparse.Namespace) -> int:
    from grpo_jax.commands.recipes import recipes_command

    return recipes_command(args.name)


VERBS: dict[str, tuple[str, Callable[[argparse.Namespace], int]]] = {
    "train": ("train a model with GRPO", train),
    "sft": ("fine-tune a model on given completions", sft),
    "eval": ("measure a model on held-out prompts", evaluate),
    "generate": ("sample from a model", generate),
    "reject": ("sample completions, and keep the verified ones as rows for sft", reject),
    "pipeline": ("run the steps of a file one after another", pipeline),
    "export": ("write a checkpoint as a Hugging Face folder", export),
    "plan": ("say whether a run fits on chips that are not here, and how fast they could be", plan),
    "data": ("look at, clean, grade and filter data, by verbs of its own", data_options.data),
    "doctor": ("say what this machine can do, and what is missing", doctor),
    "recipes": ("list what can be run by name, or show one recipe whole", recipes),
}
