"""A pipeline's file: its faults are reported before anything runs, in messages that name the step."""

import pytest
import yaml

from grpo_jax.cli import main
from grpo_jax.errors import UserError
from grpo_jax.pipelines.references import found, replaced
from grpo_jax.pipelines.steps import VERBS, load_pipeline


def step(name, verb, **settings):
    return {"name": name, "verb": verb, "settings": settings}


START = step("start", "sft", model="${inputs.base}", dataset="traces.jsonl", max_steps=3)
RL = step("rl", "train", model="${start.model}", dataset="d", rewards=["gsm8k"])
PICK = step("pick", "reject", model="${rl.model}", dataset="d", rewards=["gsm8k"])
AGAIN = step(
    "again",
    "sft",
    model="${inputs.base}",
    dataset="${pick.rows}",
    extra_datasets=[{"dataset": "${pick.rows}"}],
)
WHOLE = {"output_dir": "out", "inputs": {"base": "path/to/model"}, "stages": [START, RL, PICK, AGAIN]}


@pytest.fixture
def file(tmp_path):
    def write(content):
        path = tmp_path / "mine.yaml"
        path.write_text(content if isinstance(content, str) else yaml.safe_dump(content, sort_keys=False))
        return str(path)

    return write


def test_steps_read_what_earlier_ones_write(file):
    pipeline = load_pipeline(file(WHOLE))
    one, two, three, four = pipeline.steps
    assert (one.config.model, one.config.output_dir) == ("path/to/model", "out/01-start")
    assert (two.config.model, two.config.output_dir) == ("out/01-start/hf", "out/02-rl")
    assert three.config.model == "out/02-rl/hf"
    assert (four.config.model, four.config.dataset) == ("path/to/model", "out/03-pick/rows.jsonl")
    assert four.config.extra_datasets == [{"dataset": "out/03-pick/rows.jsonl"}]
    assert four.reads == ["inputs.base", "pick.rows"]
    assert two.record["model"] == "${start.model}", "a folder may be moved"
    assert "output_dir" not in two.record
    assert load_pipeline(file(WHOLE), output_dir="else").steps[1].config.model == "else/01-start/hf"


def test_settings_for_all_steps_and_tiny_settings_reach_the_steps(file):
    content = WHOLE | {
        "all": {"seed": 5, "temperature": 0.5},
        "tiny": {"inputs": {"base": "demo"}, "all": {"seed": 6}, "start": {"max_steps": 1}},
    }
    plain, tiny = (load_pipeline(file(content), tiny=tiny) for tiny in (False, True))
    assert [one.config.seed for one in plain.steps] == [5] * 4
    assert [plain.steps[i].config.temperature for i in (1, 2)] == [0.5, 0.5]
    assert [one.config.seed for one in tiny.steps] == [6] * 4
    assert (plain.steps[0].config.max_steps, tiny.steps[0].config.max_steps) == (3, 1)
    assert (plain.blank, tiny.blank) == (None, "out/start")
    assert tiny.steps[0].config.model == "out/start"


def changed(name, **settings):
    """The whole with other settings in one step."""
    steps = [
        one | {"settings": one["settings"] | settings} if one["name"] == name else one
        for one in WHOLE["stages"]
    ]
    return WHOLE | {"stages": steps}


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ({"output_dir": "x"}, "no stages; a pipeline needs a list of its steps there"),
        (WHOLE | {"stages": []}, "stages: must be a list"),
        (WHOLE | {"stages": ["sft"]}, "stages: step 1 is 'sft'; it must have a name, a verb and settings"),
        (WHOLE | {"stages": [{"verb": "sft"}]}, "stages: step 1 has the name None"),
        (WHOLE | {"stages": [START | {"name": "all"}]}, "stages: step 1 has the name 'all'"),
        (WHOLE | {"stages": [START, START]}, "step start: two steps have this name"),
        (WHOLE | {"stages": [START | {"verb": "trian"}]}, "verb = 'trian' (did you mean 'train'?)"),
        (
            WHOLE | {"stages": [START | {"verb": None}]},
            "step start: verb = None; verbs of a step are sft, train",
        ),
        (WHOLE | {"stages": [{"name": "a", "verb": "sft", "model": "m"}]}, "step a: no 'model' in a step"),
        (WHOLE | {"stage": []}, "stage: no part of a pipeline (did you mean 'stages'?)"),
        (WHOLE | {"inputs": "base"}, "inputs: must be lines of `name: value`"),
        (WHOLE | {"inputs": {"base": 3}}, "inputs: base = 3: must be text"),
        (
            WHOLE | {"inputs": {"base": "${inputs.x}"}},
            "inputs: base = '${inputs.x}': an input cannot contain a reference",
        ),
        (WHOLE | {"all": {"eval_dataset": "${inputs.bse}"}}, "no input 'bse' (did you mean 'base'?)"),
        (WHOLE | {"all": {"eval_dataset": "${rl.model}"}}, "step start: a circle"),
        (
            "stages:\n  - {name: a, verb: sft, settings: {seed: 1, seed: 2}}\n",
            "mine.yaml:2: seed is given twice",
        ),
        (WHOLE | {"inputs": {"bass": "m"}}, "no input 'base' (did you mean 'bass'?)"),
        (WHOLE | {"output_dir": "gs://bucket/x"}, "give a local or shared folder"),
        (WHOLE | {"all": {"sede": 1}}, "all: sede: no such setting (did you mean 'seed'?): no step has it"),
        (
            changed("rl", model="${strat.model}"),
            "step rl: ${strat.model}: no step 'strat' (did you mean 'start'?)",
        ),
        (
            changed("rl", model="${start.modell}"),
            "start (sft) has no output 'modell' (did you mean 'model'?)",
        ),
        (changed("rl", model="${start.rows}"), "step rl: ${start.rows}: start (sft) has no output 'rows'"),
        (changed("rl", model="${start}"), "step rl: '${start}': not a reference; write ${step.output}"),
        (changed("rl", model="${start.model"), "not a reference"),
        (
            changed("start", dataset="${rl.model}"),
            "step start: a circle: start reads rl reads start; break it",
        ),
        (changed("start", dataset="${start.model}"), "step start: a circle: start reads start"),
        (changed("rl", dataset="${again.model}"), "step rl: a circle: rl reads again reads pick reads rl"),
        (WHOLE | {"stages": [RL, START]}, "step rl: it reads start, which comes after it"),
        (
            changed("rl", lerning_rate=1),
            "step rl: lerning_rate: no such setting (did you mean 'learning_rate'?)",
        ),
        (changed("rl", learning_rate=-1), "step rl: learning_rate = -1: must be above 0"),
        (changed("rl", output_dir="x"), "step rl: output_dir: the pipeline says where a step writes"),
        ("stages:\n  - name: a\n   verb: sft\n", "mine.yaml:3: "),
        ("stages: [a\n", "fix the YAML there"),
        ("", "no stages"),
    ],
)
def test_an_invalid_file_is_refused_with_the_reason(file, content, why):
    with pytest.raises(UserError) as fault:
        load_pipeline(file(content))
    assert why in str(fault.value)


def test_tiny_settings_must_exist_and_name_a_step(file):
    with pytest.raises(UserError, match="says nothing of tiny settings"):
        load_pipeline(file(WHOLE), tiny=True)
    with pytest.raises(UserError, match=r"tiny: no step 'strat' \(did you mean 'start'\?\)"):
        load_pipeline(file(WHOLE | {"tiny": {"strat": {}}}), tiny=True)


def test_references_are_found_and_replaced_anywhere():
    value = {"a": ["x", "${one.rows}/y"], "b": {"c": "${two-b.model}"}, "d": 3}
    assert list(found(value)) == [("one", "rows"), ("two-b", "model")]
    assert replaced(value, lambda *names: "/".join(names)) == {
        "a": ["x", "one/rows/y"],
        "b": {"c": "two-b/model"},
        "d": 3,
    }


def test_a_dry_run_shows_the_steps_and_writes_nothing(file, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name in ("traces.jsonl", "d"):
        (tmp_path / name).write_text("")
    assert main(["pipeline", file(WHOLE), "--dry-run"]) == 0
    shown = capsys.readouterr().out
    for word in ("start", "rl", "pick", "again", "sft", "train", "reject", "3 steps", "to do"):
        assert word in shown
    assert not (tmp_path / "out").exists()
    assert main(["pipeline", "absent.yaml"]) == 2
    assert "absent.yaml: not found" in capsys.readouterr().err
    assert main(["pipeline", "demo"]) == 2
    assert "no part of a pipeline" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (WHOLE, "step start: dataset 'traces.jsonl': no such file or folder"),
        (changed("start", dataset="countdown:numbers=x"), "step start: countdown: numbers=x must lie in"),
        (
            changed("start", extra_datasets=[{"dataset": "absent.jsonl"}]),
            "step start: dataset 'absent.jsonl'",
        ),
        (changed("rl", rewards=["gsm8q"]), "step rl: rewards: nothing is called 'gsm8q'"),
        (
            changed("pick", thresholds={"gsm": 1}),
            "step pick: thresholds: gsm (did you mean 'gsm8k'?) is none",
        ),
        (
            WHOLE | {"stages": [START, step("end", "eval", model="m", task="gsm8")]},
            "step end: task = gsm8: no such",
        ),
    ],
)
def test_an_invalid_step_is_refused_before_any_step_runs(content, why, file, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name in ("traces.jsonl", "d") if content != WHOLE else ():
        (tmp_path / name).write_text("")
    for more in ([], ["--dry-run"]):
        assert main(["pipeline", file(content), *more]) == 2
        assert why in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_every_verb_of_a_step_is_a_verb_of_the_command_line():
    from grpo_jax.cli import VERBS as ALL

    assert VERBS.keys() <= ALL.keys()
    for verb in VERBS.values():
        assert verb.place[0] in verb.settings.model_fields
