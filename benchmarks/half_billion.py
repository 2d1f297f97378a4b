"""Qwen2.5's 0.5B shape, with random weights, through load -> generate -> one GRPO step on GSM8K -> export, by the
commands that people type. Prints seconds and peak memory of each as JSON.

    python benchmarks/half_billion.py --gsm8k path/to/gsm8k [--work FOLDER]

The folder of GSM8K holds train.jsonl and test.jsonl. The tokenizer is a byte-level BPE trained on its questions, so
that prompts have realistic lengths; the weights are saved in bfloat16 as the published ones are (0.99 GB).
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from datetime import date
from pathlib import Path
from typing import Any

CHAT = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def digits(completions: list[Any], **columns: Any) -> list[float]:
    """A reward with some spread on random weights, which never answer right: without it the gradient is zero."""
    texts = [
        completion if isinstance(completion, str) else completion[-1]["content"] for completion in completions
    ]
    return [sum(c in "0123456789aeiou" for c in text) / max(len(text), 1) for text in texts]


def make_model(folder: Path, gsm8k: Path) -> None:
    """A folder in Hugging Face format with random weights of the published 0.5B shape."""
    import jax
    from tokenizers import ByteLevelBPETokenizer
    from transformers import PreTrainedTokenizerFast

    from grpo_jax.models.hf import PUBLISHED, save_model
    from grpo_jax.models.transformer import init

    questions = [json.loads(line)["question"] for line in (gsm8k / "train.jsonl").open()]
    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator(questions, vocab_size=16_000, special_tokens=["<|im_start|>", "<|im_end|>"])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe._tokenizer, eos_token="<|im_end|>", pad_token="<|im_end|>"
    )
    tokenizer.chat_template = CHAT
    cfg = PUBLISHED["0.5b"]
    save_model(folder, cfg, init(cfg, jax.random.key(0)), dtype="bfloat16")
    tokenizer.save_pretrained(folder)


def timed(name: str, *arguments: str) -> dict[str, Any]:
    """Run `grpo-jax` with `arguments`; its wall seconds, processor seconds and peak resident memory."""
    print(f"{name}: grpo-jax {' '.join(arguments)}", file=sys.stderr, flush=True)
    start = time.perf_counter()
    child = subprocess.Popen([sys.executable, "-m", "grpo_jax", *arguments], stdout=sys.stderr)
    _, status, usage = os.wait4(child.pid, 0)
    if status:
        raise SystemExit(f"{name} failed with status {os.waitstatus_to_exitcode(status)}")
    return {
        "seconds": round(time.perf_counter() - start, 1),
        "processor_seconds": round(usage.ru_utime + usage.ru_stime, 1),
        "peak_memory_gib": round(usage.ru_maxrss / 2**20, 2),
    }


def run(gsm8k: Path, work: Path) -> dict[str, Any]:
    """All stages, each a process of its own."""
    model, out = work / "model", work / "run"
    if not model.exists():
        make_model(model, gsm8k)
    step = "--prompts_per_step 4 --num_generations 4 --max_prompt_length 256 --max_completion_length 64"
    train = (
        f"--max_steps 1 --eval_prompts 0 --micro_batch_size 4 --beta 0.04 --learning_rate 1e-6 {step}".split()
    )
    results = {
        "generate": timed(
            "generate", "generate", "--model", str(model), "--prompt", "2+3?", "--max_completion_length", "32"
        ),
        "train": timed(
            "train",
            "train",
            *("--model", str(model), "--dataset", str(gsm8k), "--rewards", f"gsm8k,{__file__}:digits"),
            *("--output_dir", str(out), *train),
        ),
        "export": timed("export", "export", str(out), str(work / "exported")),
    }
    line = json.loads((out / "metrics.jsonl").read_text().splitlines()[-1])
    kept = ("step_time", "time/rollout", "time/reward", "time/update", "num_tokens", "grad_norm", "kl")
    results["step"] = {name: line[name] for name in kept}
    results["step"]["logp_gap_max"] = line["sampling/sampling_logp_difference/max"]
    return results


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--gsm8k", type=Path, required=True)
    parser.add_argument("--work", type=Path, help="kept when given; else a temporary folder")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        results = run(args.gsm8k, args.work or Path(temporary))
    hardware = {"cores": os.cpu_count(), "date": date.today().isoformat()}
    print(json.dumps({"shape": "0.5b", **hardware, **results}, indent=2))


if __name__ == "__main__":
    main()
