r"""Open-R1's format rewards: the blocks, their tags, a program in the answer, reasoning steps.

Each has the option `faithful=true`, which scores exactly as the published regular expressions do.
"""

import re
from typing import Any

from grpo_jax.rewards.functions.code import fenced
from grpo_jax.rewards.functions.format import TAGS, is_think_answer, opens_thought, whole, without_end_markers
from grpo_jax.rewards.functions.text import text_of

_THOUGHT_THEN_ANSWER = "\n</think>\n<answer>\n"
_CLOSING = "\n</answer>"
_ENOUGH_STEPS = 3

_PUBLISHED_STEP = re.compile(r"Step \d+:|\A\d+\.|\n[-*]|(?:First|Second|Next|Finally),")
_STEP = re.compile(
    r"""^[ \t]{0,8}(?:\#{1,6}[ ])?(?:\*\*)?
        (?:Step[ ]\d{1,4}\b | \d{1,4}[.)](?!\d) | [-*•][ \t] | 第[\d一二三四五六七八九十]{1,4}步)
      | \b(?:First|Second|Third|Next|Then|Finally),
      | (?:首先|其次|再次|然后|接着|最后)""",
    re.MULTILINE | re.VERBOSE,
)


def open_r1_format(
    prompts: list[Any], completions: list[Any], *, faithful: bool = False, **columns: Any
) -> list[float]:
    r"""1.0 for one thought, then one answer, each tag on its own line, and nothing else; otherwise 0.0.

    Args:
        faithful: as published: the text must begin with `<think>\n` even if the prompt opens the thought; blocks may be
            empty; anything may follow the first `\n</answer>` that ends its line; a blank line between the blocks or
            an `<|im_end|>` on the last line is refused.
    """
    if faithful:
        return [float(_is_published(text_of(c))) for c in completions]
    texts = [(text_of(c), opens_thought(p)) for p, c in zip(prompts, completions)]
    return [float(is_think_answer(text, prefilled) and _on_lines(text)) for text, prefilled in texts]


def _is_published(text: str, inside: str = "") -> bool:
    r"""Whether `^<think>\n.*?\n</think>\n<answer>\n.*?` + `inside` + `\n</answer>$` matches, without backtracking."""
    middle = text.find(_THOUGHT_THEN_ANSWER, len("<think>\n")) if text.startswith("<think>\n") else -1
    if middle < 0:
        return False
    end = middle + len(_THOUGHT_THEN_ANSWER)
    end = _after_fence(text, end, inside) if inside else end
    at_the_end = text.endswith(_CLOSING) and len(text) - len(_CLOSING) >= end
    return end >= 0 and (at_the_end or text.find(_CLOSING + "\n", end) >= 0)


def _after_fence(text: str, start: int, opening: str) -> int:
    """The end of the first fence that `opening` begins at `start` or later; -1 without one."""
    begin = text.find(opening, start)
    end = text.find("```", begin + len(opening)) if begin >= 0 else -1
    return end + len("```") if end >= 0 else -1


def _on_lines(text: str) -> bool:
    """Whether every tag in the text is on its own line."""
    lines = [line.strip() for line in without_end_markers(text).splitlines()]
    return all(tag not in line or line == tag for line in lines for tag in TAGS)


def tag_count(
    prompts: list[Any], completions: list[Any], *, faithful: bool = False, **columns: Any
) -> list[float]:
    r"""0.25 for each of `<think>`, `</think>`, `<answer>`, `</answer>` that occurs exactly once.

    Args:
        faithful: as published: the tags need their line breaks `<think>\n`, `\n</think>\n`, `\n<answer>\n`,
            `\n</answer>`, and a `<think>` that the prompt opens does not count.
    """
    if faithful:
        tags = ("<think>\n", "\n</think>\n", "\n<answer>\n", "\n</answer>")
        return [0.25 * sum(text_of(c).count(tag) == 1 for tag in tags) for c in completions]
    texts = [whole(p, text_of(c)) for p, c in zip(prompts, completions)]
    return [0.25 * sum(text.count(tag) == 1 for tag in TAGS) for text in texts]


def code_format(
    completions: list[Any], *, language: str = "python", faithful: bool = False, **columns: Any
) -> list[float]:
    """1.0 if a closed fence in the language, not empty, follows the thought; otherwise 0.0.

    Args:
        language: the word after the opening fence, as "python" in "```python", in upper or lower case.
        faithful: as published: `open_r1_format:faithful=true` with such a fence, perhaps empty, in the answer.
    """
    texts = [text_of(c) for c in completions]
    if faithful:
        return [float(_is_published(text, f"```{language}")) for text in texts]
    return [float(_has_program(text, language)) for text in texts]


def _has_program(text: str, language: str) -> bool:
    """Whether the text after the thought has a fence in the language from which `code` would take a program."""
    blocks = fenced(text.rpartition("</think>")[2])
    return any(label == language.lower() and inside.strip() for label, inside in blocks)


def reasoning_steps(completions: list[Any], *, faithful: bool = False, **columns: Any) -> list[float]:
    """min(1, steps / 3): a step is a numbered or dotted line, "Step 1", or a word such as "First," or "首先".

    Args:
        faithful: as published: a number counts only at the beginning of the text, and Chinese words do not count.
    """
    pattern = _PUBLISHED_STEP if faithful else _STEP
    counts = [sum(1 for _ in pattern.finditer(text_of(c))) for c in completions]
    return [min(1.0, count / _ENOUGH_STEPS) for count in counts]
