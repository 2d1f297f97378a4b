"""Reflection: phrases are found where they are, shares and lengths are of the right responses, and a run logs them."""

import json
import re
import string

import numpy as np
import pyarrow.parquet
import pytest

from grpo_jax.cli import main
from grpo_jax.errors import UserError
from grpo_jax.training.reflection import load_reflection

pytestmark = pytest.mark.usefixtures("shared_programs")


@pytest.mark.parametrize(
    ("text", "categories"),
    [
        ("So it is 7.", []),
        ("Wait, let me\n check that.", ["recheck", "hesitation"]),
        ("ALTERNATIVELY we could", ["exploration"]),
        ("The waiter waits.", []),  # whole words
        ("等等,这不对。", ["hesitation"]),
        ("我们再检查,换个思路", ["recheck", "exploration"]),
        ("that's not right. What if x = 2?", ["hesitation", "exploration"]),
        ("", []),
        ("That\u2019s not right. Let\u2019s try", ["hesitation", "exploration"]),
    ],
)
def test_a_text_has_the_categories_of_its_phrases(text, categories):
    assert load_reflection("words").categories(text) == categories


def test_shares_and_lengths_are_those_of_the_matching_responses(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("doubt: [hm, maybe not]\njoy: [hooray]\n", encoding="utf-8")
    texts = ["hm", "maybe  not, hooray", "no", "Hm!"]
    found = load_reflection(str(file)).metrics(texts, np.array([10, 20, 30, 60]))
    assert found == {
        "reflection/doubt": 0.75,
        "reflection/joy": 0.25,
        "reflection/any": 0.75,
        "reflection/none": 0.25,
        "reflection/doubt/mean_length": 30.0,
        "reflection/joy/mean_length": 20.0,
        "reflection/any/mean_length": 30.0,
        "reflection/none/mean_length": 30.0,
    }
    assert "reflection/joy/mean_length" not in load_reflection(str(file)).metrics(["no"], np.array([3]))


def test_phrases_with_punctuation_are_found(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("doubt: ['wait,', hmm..., 'what if?']\nnay: [don\u2019t]\n", encoding="utf-8")
    found = load_reflection(str(file)).categories
    assert [found(text) for text in ("Wait, no", "hmm...so", "What  if?", "wait no", "await, so")] == [
        *(["doubt"], ["doubt"], ["doubt"], [], []),
    ]
    assert found("Don't") == found("I don\u2019t.") == ["nay"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "No such file"),
        ("- a\n- b\n", "must map each category to a list"),
        ("doubt: hm\n", "must map each category to a list"),
        ("doubt: ['']\n", "must map each category to a list"),
        ("doubt: [hm\n", "not YAML"),
        ("any: [hm]\n", "the category any is counted already"),
    ],
)
def test_a_malformed_phrase_list_is_refused(tmp_path, content, message):
    file = tmp_path / "mine.yaml"
    if content is not None:
        file.write_text(content, encoding="utf-8")
    with pytest.raises(UserError, match=message):
        load_reflection(str(file))


def test_a_run_logs_its_reflection_metrics(tiny_settings, options, tmp_path):
    """The tiny model says any characters: responses with a letter by itself are counted."""
    letters = string.ascii_lowercase
    (tmp_path / "mine.yaml").write_text(
        f"has: [{', '.join(map(repr, letters))}]\nlacks: [no such words]\n", encoding="utf-8"
    )
    settings = tiny_settings | {
        "max_steps": 1,
        "eval_prompts": 0,
        "output_dir": str(tmp_path / "run"),
        "log_completions_steps": 1,
        "reflection": str(tmp_path / "mine.yaml"),
    }
    assert main(["train", *options(settings)]) == 0
    logged = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[0])
    (file,) = (tmp_path / "run" / "completions").iterdir()
    rows = pyarrow.parquet.read_table(file).to_pylist()
    shown = ["has" in row["reflection"] for row in rows]
    assert logged["reflection/has"] == np.mean(shown)
    assert logged["reflection/lacks"] == 0
    alone = re.compile(r"(?<!\w)[a-z](?!\w)", re.IGNORECASE)
    assert shown == [bool(alone.search(row["completion"])) for row in rows]
    assert any(shown)
    assert not all(shown)
    assert main(["train", *options(settings | {"reflection": "nowhere.yaml"})]) == 2
