"""Sources: each kind is read, and a faulty one is refused with its place and the fix."""

import json
import os
import subprocess
import sys

import pytest

from grpo_jax.data.sources import load_rows
from grpo_jax.errors import UserError

ROWS = [{"prompt": "a\u2028b", "answer": "1"}, {"prompt": "c, \u00e9", "answer": "2"}]


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def jsonl(rows):
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def nested(depth):
    """A row with so many lists inside of one another."""
    return '{"a": ' + "[" * depth + "]" * depth + "}"


def parquet(path, rows):
    import pyarrow
    import pyarrow.parquet

    path.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    return path


def test_every_file_format_gives_the_same_rows(tmp_path):
    write(tmp_path / "a.jsonl", jsonl(ROWS) + "\n")
    write(tmp_path / "b.json", json.dumps(ROWS))
    write(tmp_path / "c.csv", '\ufeffprompt,answer\r\na\u2028b,1\r\n"c, \u00e9",2\r\n')
    parquet(tmp_path / "d.parquet", ROWS)
    for name in ("a.jsonl", "b.json", "c.csv", "d.parquet"):
        assert load_rows(str(tmp_path / name), "any split") == ROWS, name


def test_nested_parquet_rows_become_plain_python(tmp_path):
    rows = [{"prompt": [{"role": "user", "content": "hi"}], "numbers": [1, 2]}]
    assert load_rows(parquet(tmp_path / "x.parquet", rows)) == rows


def test_a_folder_gives_the_split_asked_for(tmp_path):
    write(tmp_path / "train.jsonl", jsonl(ROWS[:1]))
    parquet(tmp_path / "test.parquet", ROWS[1:])
    write(tmp_path / "dataset_infos.json", "{}")
    assert load_rows(tmp_path, "train") == ROWS[:1]
    assert load_rows(tmp_path, "test") == ROWS[1:]
    with pytest.raises(UserError, match=r"no split 'tran' \(did you mean 'train'\?\); it has test, train"):
        load_rows(tmp_path, "tran")


def test_shards_are_read_in_order(tmp_path):
    for i, row in enumerate(ROWS):
        parquet(tmp_path / f"train-{i:05d}-of-00002.parquet", [row])
    assert load_rows(tmp_path) == ROWS


def test_a_split_in_two_formats_is_refused(tmp_path):
    write(tmp_path / "train.jsonl", jsonl(ROWS))
    parquet(tmp_path / "train.parquet", ROWS)
    with pytest.raises(UserError, match=r"'train' is there as \.jsonl, \.parquet; name one file"):
        load_rows(tmp_path)


def test_a_folder_of_data_sets_is_refused_with_their_names(tmp_path):
    parquet(tmp_path / "easy" / "train.parquet", ROWS)
    parquet(tmp_path / "hard" / "train.parquet", ROWS)
    says = "several data sets are there, easy, hard; name one, such as .*/easy$"
    with pytest.raises(UserError, match=says):
        load_rows(tmp_path)
    write(tmp_path / "README.md", "---\nlicense: mit\n---\nTwo sets.\n")  # a clone of a hub repository
    with pytest.raises(UserError, match=says):
        load_rows(tmp_path)
    assert load_rows(tmp_path / "easy") == ROWS


def test_the_configs_that_a_clone_describes_are_named(hub):
    with pytest.raises(UserError, match=r"(?i)config name is missing.*'easy', 'hard'"):
        load_rows("./owner/sums")


def test_gsm8k_splits_have_their_published_sizes(shared_data):
    assert len(load_rows(shared_data / "gsm8k", "test")) == 1319


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("x.jsonl", '{"prompt": 1}\n\n{"prompt": \n', r"x\.jsonl:3: not valid JSON"),
        ("x.jsonl", '{"prompt": 1}\n[1, 2]\n', r"x\.jsonl:2: expected an object .* found list"),
        ("x.json", '{"prompt": 1}', r"x\.json: expected a list of objects"),
        ("x.json", '[{"prompt": 1}, 2]', r"x\.json, row 2: expected an object .* found int"),
        ("x.csv", "prompt,answer\na,1\nb\n", r"x\.csv:3: .* header's 2 columns"),
        ("x.csv", "prompt,answer\na,1,2\n", r"x\.csv:2: .* header's 2 columns"),
        ("x.parquet", "nonsense", r"x\.parquet: not a readable Parquet file"),
        ("x.txt", "hello", r"x\.txt': its name must end in one of \.jsonl"),
        ("x.jsonl", "\n", "has no rows"),
        ("x.jsonl", '{"a": 1}\n' + nested(200), r"x\.jsonl:2: lists or objects .* 100 deep"),
        ("x.jsonl", nested(100_000), r"x\.jsonl:1: lists or objects .* 100 deep"),
        ("x.json", f"[{nested(500)}]", r"x\.json, row 1: lists or objects .* 100 deep"),
        ("x.jsonl", '{"a": 1}\n{"a": ["so \\ud800"]}\n', r"x\.jsonl:2: holds \\ud800, half of a character"),
        ("x.json", '[{"a": 1}, {"\\uDC00": 2}]', r"x\.json, row 2: holds \\udc00, half of a character"),
    ],
)
def test_a_broken_row_is_refused_with_its_file_and_line(tmp_path, name, text, says):
    with pytest.raises(UserError, match=says):
        load_rows(write(tmp_path / name, text))


def test_a_name_given_twice_is_refused(tmp_path):
    header = write(tmp_path / "x.csv", "prompt,answer,prompt\na,1,b\n")
    with pytest.raises(UserError, match=r"x\.csv: the header has 'prompt' twice; rename one"):
        load_rows(header)
    row = write(tmp_path / "x.jsonl", '{"answer": 1}\n{"prompt": {"role": 1, "role": 2}}\n')
    with pytest.raises(UserError, match=r"x\.jsonl:2: .* one object has 'role' twice; keep one"):
        load_rows(row)


def test_surrogate_pairs_and_nested_lists_are_accepted(tmp_path):
    rows = [{"prompt": "\U0001f600 \\ud800", "x": [[[]]], "y": ["{" * 200]}]
    assert load_rows(write(tmp_path / "x.jsonl", json.dumps(rows[0]))) == rows


def test_a_parquet_file_with_a_broken_footer_is_a_user_error(tmp_path):
    whole = parquet(tmp_path / "x.parquet", ROWS).read_bytes()
    footer = int.from_bytes(whole[-8:-4], "little")
    (tmp_path / "x.parquet").write_bytes(whole[: -8 - footer] + b"\xff" * footer + whole[-8:])
    with pytest.raises(UserError, match=r"x\.parquet: not a readable Parquet file: .*thrift") as caught:
        load_rows(tmp_path / "x.parquet")
    assert "\n" not in str(caught.value)


def test_text_in_parquet_that_is_not_utf8_is_a_user_error(tmp_path):
    import pyarrow
    import pyarrow.parquet

    column = pyarrow.array([b"\xff"]).view(pyarrow.string())
    pyarrow.parquet.write_table(pyarrow.table({"prompt": column}), tmp_path / "x.parquet")
    with pytest.raises(UserError, match=r"x\.parquet: not a readable Parquet file: 'utf-8' codec"):
        load_rows(tmp_path / "x.parquet")


def test_a_line_that_is_not_utf8_is_refused_with_its_number(tmp_path):
    (tmp_path / "x.jsonl").write_bytes(b'{"prompt": "ok"}\n{"prompt": "\xff"}\n')
    with pytest.raises(UserError, match=r"x\.jsonl:2: "):
        load_rows(tmp_path / "x.jsonl")


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("{}/trian.jsonl", r"trian.jsonl': no such file or folder \(did you mean 'train.jsonl'\?\)"),
        ("{}/nowhere/train.jsonl", "no such file or folder$"),
        (
            "countdwn:size=3",
            r"neither a task \(arithmetic, countdown, .*, tiny_math\) .*\(did you mean 'countdown'\?\)",
        ),
        ("", "dataset '': neither"),
    ],
)
def test_a_misspelt_source_is_refused_with_the_nearest_name(tmp_path, spec, says):
    write(tmp_path / "train.jsonl", jsonl(ROWS))
    with pytest.raises(UserError, match=says):
        load_rows(spec.format(tmp_path))


def test_a_cloud_path_without_its_client_is_a_user_error(monkeypatch):
    from etils import epath

    def refuse(path):
        raise ImportError("Please install gcsfs")

    monkeypatch.setattr(type(epath.Path("gs://bucket/x.jsonl")), "exists", refuse)
    with pytest.raises(UserError, match=r"'gs://bucket/x\.jsonl': cannot be reached: Please install gcsfs"):
        load_rows("gs://bucket/x.jsonl")


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A hub repository with two configs, cloned to where its id resolves without a network."""
    import datasets

    configs = "".join(
        f"- config_name: {name}\n  data_files:\n  - split: train\n    path: {name}/train.parquet\n"
        for name in ("easy", "hard")
    )
    write(tmp_path / "owner" / "sums" / "README.md", f"---\nconfigs:\n{configs}---\n")
    parquet(tmp_path / "owner" / "sums" / "easy" / "train.parquet", ROWS[:1])
    parquet(tmp_path / "owner" / "sums" / "hard" / "train.parquet", ROWS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)


def test_a_hub_config_is_chosen_by_name(hub):
    assert load_rows("owner/sums:easy") == ROWS[:1]
    assert load_rows("owner/sums:hard") == ROWS


@pytest.mark.parametrize(
    ("spec", "split", "says"),
    [
        ("owner/sums", "train", "(?i)config name is missing.*|.*'easy', 'hard'"),
        ("owner/sums:esy", "train", "BuilderConfig 'esy' not found"),
        ("owner/sums:easy", "test", 'Unknown split "test".*train'),
        ("owner/nothing", "train", r"cannot be reached .*; give the path of a local copy"),
    ],
)
def test_a_hub_fault_is_a_user_error_in_one_line(hub, spec, split, says):
    with pytest.raises(UserError, match=says) as caught:
        load_rows(spec, split)
    assert "\n" not in str(caught.value)


TFDS = """
import sys
import numpy as np
import tensorflow_datasets as tfds

class TinySums(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        text = tfds.features.Text()
        columns = {"question": text, "answer": text, "n": np.int32, "parts": tfds.features.Sequence(text)}
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(columns))

    def _split_generators(self, manager):
        return {"train": self._generate_examples(3), "test": self._generate_examples(1)}

    def _generate_examples(self, count):
        for i in range(count):
            yield i, {"question": f"\\u00e9 {i}+{i}?", "answer": f"#### {2 * i}", "n": i, "parts": ["a", "b"]}

TinySums(data_dir=sys.argv[1], file_format="array_record").download_and_prepare()
"""


@pytest.fixture(scope="module")
def tfds_folder(tmp_path_factory):
    """A data set prepared by another process, as the user's own would be: nothing of it is imported here."""
    folder = tmp_path_factory.mktemp("tfds")
    script = write(folder / "script" / "tiny_sums.py", TFDS)
    subprocess.run([sys.executable, script, folder], check=True, capture_output=True)
    return folder


@pytest.fixture
def tfds_home(tfds_folder, monkeypatch):
    monkeypatch.setattr("tensorflow_datasets.core.constants.DATA_DIR", str(tfds_folder))


def test_tfds_rows_hold_text_and_need_no_tensorflow(tfds_folder):
    """In a process of its own, through TFDS_DATA_DIR, which is read when TFDS is imported."""
    code = (
        "import json, sys; from grpo_jax.data.sources import load_rows; rows = load_rows('tfds:tiny_sums');"
        "assert 'tensorflow' not in sys.modules; print(json.dumps(rows))"
    )
    env = {**os.environ, "TFDS_DATA_DIR": str(tfds_folder)}
    done = subprocess.run([sys.executable, "-c", code], env=env, check=True, capture_output=True, text=True)
    rows = sorted(json.loads(done.stdout), key=lambda row: row["n"])
    assert [row["question"] for row in rows] == ["\u00e9 0+0?", "\u00e9 1+1?", "\u00e9 2+2?"]
    assert rows[1] == {"question": "\u00e9 1+1?", "answer": "#### 2", "n": 1, "parts": ["a", "b"]}


def test_tfds_gives_the_split_asked_for(tfds_home):
    assert len(load_rows("tfds:tiny_sums", "test")) == 1
    assert len(load_rows("tfds:tiny_sums", "train[:2]")) == 2


@pytest.mark.parametrize(
    ("spec", "split", "says"),
    [
        ("tfds:tiny_sums", "dev", r"Unknown split 'dev'. Should be one of \['train', 'test'\]"),
        ("tfds:ag_news_subsets", "train", r"no 'ag_news_subsets' \(did you mean 'ag_news_subset'\?\)"),
        ("tfds:tiny_sums/hard", "train", "no 'tiny_sums/hard'"),
    ],
)
def test_a_tfds_fault_is_a_user_error_in_one_line(tfds_home, spec, split, says):
    with pytest.raises(UserError, match=says) as caught:
        load_rows(spec, split)
    assert "\n" not in str(caught.value)


def test_importing_data_imports_nothing_heavy():
    code = (
        "import sys; import grpo_jax.data.prompts, grpo_jax.data.sources;"
        "heavy = {'jax', 'transformers', 'datasets', 'tensorflow_datasets', 'pyarrow', 'torch', 'pandas'};"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "[]"
