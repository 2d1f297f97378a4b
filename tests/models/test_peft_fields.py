"""Every field of PEFT's LoraConfig is taken with the function that PEFT gives it, or refused by name."""

import dataclasses
import json
import shutil
import warnings

import numpy as np
import pytest

from grpo_jax.errors import UserError
from grpo_jax.models import peft_fields
from grpo_jax.models.hf import load_config, load_params
from grpo_jax.models.lora import Base, joined, merged
from grpo_jax.models.peft import load_adapters, read_lora
from grpo_jax.training.adapter_arguments import adapters_of

peft, torch = pytest.importorskip("peft"), pytest.importorskip("torch")
FIELDS = {field.name: field for field in dataclasses.fields(peft.LoraConfig)}
SIZES = {"r": 2, "lora_alpha": 6, "target_modules": ["q_proj", "down_proj"]}
Q, DOWN = "model.layers.1.self_attn.q_proj.weight", "model.layers.0.mlp.down_proj.weight"

# For each field a value that is not its default. Taken: what PEFT computes with it is what we compute.
TAKEN = [
    *({"init_lora_weights": value} for value in (True, False, None, "gaussian", "orthogonal", "eva", "mica")),
    {"auto_mapping": {"base_model_class": "Qwen2ForCausalLM"}, "peft_version": "0.99", "revision": "main"},
    {"lora_dropout": 0.5, "inference_mode": False, "base_model_name_or_path": "somewhere"},
    {"use_rslora": True, "exclude_modules": ["gate_proj", "lm_head"], "task_type": "CAUSAL_LM"},
    {"qalora_group_size": 8, "megatron_core": "elsewhere", "ensure_weight_tying": True},
    {"loftq_config": {"loftq_bits": 4}, "layers_pattern": [], "peft_type": "LORA"},
    {"eva_config": {"rho": 3.0}},
    {"corda_config": {"corda_method": "kpm"}},
    {"lora_ga_config": {"direction": "ArB2r"}},
    {"runtime_config": {"ephemeral_gpu_offload": True}},
]
REFUSED = {
    "init_lora_weights": ["olora", "pissa", "pissa_niter_4", "corda", "loftq", "lora_ga", "OLoRA", "later"],
    "bias": ["all", "lora_only"],
    "peft_type": ["LOHA", "IA3"],
    "task_type": ["SEQ_CLS", "FEATURE_EXTRACTION"],
    "fan_in_fan_out": [True],
    "modules_to_save": [["lm_head"]],
    "layers_to_transform": [[0], 1],
    "rank_pattern": [{"q_proj": 8}],
    "alpha_pattern": [{"q_proj": 8}],
    "megatron_config": [{"tensor_model_parallel_size": 2}],
    "trainable_token_indices": [[0, 1], {"embed_tokens": [1]}],
    "use_dora": [True],
    "velora_config": [{"num_groups": 4}, {}],
    "alora_invocation_tokens": [[5, 6]],
    "use_qalora": [True],
    "monteclora_config": [{"num_samples": 2}, {}],
    "layer_replication": [[[0, 1], [0, 1]]],
    "lora_bias": [True],
    "target_parameters": [["mlp.experts"]],
    "use_bdlora": [{"nblocks": 2}, {}],
    "arrow_config": [{"top_k": 2}, {}],
    "kasa_config": [{"beta": 1.0}, {}],
    "a_later_field": [3, "x", True, [1]],
}
EMPTY = [
    {"modules_to_save": [], "layers_to_transform": [], "target_parameters": [], "layers_pattern": []},
    {"layer_replication": [], "exclude_modules": [], "loftq_config": {}, "auto_mapping": {}},
    {"alora_invocation_tokens": [], "trainable_token_indices": {}},
    {"rank_pattern": {}, "alpha_pattern": {}, "megatron_config": {}, "eva_config": None},
    {"exclude_modules": None, "layers_pattern": None, "alora_invocation_tokens": None, "use_bdlora": None},
    {"kasa_config": None, "velora_config": None, "monteclora_config": None, "arrow_config": None},
]
NOTHING = {name: nothing for changes in EMPTY for name, nothing in changes.items()}
NOTHING |= {
    "trainable_token_indices": [],
    "a_later_field": None,
    "one_more": [],
    "another": {},
    "last": False,
}


@pytest.fixture(scope="module")
def saved(tiny_model, tmp_path_factory):
    """The folder of an adapter that PEFT made, with random A and B."""
    torch.manual_seed(0)
    config = peft.LoraConfig(**SIZES, init_lora_weights=False)
    folder = tmp_path_factory.mktemp("peft") / "adapter"
    peft.get_peft_model(_model(tiny_model), config).save_pretrained(folder)
    return folder


@pytest.fixture
def changed(saved, tmp_path):
    """`changed({field: value})`: the folder with other values in its configuration."""

    def change(changes):
        folder = shutil.copytree(saved, tmp_path / "changed")
        file = folder / "adapter_config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | changes))
        return folder

    return change


@pytest.mark.parametrize("changes", [*TAKEN, *EMPTY], ids=lambda c: ",".join(map(str, c.items()))[:50])
def test_an_adapter_that_is_taken_computes_what_it_computes_in_peft(changes, changed, tiny_model):
    folder, cfg = changed(changes), load_config(tiny_model)
    lora = read_lora(folder)
    base = Base(load_params(tiny_model, cfg), lora.scale)
    ours = merged(joined(load_adapters(folder, cfg, lora), base))["layers"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT's, of settings that it ignores too
        whole = peft.PeftModel.from_pretrained(_model(tiny_model), folder).merge_and_unload().state_dict()
    q = np.asarray(ours["q"]["kernel"][1]).reshape(cfg.hidden_size, -1).T
    np.testing.assert_allclose(q, whole[Q], atol=1e-6)
    np.testing.assert_allclose(np.asarray(ours["down"]["kernel"][0]).T, whole[DOWN], atol=1e-6)


@pytest.mark.parametrize(("name", "value"), [(n, v) for n, values in REFUSED.items() for v in values])
def test_an_adapter_with_a_setting_of_another_function_is_refused_by_its_name(name, value, changed):
    with pytest.raises(UserError, match=rf"adapter_config.json: {name} = "):
        read_lora(changed({name: value}))
    with pytest.raises(UserError, match=rf"^peft_config: {name} = "):
        adapters_of(SIZES | {name: value})


def test_fields_that_are_null_or_empty_ask_for_nothing(changed):
    assert read_lora(changed(NOTHING)).targets == ("q", "down")
    assert adapters_of(SIZES | NOTHING) == adapters_of(SIZES)
    every = dict.fromkeys(FIELDS.keys() - SIZES.keys())
    assert adapters_of(SIZES | every) == adapters_of(SIZES)


def test_each_field_of_the_installed_peft_is_tried_above():
    """A later PEFT has more fields: whether they change what an adapter computes has to be looked up then."""
    tried = {name for changes in TAKEN for name in changes} | REFUSED.keys() | SIZES.keys()
    assert tried - {"a_later_field"} == set(FIELDS)
    listed = peft_fields.READ | peft_fields.NEUTRAL_FOR_READING | peft_fields.FOR_READING.keys()
    assert listed | peft_fields.UNSET | peft_fields.NULL == set(FIELDS)


# ---- peft_config ----


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("init_lora_weights", value) for value in (False, "gaussian", "orthogonal", "eva", "mica")),
        ("inference_mode", True),
        ("target_modules", []),
        ("target_modules", r".*q_proj"),
        ("exclude_modules", "q_proj"),
    ],
)
def test_a_setting_of_another_training_is_refused_by_its_name(name, value):
    with pytest.raises(UserError, match=rf"^peft_config: {name} = "):
        adapters_of(SIZES | {name: value})


def test_excluded_layers_get_no_adapter():
    settings = lambda **changes: adapters_of(peft.LoraConfig(r=2, **changes))["lora_target_modules"]
    assert settings(target_modules=["q_proj", "up_proj"], exclude_modules=["q_proj", "lm_head"]) == [
        "up_proj"
    ]
    assert settings(target_modules="all-linear", exclude_modules=["lm_head"]) == ["all-linear"]
    assert len(settings(target_modules="all-linear", exclude_modules=["k_proj"])) == 6
    with pytest.raises(UserError, match=r"exclude_modules names 'layers.0.self_attn.q_proj', which"):
        settings(target_modules="all-linear", exclude_modules=["layers.0.self_attn.q_proj"])
    with pytest.raises(UserError, match="leaves no layer"):
        settings(target_modules=["q_proj"], exclude_modules=["q_proj"])


def test_a_field_of_a_later_peft_matters_only_where_it_differs_from_its_default():
    later = dataclasses.make_dataclass(
        "Later", [("size", int, 16)], bases=(peft.LoraConfig,), namespace={"__module__": "peft"}
    )
    assert adapters_of(later(**SIZES)) == adapters_of(peft.LoraConfig(**SIZES))
    with pytest.raises(UserError, match=r"^peft_config: size = 8 is no setting that this version knows"):
        adapters_of(later(**SIZES, size=8))


def _model(folder):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
