"""Columns: layouts are recognised, and rows that fit none are refused with the reason."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from grpo_jax.data.layouts import arrange, gsm8k_answer, recognise
from grpo_jax.data.nested import field, has_field, nested_names, with_columns, with_field
from grpo_jax.data.questions import questions, with_questions
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


# ---- fields inside columns ----

VERL = {
    "data_source": "sums",
    "prompt": [{"role": "user", "content": "6 + 1?"}],
    "reward_model": {"style": "rule", "ground_truth": "7"},
    "extra_info": {"split": "train", "question": "six and one?", "deeper": {"answer": "seven"}},
}


def _verl(truth):
    return VERL | {"reward_model": {"style": "rule", "ground_truth": truth}}


def test_the_answer_of_verls_rows_is_their_ground_truth(tmp_path):
    """As Parquet holds them, too."""
    pandas = pytest.importorskip("pandas")
    pandas.DataFrame([VERL, _verl("8")]).to_parquet(tmp_path / "train.parquet")
    rows = arrange(load_rows(str(tmp_path)))
    assert [row["answer"] for row in rows] == ["7", "8"]
    assert rows[0]["prompt"] == VERL["prompt"]
    assert rows[0]["extra_info"]["deeper"] == {"answer": "seven"}


@pytest.mark.parametrize(
    ("truth", "columns"),
    [
        (["7"], {"answer": "7"}),
        (["7", "seven"], {"answer": ["7", "seven"]}),
        (7, {"answer": 7}),
        ({"target": 7, "numbers": [6, 1]}, {"target": 7, "numbers": [6, 1]}),
    ],
)
def test_a_ground_truth_may_be_a_list_or_an_object(truth, columns):
    (row,) = arrange([_verl(truth)])
    assert {name: row[name] for name in columns} == columns


@pytest.mark.parametrize("truth", [None, ""])
def test_a_row_of_verl_without_a_ground_truth_is_refused(truth):
    with pytest.raises(UserError, match=r"row 2: reward_model.ground_truth is empty"):
        arrange([VERL, _verl(truth)])


def test_a_prompt_may_be_a_field_of_a_column():
    (row,) = arrange([VERL], "extra_info.question")
    assert row["prompt"] == "six and one?"
    with pytest.raises(
        UserError, match=r"no column 'question'.*among .*extra_info.question.*set prompt_column"
    ):
        arrange([VERL], "question")


def test_a_column_may_be_taken_from_inside_another():
    (row,) = with_columns([VERL], {"answer": "extra_info.deeper.answer", "kind": "data_source"})
    assert (row["answer"], row["kind"]) == ("seven", "sums")
    assert row | VERL == row
    assert with_columns([VERL], None) == [VERL]
    with pytest.raises(
        UserError, match=r"columns: row 2 has no 'extra_info.anser'.*did you mean 'extra_info.answer'"
    ):
        with_columns(
            [{"extra_info": {"anser": 1}}, {"extra_info": {"answer": 1}}], {"answer": "extra_info.anser"}
        )


NAMES = st.text("ab.", min_size=1, max_size=4)
ROWS = st.recursive(st.integers(), lambda inner: st.dictionaries(NAMES, inner, max_size=3), max_leaves=8)


@given(st.dictionaries(NAMES, ROWS, min_size=1, max_size=3))
def test_every_name_that_is_listed_has_a_field_that_can_be_replaced(row):
    for name in nested_names(row):
        if has_field(row, name):  # a name with a dot of its own cannot be told apart
            assert field(with_field(row, name, "new"), name) == "new"
    assert all(has_field(row, name) for name in row)


def test_questions_inside_a_column_are_read_and_changed():
    layout = recognise(VERL, "extra_info.question")
    assert list(questions(VERL, layout)) == ["six and one?"]
    changed = with_questions(VERL, layout, str.upper)
    assert changed["extra_info"] == VERL["extra_info"] | {"question": "SIX AND ONE?"}
