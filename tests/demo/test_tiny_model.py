"""Tiny models' tokenizers have every symbol of their tasks: an unknown one would be dropped silently."""

import pytest

from grpo_jax.demo.tiny_model import TASKS, shape_for, symbols_of, tokenizer_for
from grpo_jax.models.config import SHAPE

OPTIONS = {"tiny_countdown": "opened", "tiny_knights": "people=2-4", "tiny_math": "levels=1-6"}


@pytest.mark.parametrize("names", [[name] for name in TASKS] + [list(TASKS)], ids="+".join)
def test_every_text_of_the_tasks_survives_the_tokenizer(names):
    tokenizer = tokenizer_for(names)
    for name in names:
        for row in TASKS[name].worked_examples(OPTIONS[name], 0, 100, 0.5, 0.5):
            text = row["prompt"] + row["completion"]
            ids = tokenizer(text)["input_ids"]
            assert tokenizer.decode(ids) == text
            assert {tokenizer.decode([token]) for token in ids} <= set(symbols_of(names))
            assert max(ids) < shape_for(names).vocab_size


def test_the_demos_tokens_stay_the_same():
    """The bits of its starting model depend on them."""
    single = ["<pad>", *"0123456789+-=:", "Ċ", "Ġ"]
    words = ["<think>", "</think>", "<answer>", "</answer>", " vs ", " yes", " no"]
    tokens = [*single, *words, *map(str, range(10, 100)), "<|endoftext|>"]
    assert tokenizer_for(["tiny_countdown"]).get_vocab() == {token: i for i, token in enumerate(tokens)}
    assert shape_for(["tiny_countdown"]) == SHAPE


def test_a_puzzle_takes_a_token_for_each_symbol():
    row = TASKS["tiny_knights"].worked_examples("people=2", 0, 1)[0]
    prompt = "Who is who?\nAva says: Ben is a knave and Ava is a knight\nBen says: Ava is a knight\n<think>"
    ids = tokenizer_for(["tiny_knights"])(prompt)["input_ids"]
    assert len(ids) == 1 + 4 + 2 + 2
    assert row["prompt"].startswith("Who is who?\nAva says: ")


def test_the_order_of_a_mixture_does_not_change_its_symbols():
    assert symbols_of(["tiny_math", "tiny_knights"]) == symbols_of(["tiny_knights", "tiny_math"])
    assert len(tokenizer_for(list(TASKS))) <= shape_for(list(TASKS)).vocab_size == 192
