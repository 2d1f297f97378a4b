"""Did the completion think first and answer second, and nothing else?

All rules count tags and split at them: their cost is linear in the text, whatever it holds.
"""

from typing import Any

from grpo_jax.rewards.functions.text import last_block, prefill_of, says_something, text_of

TAGS = ("<think>", "</think>", "<answer>", "</answer>")
END_MARKERS = ("<|im_end|>", "<|endoftext|>", "<|eot_id|>", "<end_of_turn>", "</s>")


def think_answer_format(prompts: list[Any], completions: list[Any], **columns: Any) -> list[float]:
    """1.0 for one `<think>..</think>`, then one `<answer>..</answer>`, both with something inside; else 0.0.

    Around and between the blocks only whitespace may stand, and an end-of-text marker after them. When the
    prompt ends with an opened `<think>` (a prefill), the completion may leave its own out.
    """
    return [float(is_think_answer(text_of(c), opens_thought(p))) for p, c in zip(prompts, completions)]


def logic_rl_format(prompts: list[Any], completions: list[Any], **columns: Any) -> list[float]:
    """1.0 where each of the four tags stands exactly once and in order, else -1.0; anything may stand around them.

    A `<think>` that the prompt has opened counts. Logic-RL (arXiv:2502.14768); `logic_rl` is this and the answer.
    """
    return [1.0 if in_order(whole(p, text_of(c))) else -1.0 for p, c in zip(prompts, completions)]


def soft_format(
    prompts: list[Any],
    completions: list[Any],
    *,
    think: str = "think",
    answer: str = "answer",
    **columns: Any,
) -> list[float]:
    """1.0 where somewhere a thought is closed and, behind it, an answer, both with something inside; else 0.0.

    Text around them and between them, and more blocks of both, do no harm. A thought that the prompt has opened counts.

    Args:
        think, answer: the names of the tags; `soft_format:think=reasoning` asks for `<reasoning>`.

    Raises:
        ValueError: a name is empty.
    """
    if not (think and answer):
        raise ValueError("a tag without a name; give both a name, such as think=reasoning")
    return [float(_is_soft(whole(p, text_of(c), think), think, answer)) for p, c in zip(prompts, completions)]


def _is_soft(text: str, think: str, answer: str) -> bool:
    """Whether the first thought that is closed has something inside, and so has an answer behind it."""
    _, opening, rest = text.partition(f"<{think}>")
    thought, closing, rest = rest.partition(f"</{think}>")
    block = last_block(rest, answer)
    return bool(opening and closing and says_something(thought) and block and says_something(block[1]))


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


def opens_thought(prompt: Any, tag: str = "think") -> bool:
    """Whether the prompt ends with an opened thought, so that the completion need not open one."""
    return prefill_of(prompt).rstrip().endswith(f"<{tag}>")


def whole(prompt: Any, text: str, tag: str = "think") -> str:
    """The completion with a thought's opening that the prompt ends with."""
    return f"<{tag}>{text}" if opens_thought(prompt, tag) else text


def in_order(text: str) -> bool:
    """Whether each of the four tags stands exactly once, and in order."""
    places = [text.find(tag) for tag in TAGS]
    return all(text.count(tag) == 1 for tag in TAGS) and places == sorted(places)


def is_think_answer(text: str, prefilled: bool = False) -> bool:
    """The rule of `think_answer_format` for one text. Counts and splits only, so linear in its length."""
    text = without_end_markers(text)
    if prefilled and not text.startswith("<think>"):
        text = "<think>" + text
    if any(text.count(tag) != 1 for tag in TAGS):
        return False
    before, _, rest = text.partition("<think>")
    thought, _, rest = rest.partition("</think>")
    between, _, rest = rest.partition("<answer>")
    answer, closing, after = rest.partition("</answer>")
    nothing = not (before + between + after).strip()
    return bool(closing and nothing and says_something(thought) and says_something(answer))


def without_end_markers(text: str) -> str:
    """The text without white space around it and end-of-text markers behind it."""
    text = text.strip()
    while marker := next((m for m in END_MARKERS if text.endswith(m)), None):
        text = text[: -len(marker)].rstrip()
    return text
