"""What runs take on chips that are not here, by compilation: the tables of benchmarks/PLANS.md.

    python benchmarks/plans.py > plans.json

All of it, or with `--only proofs` (or targets, doubling, levers, sequences) a part.

Each line is a plan as `grpo-jax plan` makes it: the run's own programs, compiled for the target by its own compiler
(`pip install 'grpo-jax[plan]'`), and the peak of the phase that takes most. No figure was measured on hardware.
"""

import argparse
import json
import sys
from pathlib import Path

from grpo_jax.config import GRPOConfig
from grpo_jax.errors import UserError
from grpo_jax.sharding.quiet import prepare

SHORT = {
    "max_prompt_length": 512,
    "max_completion_length": 1024,
    "prompts_per_step": 16,
    "num_generations": 8,
}
LONG = SHORT | {
    "max_completion_length": 19488,
    "prompts_per_step": 1,
    "micro_batch_size": 1,
    "rollout_cache": "int8",
}
ONE = SHORT | {"prompts_per_step": 1, "micro_batch_size": 1, "beta": 0.04}
LARGE = SHORT | {"prompts_per_step": 128, "gradient_checkpointing": "full"}
QLORA, LORA = {"lora_r": 16, "base_weights": "nf4"}, {"lora_r": 16}
LEVER = SHORT | {"micro_batch_size": 16, "beta": 0.04, "mesh": "fsdp=1"}

# name, model, target, settings
PROOFS = [
    ("QLoRA, G = 8, 1K completions: at most 5 GB", "1.5b", "h100:1", ONE | QLORA),
    ("LoRA, 20K tokens, G = 8: at most 54 GB (aim: 40)", "7b", "h100:1", LONG | LORA),
    (
        "full fine-tuning, 16 chips of v5e",
        "7b",
        "v5e:4x4",
        SHORT | {"mesh": "fsdp=4,tensor=4", "micro_batch_size": 16},
    ),
    (
        "full fine-tuning, one 8 x H100 node",
        "7b",
        "h100:8",
        SHORT | {"mesh": "fsdp=8", "micro_batch_size": 32},
    ),
    (
        "full fine-tuning, 32 chips of v5p",
        "32b",
        "v5p:2x4x4",
        LARGE | {"mesh": "fsdp=16,tensor=2", "micro_batch_size": 32},
    ),
    (
        "full fine-tuning, 128 chips of v5p",
        "72b",
        "v5p:4x4x8",
        LARGE | {"mesh": "fsdp=32,tensor=4", "micro_batch_size": 64},
    ),
]
TARGETS = [
    ("every chip that is known", "1.5b", target, SHORT | {"prompts_per_step": 64, "micro_batch_size": 64})
    for target in (
        "v4:2x2x1",
        "v5e:2x4",
        "v5p:2x2x1",
        "v6e:2x2",
        "tpu7x:2x2x1",
        "a100:4",
        "h100:4",
        "h200:4",
        "b200:4",
        "h100:2x8",
    )
]
DOUBLING = [
    ("memory falls as devices double", "7b", target, LARGE | {"micro_batch_size": 128, "beta": 0.04})
    for target in (
        "v5p:2x2x1",
        "v5p:2x2x2",
        "v5p:2x2x4",
        "v5p:2x4x4",
        "v5p:4x4x4",
        "h100:4",
        "h100:8",
        "h100:2x8",
    )
]
LEVERS = [
    (name, "1.5b", target, LEVER | settings)
    for target in ("h100:1", "v5p:1x1x1")
    for name, settings in (
        ("as it is", {}),
        ("gradient_checkpointing none", {"gradient_checkpointing": "none"}),
        ("gradient_checkpointing dots", {"gradient_checkpointing": "dots"}),
        ("gradient_checkpointing offload", {"gradient_checkpointing": "offload"}),
        ("adam_moments bfloat16", {"adam_moments": "bfloat16"}),
        ("share_prompts", {"share_prompts": True}),
        ("share_prompts, attention xla", {"share_prompts": True, "attention": "xla"}),
        ("reference_memory host", {"reference_memory": "host"}),
        ("attention xla", {"attention": "xla"}),
        ("logprob_chunk 8192", {"logprob_chunk": 8192}),
        ("micro_batch_size 4", {"micro_batch_size": 4}),
        ("lora_r 16", LORA),
        ("lora_r 16, base_weights int8", LORA | {"base_weights": "int8"}),
        ("lora_r 16, base_weights nf4", QLORA),
    )
]
ROW = {"max_prompt_length": 768, "max_completion_length": 32000, "prompts_per_step": 16, "num_generations": 8}
SEQUENCES = [
    (
        f"rows of 32K tokens, one on a shard, {remat}",
        model,
        target,
        ROW | sizes | {"gradient_checkpointing": remat},
    )
    for model, target, sizes in (
        ("7b", "v5e:4x4", {"mesh": "fsdp=4,tensor=4", "micro_batch_size": 4, "rollout_cache": "int8"}),
        ("7b", "h100:8", {"mesh": "fsdp=8", "micro_batch_size": 8}),
        ("32b", "v5p:2x4x4", {"mesh": "fsdp=16,tensor=2", "micro_batch_size": 16}),
    )
    for remat in ("full", "offload")
]
SEQUENCES.append(
    (
        "the same, offload, and adam_moments bfloat16",
        "7b",
        "v5e:4x4",
        SEQUENCES[1][3] | {"adam_moments": "bfloat16"},
    )
)
PARTS = {"proofs": PROOFS, "targets": TARGETS, "doubling": DOUBLING, "levers": LEVERS, "sequences": SEQUENCES}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", choices=PARTS, action="append")
    parser.add_argument("--tables", nargs="+", metavar="JSON", help="print the tables of such files instead")
    args = parser.parse_args()
    if args.tables:
        print(tables({k: v for file in args.tables for k, v in json.loads(Path(file).read_text()).items()}))
        return
    chosen = args.only or list(PARTS)
    prepare()
    found = {part: [line(*case) for case in PARTS[part]] for part in chosen}
    print(json.dumps({"versions": versions(), **found}, indent=1))


def line(name: str, model: str, target: str, settings: dict) -> dict:
    """One plan, in GiB; what a compiler refuses is said."""
    from grpo_jax.plans.planned_run import PlannedRun, shape_of
    from grpo_jax.plans.report import as_json, plan_of

    config = GRPOConfig(model=model, **settings)
    start = {"name": name, "model": model, "target": target, "settings": settings}
    try:
        plan = plan_of(PlannedRun(config, target, shape_of(model)))
    except UserError as fault:
        print(f"{model} {target} {name}: {fault}", file=sys.stderr, flush=True)
        return start | {"refused": str(fault)}
    print(f"{model} {target} {name}: {plan.verdict()}", file=sys.stderr, flush=True)
    whole = as_json(plan)
    gib = lambda value: round(value / 2**30, 2)
    return start | {
        "mesh": whole["mesh"],
        "fits": plan.fits,
        "usable": gib(whole["usable_bytes"]),
        "peak": gib(whole["peak_bytes"]),
        "in": plan.worst.name,
        "stages": {phase.name: gib(phase.peak) for phase in plan.phases},
        "parts": {part: gib(value) for part, value in whole["bytes"].items() if value},
        "compiled_s": round(sum(phase.compilation.seconds for phase in plan.phases)),
    }


def tables(found: dict) -> str:
    """Markdown."""
    lines = []
    for part in (part for part in PARTS if part in found):
        lines += [
            f"## {part}",
            "",
            "| what | model | target | mesh | peak GiB | in | may be filled | fits |",
            "|---" * 8 + "|",
        ]
        lines += [_row(one) for one in found[part]] + [""]
    return "\n".join(lines)


def _row(one: dict) -> str:
    start = f"| {one['name']} | {one['model']} | {one['target']} |"
    if "refused" in one:
        return f"{start} | refused: {one['refused']} | | | |"
    fits = "yes" if one["fits"] else "no"
    return f"{start} {one['mesh']} | {one['peak']} | {one['in']} | {one['usable']} | {fits} |"


def versions() -> dict[str, str]:
    """Of the compilers."""
    from importlib.metadata import version

    return {name: version(name) for name in ("jax", "libtpu", "jax-cuda13-plugin")}


if __name__ == "__main__":
    main()
