"""Columns: layouts are recognised, and rows that fit none are refused with the reason."""

import pytest

from grpo_jax.data.layouts import arrange, gsm8k_answer
from grpo_jax.data.sources import load_rows
from grpo_jax.errors import UserError

GSM8K = {"question": "How many?", "answer": "2 * 617 = 1234\n#### 1,234"}


def test_a_gsm8k_row_keeps_its_worked_solution():
    (row,) = arrange([GSM8K])
    assert row["prompt"] == [{"role": "user", "content": "How many?"}]
    assert row["answer"] == "1234"
    assert row["solution"] == GSM8K["answer"]


@pytest.mark.parametrize(
    ("text", "answer"), [("#### 7", "7"), ("a #### 1 #### -2 000", "-2000"), ("####\n3.5\n", "3.5")]
)
def test_the_answer_of_gsm8k_is_the_number_after_the_last_mark(text, answer):
    assert gsm8k_answer(text) == answer


def test_a_gsm8k_row_without_its_mark_is_refused():
    with pytest.raises(
        UserError, match=r"1 of 2 rows cannot be used; row 2: 'answer' has no number after '####'"
    ):
        arrange([GSM8K, {"question": "How many?", "answer": "twelve"}])


def test_every_gsm8k_row_has_an_integer_answer(shared_data):
    rows = arrange(load_rows(str(shared_data / "gsm8k"), "train"))
    assert len(rows) == 7473
    assert all(int(row["answer"]) is not None for row in rows)
    assert rows[0]["answer"] == "72"


def test_chat_markup_is_taken_off_the_prompts_of_knights_and_knaves(shared_data):
    rows = arrange(load_rows(str(shared_data / "knights_and_knaves" / "3ppl"), "test"))
    assert len(rows) == 100
    assert not any("<|im_start|>" in row["prompt"][0]["content"] for row in rows)
    assert rows[0]["prompt"][0]["content"] == rows[0]["quiz"]
    assert rows[0]["answer"].startswith("(1) ")


def test_a_question_without_the_mark_of_gsm8k_keeps_its_answer():
    (row,) = arrange([{"question": "Capital of Peru?", "answer": "Lima"}])
    assert (row["prompt"][0]["content"], row["answer"]) == ("Capital of Peru?", "Lima")


def test_downloaded_countdown_rows_get_a_prompt():
    (row,) = arrange([{"nums": [3, 4], "target": 12}])
    assert row["numbers"] == [3, 4]
    assert "3, 4" in row["prompt"][0]["content"]
    assert "12" in row["prompt"][0]["content"]


def test_a_prompt_column_is_taken_as_it_is():
    rows = [{"prompt": "as it is", "question": "no", "answer": "#### 1"}]
    assert arrange(rows) == rows
    assert arrange([GSM8K], "question") == [{**GSM8K, "prompt": "How many?"}]


def test_a_missing_column_is_a_user_error():
    with pytest.raises(
        UserError,
        match=r"no column 'prompt' \(did you mean 'prompts'\?\) among prompts, y; set prompt_column",
    ):
        arrange([{"prompts": "a", "y": 1}])
    with pytest.raises(UserError, match="row 2: there is no column 'prompt'"):
        arrange([{"prompt": "a"}, {"y": 1}])


@pytest.mark.parametrize(
    "bad", ["", " \n", None, 3, [], [{"role": "user"}], ["hi"], [{"role": "user", "content": ""}]]
)
def test_an_empty_or_malformed_prompt_is_refused(bad):
    with pytest.raises(UserError, match="2 of 3 rows cannot be used; row 2: the prompt is"):
        arrange([{"prompt": "fine"}, {"prompt": bad}, {"prompt": bad}])


def test_a_data_set_without_rows_is_refused():
    with pytest.raises(UserError, match="no rows"):
        arrange([])
