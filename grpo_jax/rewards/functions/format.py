"""Format rewards: a thought, then an answer, in tags.

All rules count tags and split the text at them, so they take linear time on any text.
"""

from typing import Any

from grpo_jax.rewards.functions.text import last_block, prefill_of, says_something, text_of

TAGS = ("<think>", "</think>", "<answer>", "</answer>")
END_MARKERS = ("<|im_end|>", "<|endoftext|>", "<|eot_id|>", "<end_of_turn>", "</s>")


def think_answer_format(prompts: list[Any], completions: list[Any], **columns: Any) -> list[float]:
    """1.0 for one `<think>..</think>`, then one `<answer>..</answer>`, neither of them empty; otherwise 0.0.

    Only whitespace may surround and separate the blocks; an end-of-text marker may follow them. If the prompt ends with
    an open `<think>` (a prefill), the completion may omit it.
    """
    return [float(is_think_answer(text_of(c), opens_thought(p))) for p, c in zip(prompts, completions)]


def logic_rl_format(prompts: list[Any], completions: list[Any], **columns: Any) -> list[float]:
    """1.0 if each of the four tags occurs exactly once and in order, otherwise -1.0; any text may surround them.

    A `<think>` that the prompt opens counts. Logic-RL (arXiv:2502.14768); `logic_rl` also scores the answer.
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
    """1.0 if a closed thought is followed by a closed answer, neither of them empty; otherwise 0.0.

    Other text and further blocks are allowed. A thought that the prompt opens counts.

    Args:
        think, answer: the names of the tags; `soft_format:think=reasoning` expects `<reasoning>`.

    Raises:
        ValueError: a name is empty.
    """
    if not (think and answer):
        raise ValueError("a tag without a name; give both a name, such as think=reasoning")
    return [float(_is_soft(whole(p, text_of(c), think), think, answer)) for p, c in zip(prompts, completions)]


def _is_soft(text: str, think: str, answer: str) -> bool:
    """Whether the first thought is closed and not empty, and a closed answer that is not empty follows."""
    _, opening, rest = text.partition(f"<{think}>")
    thought, closing, rest = rest.partition(f"</{think}>")
    block = last_block(rest, answer)
    return bool(opening and closing and says_something(thought) and block and says_something(block[1]))


def think_format_reward(completions: list[Any], **columns: Any) -> list[float]:
    """1.0 for a text that begins with `<think>`, its only one, and closes it; otherwise 0.0.

    Gives the values of TRL 1.16's function of this name: the thought and what follows may be empty, and further
    `</think>` are allowed, but a space before `<think>` is not. `think_answer_format` is stricter.
    """
    return [float(is_think(text_of(c))) for c in completions]


def is_think(text: str) -> bool:
    """The rule of `think_format_reward` for one text."""
    return text.startswith("<think>") and text.count("<think>") == 1 and "</think>" in text


def opens_thought(prompt: Any, tag: str = "think") -> bool:
    """Whether the prompt ends with an open thought, so that the completion need not open one."""
    return prefill_of(prompt).rstrip().endswith(f"<{tag}>")


def whole(prompt: Any, text: str, tag: str = "think") -> str:
    """The completion, preceded by the opening tag of a thought if the prompt ends with it."""
    return f"<{tag}>{text}" if opens_thought(prompt, tag) else text


def in_order(text: str) -> bool:
    """Whether each of the four tags occurs exactly once, and in order."""
    places = [text.find(tag) for tag in TAGS]
    return all(text.count(tag) == 1 for tag in TAGS) and places == sorted(places)


def is_think_answer(text: str, prefilled: bool = False) -> bool:
    """The rule of `think_answer_format` for one text."""
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
    """The text without surrounding white space and trailing end-of-text markers."""
    text = text.strip()
    while marker := next((m for m in END_MARKERS if text.endswith(m)), None):
        text = text[: -len(marker)].rstrip()
    return text
