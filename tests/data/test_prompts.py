"""Prompt batches: their order is a function of the step, and no prompt is lost, repeated or cut."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grpo_jax.data.curriculum.epoch_order import epoch_order
from grpo_jax.data.curriculum.sampler import CurriculumSampler
from grpo_jax.data.prompts import PromptBatch, Prompts, bucket
from grpo_jax.errors import UserError


def make(tokenizer, n=7, **changes):
    rows = changes.pop("rows", None) or [{"prompt": "x" * (i % 5 + 1), "answer": i} for i in range(n)]
    return Prompts(rows, tokenizer, **({"max_prompt_length": 64, "pad_id": 0} | changes))


def draws(prompts, count, seed=1, shuffle=True):
    """The first indices of a plain curriculum."""
    curriculum = CurriculumSampler(prompts, seed=seed, shuffle=shuffle)
    return curriculum.draw(curriculum.begin(), count)[0]


@given(n=st.integers(1, 200), seed=st.integers(0, 2**63), epoch=st.integers(0, 2**40))
@settings(max_examples=50, deadline=None)
def test_an_epoch_never_loses_or_repeats_a_row(n, seed, epoch):
    assert sorted(epoch_order(seed, epoch, n)) == list(range(n))


@given(n=st.integers(1, 12), size=st.integers(1, 15), seed=st.integers(0, 9), shuffle=st.booleans())
@settings(max_examples=25, deadline=None)
def test_sample_indices_are_the_epochs_end_to_end(tokenizer, n, size, seed, shuffle):
    indices = draws(make(tokenizer, n), n * size, seed, shuffle)
    for epoch in range(size):
        assert sorted(indices[epoch * n : (epoch + 1) * n]) == list(range(epoch * n, (epoch + 1) * n))


def test_the_order_does_not_depend_on_numpys_global_state(tokenizer):
    np.random.seed(0)
    before = draws(make(tokenizer), 9)
    epoch_order.cache_clear()
    np.random.seed(1)
    assert before == draws(make(tokenizer), 9)


def test_the_order_stays_the_same_across_releases():
    assert epoch_order(42, 0, 10).tolist() == [7, 1, 6, 4, 3, 5, 9, 0, 2, 8]
    assert epoch_order(42, 1, 10).tolist() == [4, 9, 5, 3, 0, 2, 7, 1, 6, 8]


def test_every_seed_and_epoch_has_an_order_of_its_own():
    orders = [tuple(epoch_order(seed, epoch, 50)) for seed in (0, 1) for epoch in (0, 1)]
    assert len(set(orders)) == 4


def test_without_shuffle_rows_keep_their_order(tokenizer):
    assert draws(make(tokenizer), 12, shuffle=False) == list(range(12))


def test_a_batch_has_its_rows_in_the_order_asked_for(tokenizer):
    prompts = make(tokenizer, n=5)
    batch = prompts.at([11, 0, 7])
    assert batch.uids.tolist() == [11, 0, 7]
    assert batch.columns["answer"] == [1, 0, 2]
    assert prompts.at([2**32 + 3]).uids.tolist() == [3]


@pytest.mark.parametrize(
    ("n", "size", "epochs", "steps"),
    [
        (10, 5, 1, 2),
        (10, 4, 1.0, 3),
        (10, 4, 0.4, 1),
        (3, 8, 1, 1),
        (3, 8, 0.01, 1),
        (25, 1, 2.2, 55),
        (7, 3, 2.5, 6),
    ],
)
def test_epochs_become_steps_rounded_up_exactly(tokenizer, n, size, epochs, steps):
    """2.2 * 25 is 55.00000000000001 in floating point, and one step more when rounded up."""
    assert make(tokenizer, n).steps_for(epochs, size) == steps


def test_epochs_do_not_count_prompts_that_are_too_long(tokenizer):
    rows = [{"prompt": "x" * length} for length in (3, 30, 8, 9, 31)]
    assert make(tokenizer, rows=rows, max_prompt_length=9).steps_for(3, 1) == 6


def test_a_taken_or_joined_batch_equals_one_made_directly(tokenizer):
    rows = [{"prompt": "x" * length, "answer": length} for length in (1, 40, 20, 3)]
    prompts = make(tokenizer, rows=rows, max_prompt_length=50, pad_id=3)
    parts = [prompts.at([0]), prompts.at([1, 2]), prompts.at([3])]
    joined = PromptBatch.join(parts)
    assert_same(joined, prompts.at(range(4)))
    for which in ([0], [2, 0], [3, 1, 1], [0, 3]):
        assert_same(joined.take(np.array(which)), prompts.at(which))
    assert joined.take(np.array([], int)).tokens.shape == (0, 16)


def assert_same(one, other):
    for name in ("tokens", "lengths", "uids"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
        assert getattr(one, name).dtype == getattr(other, name).dtype
    for name in ("prompts", "texts", "columns", "lacks", "pad_id"):
        assert getattr(one, name) == getattr(other, name)


def test_uids_and_columns_belong_to_the_same_row(tokenizer):
    batch = make(tokenizer, n=7).at([15, 3, 9])
    assert batch.columns["answer"] == [int(uid) % 7 for uid in batch.uids]
    assert batch.uids.dtype == np.uint32


def test_the_tokens_of_a_batch_are_those_of_its_texts(tokenizer):
    batch = make(tokenizer).at([6, 0, 1])
    assert batch.tokens.dtype == batch.lengths.dtype == np.int32
    for tokens, length, text, prompt in zip(batch.tokens, batch.lengths, batch.texts, batch.prompts):
        assert tokens[:length].tolist() == tokenizer(text)["input_ids"]
        assert not tokens[length:].any()
        assert text == prompt


def test_long_prompts_are_dropped_never_cut(tokenizer):
    rows = [{"prompt": "x" * length} for length in (3, 30, 8, 9, 31)]
    prompts = make(tokenizer, rows=rows, max_prompt_length=9)
    assert (len(prompts), prompts.dropped) == (2, 3)  # <s> is a token too
    batch = prompts.at(draws(prompts, 3, shuffle=False))
    assert batch.prompts == ["xxx", "x" * 8, "xxx"]
    assert batch.uids.tolist() == [0, 2, 5]  # a row keeps its number when others are left out


def test_it_is_an_error_if_no_prompt_fits(tokenizer):
    with pytest.raises(
        UserError, match=r"max_prompt_length=4: all 2 prompts .* from 8 to 11 tokens; set it to 8"
    ):
        make(tokenizer, rows=[{"prompt": "x" * 7}, {"prompt": "x" * 10}], max_prompt_length=4)


def test_widths_are_powers_of_two_up_to_the_limit():
    assert [bucket(n, 512) for n in (1, 16, 17, 33, 512)] == [16, 16, 32, 64, 512]
    assert bucket(65, 100) == 100  # never wider than the cap
    assert bucket(3, 8) == 8


def test_the_width_fits_the_longest_prompt(tokenizer):
    prompts = make(tokenizer, rows=[{"prompt": "x"}, {"prompt": "x" * 20}])
    assert [prompts.at([0]).tokens.shape, prompts.at([1]).tokens.shape] == [(1, 16), (1, 32)]


def test_the_last_evaluation_batch_is_padded_to_the_same_shape(tokenizer):
    batches = list(make(tokenizer, n=7).batches_in_order(3))
    assert [len(batch.uids) for batch, _ in batches] == [3, 3, 3]
    assert [real for _, real in batches] == [3, 3, 1]
    rows = [uid for batch, real in batches for uid in batch.uids[:real].tolist()]
    assert rows == list(range(7))
    assert batches[-1][0].uids.tolist() == [6, 6, 6]


def test_a_column_that_a_row_lacks_is_none_there(tokenizer):
    rows = [{"prompt": "a", "hint": "h"}, {"prompt": "b", "answer": 1}]
    batch = make(tokenizer, rows=rows).at([0, 1])
    assert batch.columns == {"hint": ["h", None], "answer": [None, 1]}


def test_columns_named_like_reward_arguments_are_left_out(tokenizer):
    rows = [
        {"text": "a", "prompt": "old", "completions": "c", "log_extra": 0, "trainer_state": 0, "answer": 1}
    ]
    batch = make(tokenizer, rows=rows, prompt_column="text").at([0])
    assert batch.prompts == ["a"]
    assert batch.columns == {"answer": [1]}


def test_only_conversations_are_tokenised_with_the_chat_template(tokenizer):
    rows = [{"prompt": "hi"}, {"prompt": [{"role": "user", "content": "hi"}]}]
    batch = make(tokenizer, rows=rows).at([0, 1])
    assert batch.tokens[0, 0] == tokenizer.bos_token_id
    assert batch.tokens[1, 0] == tokenizer.convert_tokens_to_ids("<|im_start|>")
    assert tokenizer.decode(batch.tokens[1, : batch.lengths[1]]).replace(" ", "").startswith("<|im_start|>")


def test_chat_template_kwargs_reach_the_template(bare_tokenizer):
    bare_tokenizer.chat_template = "{{ messages[0].content }}{% if loud is defined %}{{ loud }}{% endif %}"
    rows = [{"prompt": [{"role": "user", "content": "hi"}]}]
    loud = make(bare_tokenizer, rows=rows, chat_template_kwargs={"loud": "!!"})
    assert loud.at([0]).texts == ["hi!!"]
    assert make(bare_tokenizer, rows=rows).at([0]).texts == ["hi"]


def test_a_bad_conversation_is_refused_with_its_row(tokenizer):
    rows = [{"prompt": "fine"}, {"prompt": [{"role": "system", "content": "no question"}]}]
    with pytest.raises(UserError, match=r"row 2: .*role 'system'"):
        make(tokenizer, rows=rows)


def test_a_prompt_without_tokens_is_refused(bare_tokenizer):
    from tokenizers import normalizers

    bare_tokenizer.backend_tokenizer.normalizer = normalizers.Replace("x", "")
    bare_tokenizer.backend_tokenizer.post_processor = None
    with pytest.raises(UserError, match=r"1 prompts have no tokens .* row 2"):
        make(bare_tokenizer, rows=[{"prompt": "ab"}, {"prompt": "x"}])
