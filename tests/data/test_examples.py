"""Supervised rows: bad ones are refused, long ones counted, and the order is a function of seed and step."""

import numpy as np
import pytest

from grpo_jax.data.sft.examples import Examples
from grpo_jax.errors import UserError

EOS = 3
ROWS = [{"prompt": f"ask {i}", "completion": f"say {'a' * i}"} for i in range(1, 8)]


def make(rows, tokenizer, **changes):
    settings = {"rows_per_step": 3, "max_length": 64, "eos_id": EOS, "pad_id": 0} | changes
    return Examples(rows, tokenizer, **settings)


def texts(batch, tokenizer):
    """(prompt, completion) of each row, padding left out."""
    read = lambda row, n: "".join(tokenizer.convert_ids_to_tokens(row[:n].tolist()))
    prompts = map(read, batch.prompts, batch.prompt_lengths)
    return list(zip(prompts, map(read, batch.completions, batch.completion_lengths)))


def test_every_completion_ends_with_the_end_token(tokenizer):
    batch = make(ROWS, tokenizer, shuffle=False)(0)
    assert texts(batch, tokenizer) == [
        ("<s>ask 1", "say a<|im_end|>"),
        ("<s>ask 2", "say aa<|im_end|>"),
        ("<s>ask 3", "say aaa<|im_end|>"),
    ]
    assert batch.completions.dtype == batch.prompts.dtype == np.int32


@pytest.mark.parametrize("completion", ["four", [{"role": "assistant", "content": "four"}]])
def test_a_conversation_is_rendered_with_the_chat_template(tokenizer, completion):
    rows = [{"prompt": [{"role": "user", "content": "2+2?"}], "completion": completion}]
    pair = texts(make(rows, tokenizer, system_prompt="Be brief.")(0), tokenizer)[0]
    assert pair == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n2+2?<|im_end|>\n<|im_start|>assistant\n",
        "four<|im_end|>",
    )


def test_an_epoch_has_every_row_once_in_an_order_of_its_own(tokenizer):
    examples = make(ROWS, tokenizer, rows_per_step=7)
    for step in (0, 1):
        assert sorted(texts(examples(step), tokenizer)) == [
            (f"<s>ask {i}", f"say {'a' * i}<|im_end|>") for i in range(1, 8)
        ]
    assert texts(examples(0), tokenizer) != texts(examples(1), tokenizer)


def test_a_batch_does_not_depend_on_those_before_it(tokenizer):
    one, other = make(ROWS, tokenizer, seed=5), make(ROWS, tokenizer, seed=5)
    [one(step) for step in range(4)]
    assert texts(one(4), tokenizer) == texts(other(4), tokenizer)


def test_long_rows_are_dropped_and_counted_never_cut(tokenizer):
    examples = make(ROWS, tokenizer, max_length=16)  # <s>, "ask 1", "say aaaaa" and the end make 16
    assert (len(examples), examples.dropped) == (5, 2)
    with pytest.raises(UserError, match=r"max_length = 11: all 7 rows are longer, .* set it to 12 or more"):
        make(ROWS, tokenizer, max_length=11)


def test_a_row_whose_prompt_leaves_no_room_is_not_cut_to_an_empty_completion(tokenizer):
    with pytest.raises(UserError, match=r"max_length = 6: all 7 rows are longer"):
        make(ROWS, tokenizer, max_length=6, long_rows="cut")
    assert len(make(ROWS, tokenizer, max_length=7, long_rows="cut")) == 7


def test_missing_columns_are_refused(tokenizer):
    with pytest.raises(
        UserError, match=r"no column 'completions' \(did you mean 'completion'\?\) among prompt"
    ):
        make(ROWS, tokenizer, completion_column="completions")
    with pytest.raises(UserError, match="no column 'question'"):
        make(ROWS, tokenizer, prompt_column="question")


@pytest.mark.parametrize(
    ("completion", "why"),
    [
        ("  ", "is empty"),
        (None, "neither text nor one assistant message"),
        (7, "neither text nor one assistant message"),
        ([{"role": "user", "content": "x"}], "not the assistant's"),
        ([{"role": "assistant", "content": "x"}] * 2, "neither text nor one"),
    ],
)
def test_an_empty_or_unreadable_completion_is_refused_with_its_row(tokenizer, completion, why):
    rows = [*ROWS, {"prompt": "ask", "completion": completion}]
    with pytest.raises(UserError, match=rf"1 of 8 rows cannot be used; row 8: .*{why}"):
        make(rows, tokenizer)
