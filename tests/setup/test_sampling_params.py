"""Settings -> sampling parameters and stop strings, in training as in the other verbs."""

import re
from types import SimpleNamespace

import pytest

from grpo_jax.cli import main
from grpo_jax.config import GenerateConfig
from grpo_jax.errors import UserError
from grpo_jax.rollout.state import Vocabulary
from grpo_jax.setup.sampling import sampling_params, stop_of


@pytest.fixture
def policy(tiny_model):
    from grpo_jax.models import hf

    tokenizer = hf.load_tokenizer(tiny_model)
    return SimpleNamespace(tokenizer=tokenizer, vocabulary=Vocabulary((2,), 0, len(tokenizer)))


def config(**settings):
    return GenerateConfig(model="m", prompt="x", **settings)


def test_texts_and_ids_ban_the_tokens_that_they_name(policy):
    ids = policy.tokenizer.convert_tokens_to_ids(["a", "5", "<|im_end|>"])
    sampling = sampling_params(config(banned_tokens='["<|im_end|>", "5", a, 5]'), policy)
    assert sampling.banned == tuple(sorted([*ids, 5]))
    assert sampling_params(config(banned_tokens="a"), policy).banned == (ids[0],)
    assert sampling_params(config(), policy).banned == ()


@pytest.mark.parametrize(
    ("banned", "words"),
    [
        (["ab"], "banned_tokens = 'ab': 2 tokens of this tokenizer"),
        (["é"], "banned_tokens = 'é': unknown to this tokenizer"),
        ([102], "banned_tokens = 102: no such id; the tokenizer has 0 to 101"),
        ([-1], "banned_tokens = -1: no such id"),
        (list(range(102)), "all 102 tokens are banned"),
    ],
)
def test_what_cannot_be_banned_is_refused(policy, banned, words):
    with pytest.raises(UserError, match=re.escape(words)):
        sampling_params(config(banned_tokens=banned), policy)


def test_a_stop_string_of_special_tokens_is_found(policy):
    stop = stop_of(config(stop_strings="<|im_start|>"), policy)
    assert stop.end([5, 1, 6], 0) == 2
    assert stop_of(config(), policy) is None


def test_training_and_its_evaluation_obey_stops_bans_and_min_tokens(tiny_settings, options, tmp_path):
    """A step's completions, and those of the evaluation before it, obey the settings."""
    import pyarrow.parquet as parquet

    run = tmp_path / "run"
    ours = {"stop_strings": '["o", "u"]', "banned_tokens": '["e", "<|im_end|>"]', "min_tokens": 3}
    small = {"output_dir": run, "max_steps": 1, "mesh": "data=1", "max_completion_length": 40}
    assert main(["train", *options(tiny_settings | small | ours)]) == 0
    (file,) = (run / "completions").iterdir()
    rows = parquet.read_table(file).to_pylist()
    texts = [row["completion"] for row in rows]
    texts = [text if isinstance(text, str) else text[-1]["content"] for text in texts]
    assert not any("e" in text for text in texts)
    assert any(text[-1] in "ou" for text in texts)
    assert not any(set(text[:-1]) & set("ou") for text in texts)
    assert all(row["truncated"] == (text[-1] not in "ou") for row, text in zip(rows, texts))
