"""Did the completion think first and answer second, and nothing else?"""

from typing import Any

from grpo_jax.rewards.text import prefill_of, text_of

TAGS = ("<think>", "</think>", "<answer>", "</answer>")
END_MARKERS = ("<|im_end|>", "<|endoftext|>", "<|eot_id|>", "<end_of_turn>", "</s>")


def think_answer_format(prompts: list[Any], completions: list[Any], **columns: Any) -> list[float]:
    """1.0 for one `<think>..</think>`, then one `<answer>..</answer>`, both with something inside; else 0.0.

    Around and between the blocks only whitespace may stand, and an end-of-text marker after them. When the
    prompt ends with an opened `<think>` (a prefill), the completion may leave its own out.
    """
    return [
        float(is_think_answer(text_of(c), prefilled=prefill_of(p).rstrip().endswith("<think>")))
        for p, c in zip(prompts, completions)
    ]


def think_format_reward(completions: list[Any], **columns: Any) -> list[float]:
    """1.0 for a text that begins with `<think>`, its only one, and closes it somewhere; else 0.0.

    The values of TRL 1.16's function of this name, with what that lets pass: nothing need stand between the
    tags, nor behind them, and further `</think>` do no harm; one space before `<think>` does.
    `think_answer_format` asks for more.
    """
    return [float(is_think(text_of(c))) for c in completions]


def is_think(text: str) -> bool:
    """The rule of `think_format_reward` for one text."""
    return text.startswith("<think>") and text.count("<think>") == 1 and "</think>" in text


def is_think_answer(text: str, prefilled: bool = False) -> bool:
    """The rule of `think_answer_format` for one text. Counts and splits only, so linear in its length."""
    text = _without_end_markers(text)
    if prefilled and not text.startswith("<think>"):
        text = "<think>" + text
    if any(text.count(tag) != 1 for tag in TAGS):
        return False
    before, _, rest = text.partition("<think>")
    thought, _, rest = rest.partition("</think>")
    between, _, rest = rest.partition("<answer>")
    answer, closing, after = rest.partition("</answer>")
    nothing = not (before + between + after).strip()
    return bool(closing and nothing and thought.strip() and answer.strip())


def _without_end_markers(text: str) -> str:
    text = text.strip()
    while marker := next((m for m in END_MARKERS if text.endswith(m)), None):
        text = text[: -len(marker)].rstrip()
    return text
