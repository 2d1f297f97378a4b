"""Converts rows of public data sets: to a prompt with its answer, and to a worked solution to learn from.

Each `ask_*` returns the columns to add or replace, each `trace_*` the completion. For a bad row they raise KeyError (a
missing column) or ValueError (what is wrong).
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from grpo_jax.data.tasks.countdown import ask
from grpo_jax.data.traces import asked, boxed_answer, normalised, said, traced, turns

Row = dict[str, Any]


def user(text: Any) -> list[dict[str, str]]:
    """A conversation that consists of one question."""
    if not isinstance(text, str) or not text.strip():
        raise ValueError("the question is empty")
    return [{"role": "user", "content": text}]


def filled(value: Any) -> str:
    """A value as stripped text; '' for None."""
    return "" if value is None else str(value).strip()


# ---- GSM8K ----


def gsm8k_answer(solution: str) -> str:
    """The number after the last `####`, without commas and spaces: '... #### 1,234' -> '1234'."""
    _, mark, answer = solution.rpartition("####")
    answer = "".join(answer.replace(",", "").split())
    if not mark or not answer:
        raise ValueError("'answer' has no number after '####'")
    return answer


def ask_gsm8k(row: Row) -> Row:
    answer = gsm8k_answer(str(row["answer"]))
    return {"prompt": user(row["question"]), "answer": answer, "solution": row["answer"]}


def trace_gsm8k(row: Row) -> str:
    """The worked solution without the calculator annotations `<<48/2=24>>`, followed by `#### 72`."""
    worked = re.sub(r"<<[^<>]*>>", "", str(row["answer"]).rpartition("####")[0])
    return traced(worked, f"#### {gsm8k_answer(str(row['answer']))}")


# ---- mathematics: problem, solution, answer ----


def ask_question(row: Row) -> Row:
    return {"prompt": user(row["question"])}


def ask_problem(row: Row) -> Row:
    return {"prompt": user(row["problem"])}


def gold(row: Row) -> str:
    """The row's answer, or the boxed answer in its solution if it has no other."""
    answer = filled(row.get("answer")) or boxed_answer(filled(row.get("solution")))
    if not answer:
        raise ValueError("it has no answer, and nothing in a box in its solution")
    return answer


def _asked_math(question: str, row: Row) -> Row:
    answer = gold(row)
    # TRL's accuracy_reward reads `solution`, and recognises an answer in a box.
    worked = filled(row.get("solution")) or f"\\boxed{{{answer}}}"
    return {"prompt": user(row[question]), "answer": answer, "solution": worked}


def ask_math(row: Row) -> Row:
    return _asked_math("problem", row)


def ask_limo(row: Row) -> Row:
    return _asked_math("question", row)


def trace_solution(row: Row) -> str:
    """The row's solution, followed by the answer in a box."""
    return traced(row.get("solution"), f"\\boxed{{{gold(row)}}}")


# ---- traces of a reasoning model ----


def trace_openr1(row: Row) -> str:
    """The first complete generation that math-verify has verified, or else an LLM judge."""
    generations: Sequence[str] = row["generations"]
    whole = row.get("is_reasoning_complete") or [True] * len(generations)
    for judge in ("correctness_math_verify", "correctness_llama"):
        for text, complete, right in zip(generations, whole, row.get(judge) or []):
            if complete and right:
                return normalised(text)
    raise ValueError("none of its generations is both whole and verified")


def ask_openthoughts(row: Row) -> Row:
    # The `system` column asks for marks that the completions no longer have.
    conversation = [turn for turn in turns(row["conversations"]) if turn["role"] != "system"]
    last = conversation[-1]
    reply = last["content"] if last["role"] == "assistant" else ""
    return {"prompt": asked(conversation), "answer": boxed_answer(reply)}


def trace_openthoughts(row: Row) -> str:
    return normalised(said(turns(row["conversations"])))


def ask_openthoughts_metadata(row: Row) -> Row:
    truth = filled(row["ground_truth_solution"])
    return {"prompt": user(row["problem"]), "answer": boxed_answer(truth) or truth or None}


def trace_openthoughts_metadata(row: Row) -> str:
    return traced(row["deepseek_reasoning"], row["deepseek_solution"])


def ask_messages(row: Row) -> Row:
    return {"prompt": asked(turns(row["messages"]))}


def trace_messages(row: Row) -> str:
    """The last answer, unchanged: not every chat contains reasoning."""
    return said(turns(row["messages"]))


def trace_dolphin(row: Row) -> str:
    return traced(row["reasoning"], row["answer"])


def ask_verl(row: Row) -> Row:
    """The answer is `reward_model.ground_truth`. An object there, as in Countdown, has the columns of its reward."""
    truth = row["reward_model"]["ground_truth"]
    if isinstance(truth, list) and len(truth) == 1:
        truth = truth[0]
    if truth is None or truth == "":
        raise ValueError("reward_model.ground_truth is empty")
    return {"prompt": row["prompt"], "answer": truth, **(truth if isinstance(truth, dict) else {})}


# ---- puzzles ----


def ask_countdown(row: Row) -> Row:
    return {"prompt": ask(row["nums"], row["target"]), "numbers": list(row["nums"])}


def ask_knights(row: Row) -> Row:
    return {"prompt": user(row["quiz"]), "answer": row["solution_text_format"]}


def trace_knights(row: Mapping[str, Any]) -> str:
    """The reasoning by cases, followed by everyone's kind in answer tags."""
    steps = [row["cot_head"], *row["cot_repeat_steps"], row["cot_foot"]]
    return traced("\n".join(steps), f"<answer>\n{row['solution_text_format']}\n</answer>")
