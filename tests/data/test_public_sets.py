"""The named public sets: what is asked, what counts as right, and what is learned from, on invented rows."""

import importlib.util
import pathlib
import types

import pytest

from grpo_jax.data.layouts import LAYOUTS, arrange, recognise
from grpo_jax.data.prompts import Prompts
from grpo_jax.data.sft.examples import Examples
from grpo_jax.data.sources import load_rows
from grpo_jax.data.traces import boxed_answer, normalised
from grpo_jax.errors import UserError
from grpo_jax.rewards.functions.gsm8k import gsm8k
from grpo_jax.rewards.functions.knights import knights_and_knaves

_spec = importlib.util.spec_from_file_location(
    "public_rows", pathlib.Path(__file__).parent / "public_rows.py"
)
public = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(public)
ROWS = public.ROWS


def traces(rows, layout=None):
    return [row["completion"] for row in arrange(rows, layout=layout, completion_column="completion")]


def test_every_layout_has_a_row_here():
    assert ROWS.keys() == {layout.name for layout in LAYOUTS}


@pytest.mark.parametrize("name", ROWS)
def test_a_layout_is_recognised_by_its_columns(name):
    same_columns = {"bespoke_stratos": "openthoughts"}
    assert recognise(ROWS[name]).name == same_columns.get(name, name)
    assert recognise(ROWS[name], name=name).name == name


@pytest.mark.parametrize("name", ROWS)
def test_every_column_is_kept(name):
    (row,) = arrange([ROWS[name]], layout=name)
    assert ROWS[name].keys() <= row.keys()


@pytest.mark.parametrize("name", [n for n in ROWS if n not in ("countdown_tasks", "question_answer")])
def test_the_answer_is_what_can_be_verified(name):
    (row,) = arrange([ROWS[name]], layout=name)
    expected = {"knights_and_knaves": public.SAID, "messages": None, "dolphin_r1": "It is $\\boxed{7}$."}
    assert row.get("answer") == expected.get(name, "7")


@pytest.mark.parametrize(
    "name", ["openr1_math", "openthoughts", "bespoke_stratos", "openthoughts_metadata", "dolphin_r1"]
)
def test_reasoning_marked_in_any_way_becomes_think_tags(name):
    assert traces([ROWS[name]], name) == [public.OURS]


@pytest.mark.parametrize(
    ("name", "completion"),
    [
        ("gsm8k", "<think>\nShe has 6+1=7 eggs.\n</think>\n\n#### 7"),
        ("math", "<think>\nSix and one are $\\boxed{7}$.\n</think>\n\n\\boxed{7}"),
        ("limo", "<think>\nSix and one.\n</think>\n\n\\boxed{7}"),
        ("messages", "Hello."),
        (
            "knights_and_knaves",
            f"<think>\nTry each.\nAnn tells the truth: fine.\nIt fits.\n</think>\n\n<answer>\n{public.SAID}\n</answer>",
        ),
    ],
)
def test_a_worked_solution_becomes_a_trace(name, completion):
    assert traces([ROWS[name]], name) == [completion]


def test_a_system_message_about_the_replaced_marks_is_dropped():
    conversation = [{"from": "system", "value": "Mark your thoughts."}, *public.CONVERSATION]
    (row,) = arrange([{**ROWS["openthoughts"], "conversations": conversation}])
    assert row["prompt"] == [{"role": "user", "content": "What is 6 + 1?"}]


def test_any_other_system_message_of_the_data_is_kept():
    (row,) = arrange([ROWS["dolphin_r1"]])
    assert [turn["role"] for turn in row["prompt"]] == ["system", "user"]


def test_only_a_verified_and_whole_generation_is_learned():
    row = ROWS["openr1_math"]
    assert traces([{**row, "correctness_math_verify": [True, True, False]}])[0].endswith("8")
    by_judge = {"correctness_math_verify": [False] * 3, "correctness_llama": [False, False, True]}
    assert traces([{**row, **by_judge}]) == [public.OURS]
    with pytest.raises(UserError, match="row 1: none of its generations is both whole and verified"):
        traces([{**row, "correctness_math_verify": [True, False, False]}])


def test_an_empty_solution_is_filled_with_the_boxed_answer():
    bare = {**ROWS["deepscaler"], "solution": ""}
    assert arrange([bare])[0]["solution"] == "\\boxed{7}"
    with pytest.raises(UserError, match="row 1: there is no reasoning"):
        traces([bare])
    (row,) = arrange([ROWS["math"]])
    assert row["solution"] == ROWS["math"]["solution"]


def test_a_math_row_without_any_answer_is_refused():
    with pytest.raises(UserError, match="row 2: it has no answer, and nothing in a box"):
        arrange([ROWS["math"], {**ROWS["math"], "solution": "Trivial."}])


@pytest.mark.parametrize(
    "name", [n for n in ROWS if n not in ("countdown_tasks", "question_answer", "problem_answer", "verl")]
)
def test_every_layout_with_completions_can_be_learned_from(name, tokenizer):
    examples = Examples([ROWS[name]], tokenizer, rows_per_step=1, max_length=2000, eos_id=3, layout=name)
    assert len(examples) == 1


def test_a_layout_without_completions_is_refused_for_learning(tokenizer):
    with pytest.raises(UserError, match="no column 'completion'"):
        Examples([ROWS["countdown_tasks"]], tokenizer, rows_per_step=1, max_length=2000, eos_id=3)


def test_a_completion_column_of_the_data_is_kept():
    (row,) = arrange([{**ROWS["gsm8k"], "completion": "mine"}], completion_column="completion")
    assert row["completion"] == "mine"
    assert arrange([ROWS["gsm8k"]], completion_column="answer")[0]["answer"] == "7"


def test_columns_for_curricula_are_kept_with_the_prompts(tokenizer):
    prompts = Prompts([{**ROWS["math"], "pass_rate": 0.5}], tokenizer, max_prompt_length=200, layout="math")
    assert {"level", "type", "pass_rate", "answer"} <= set(prompts.columns)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("<think>on and on", "never ends"),
        ("<|begin_of_thought|>on", "never ends"),
        ("no marks at all", "no reasoning is marked"),
        ("<think>a</think> \n", "no answer behind"),
        ("<think> </think>7", "no reasoning"),
        ("<|begin_of_thought|>a<|end_of_thought|><|begin_of_solution|>7", "solution never ends"),
        (None, "not text"),
    ],
)
def test_a_broken_trace_is_refused(text, says):
    with pytest.raises(ValueError, match=says):
        normalised(text)


def test_a_trace_that_the_prompt_opened_gets_its_opening_tag():
    assert normalised("Six and one.\n</think>\nIt is $\\boxed{7}$.") == public.OURS


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"a \boxed{1} and \boxed{\frac{1}{2}}.", r"\frac{1}{2}"),
        (r"\fbox{3}", "3"),
        (r"so $\boxed 5$", "5"),
        (r"\boxed{\text{a {b} c}}", r"\text{a {b} c}"),
        (r"\boxed{7", None),
        (r"\boxed{}", None),
        ("none", None),
    ],
)
def test_the_boxed_answer_is_the_content_of_the_last_box(text, answer):
    assert boxed_answer(text) == answer


# ---- by name ----


def test_a_named_layout_overrides_recognition():
    row = {"prompt": "mine", **ROWS["gsm8k"]}
    assert arrange([row])[0]["prompt"] == "mine"
    assert arrange([row], layout="gsm8k")[0]["prompt"][0]["content"] == row["question"]
    assert (
        arrange([ROWS["knights_and_knaves"]], layout="plain")[0]["prompt"]
        == ROWS["knights_and_knaves"]["prompt"]
    )


def test_a_layout_that_does_not_exist_or_fit_is_refused():
    with pytest.raises(
        UserError, match=r"no such layout \(did you mean 'gsm8k'\?\); layouts are plain, .*messages"
    ):
        arrange([ROWS["gsm8k"]], layout="gsm8")
    with pytest.raises(
        UserError, match=r"layout = 'limo': the data have no column 'solution' among question, answer"
    ):
        arrange([ROWS["gsm8k"]], layout="limo")


def test_train_and_sft_pass_the_layout_on(monkeypatch):
    from grpo_jax.commands import sft
    from grpo_jax.config import GRPOConfig, SFTConfig
    from grpo_jax.setup import prompts

    policy = types.SimpleNamespace(tokenizer=None, vocabulary=types.SimpleNamespace(pad_id=0))
    monkeypatch.setattr(prompts, "Prompts", lambda rows, tokenizer, **given: given["layout"])
    assert prompts.make_prompts(GRPOConfig(layout="math"), policy, []) == "math"
    row = lambda question: [{"question": question, "solution": "2", "answer": "2"}]
    rows = {"train": row("1+1?"), "test": row("0+2?")}
    monkeypatch.setattr(sft, "load_rows", lambda name, split, seed: rows[split])
    learned, held_out = sft._load(SFTConfig(model="m", dataset="d", eval_dataset="d", layout="limo"))
    assert [row["prompt"][0]["content"] for row in learned + held_out] == ["1+1?", "0+2?"]


# ---- real rows ----


def test_every_trace_of_gsm8k_scores_as_right(shared_data):
    rows = arrange(load_rows(shared_data / "gsm8k", "train"), completion_column="completion")
    completions = [row["completion"] for row in rows]
    assert gsm8k([], completions, [row["answer"] for row in rows]) == [1.0] * 7473
    assert not any("<<" in text for text in completions)


def test_every_trace_of_knights_and_knaves_scores_as_right(shared_data):
    rows = arrange(
        load_rows(shared_data / "knights_and_knaves" / "5ppl", "train"), completion_column="completion"
    )
    completions, answers = ([row[name] for row in rows] for name in ("completion", "answer"))
    assert set(knights_and_knaves(completions, answer=answers)) == {1.0}
