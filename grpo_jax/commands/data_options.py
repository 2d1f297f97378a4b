"""The command line of `grpo-jax data VERB DATA [OUT]`."""

import argparse
from collections.abc import Callable
from typing import Any

from grpo_jax.config.base import Settings, sections
from grpo_jax.config.data import VERBS

POSITIONAL = {"data": "DATA", "out": "OUT"}

AddSetting = Callable[[Any, type[Settings], str], None]


def add_data(parser: argparse.ArgumentParser, add_setting: AddSetting) -> None:
    """The verbs, with an option for each of their settings but DATA and OUT, which stand by themselves."""
    verbs = parser.add_subparsers(dest="data_verb", metavar="VERB", title="verbs", required=True)
    for name, (summary, cls) in VERBS.items():
        verb = verbs.add_parser(name, help=summary, description=f"{summary}.", allow_abbrev=False)
        places = [field for field in POSITIONAL if field in cls.model_fields]
        for field in places:
            verb.add_argument(field, metavar=POSITIONAL[field], help=cls.model_fields[field].description)
        for title, names in sections(cls).items():
            group = verb.add_argument_group(title)
            for field in names:
                if field not in places:
                    add_setting(group, cls, field)
        words = " ".join(POSITIONAL[field] for field in places)
        verb.usage = f"{verb.prog} {words} [--setting VALUE ...]"


def data(args: argparse.Namespace) -> int:
    """Build the settings and do the verb."""
    from grpo_jax.config.load import load_settings

    _, cls = VERBS[args.data_verb]
    given = {name: value for name in cls.model_fields if (value := getattr(args, name)) is not None}
    config = load_settings(cls, None, given)
    if args.data_verb == "grade":
        from grpo_jax.sharding.hosts import initialize

        initialize()
    from grpo_jax.commands.data import data_command

    return data_command(args.data_verb, config)
