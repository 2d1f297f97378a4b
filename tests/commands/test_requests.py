"""The prompts of `generate` in a file: a broken row is named, and a row's seed alone decides its text."""

import json
import re

import pytest

from grpo_jax.commands.generate_requests import requests_of
from grpo_jax.config import GenerateConfig
from grpo_jax.errors import UserError


@pytest.fixture
def asked(tmp_path):
    """`asked(rows, **settings)`: the requests of a file with these rows."""

    def make(rows, **settings):
        file = tmp_path / "ask.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return requests_of(GenerateConfig(model="m", prompts=str(file), **settings))

    return make


def test_a_row_with_a_seed_does_not_depend_on_its_place(asked):
    rows = [{"prompt": "a"}, {"prompt": "b", "seed": 7}, {"prompt": "c"}]
    found = [(request.seed, request.uid) for request in asked(rows, seed=3)]
    assert found == [(3, 0), (7, 0), (3, 2)]
    assert asked(rows[1:], seed=5)[0] == asked(rows, seed=3)[1]
    assert asked(rows)[1] == requests_of(GenerateConfig(model="m", prompt="b", seed=7))[0]


def test_a_rows_prefill_overrides_the_settings(asked):
    first, second = asked([{"prompt": "a", "prefill": "x"}, {"prompt": "a"}], prefill="y")
    assert first.prompt[-1] == {"role": "assistant", "content": "x"}
    assert second.prompt[-1] == {"role": "assistant", "content": "y"}


@pytest.mark.parametrize(
    ("row", "settings", "words"),
    [
        ({"text": "a"}, {}, "row 2: prompt = None: must be text"),
        ({"prompt": ""}, {}, "row 2: prompt = '': must be text"),
        ({"prompt": "a", "seed": -1}, {}, "row 2: seed = -1: must be a whole number"),
        ({"prompt": "a", "seed": 1.5}, {}, "row 2: seed = 1.5: must be"),
        ({"prompt": "a", "seed": True}, {}, "row 2: seed = True: must be"),
        ({"prompt": "a", "seed": 2**32}, {}, "below 4294967296"),
        ({"prompt": "a", "prefill": 3}, {}, "row 2: prefill = 3: must be text"),
        ({"prompt": "a", "prefill": "b"}, {"chat": False}, "row 2: prefill = 'b': without chat"),
    ],
)
def test_a_broken_row_is_refused_with_its_number(asked, row, settings, words):
    with pytest.raises(UserError, match=re.escape(words)):
        asked([{"prompt": "fine"}, row], **settings)


def test_a_file_without_prompts_is_a_user_error(asked, tmp_path):
    with pytest.raises(UserError, match="no rows"):
        asked([])
    with pytest.raises(UserError, match="no such file"):
        requests_of(GenerateConfig(model="m", prompts=str(tmp_path / "none.jsonl")))
