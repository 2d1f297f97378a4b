"""A loaded PyTorch model, or a PeftModel, is the starting model that it is."""

import pathlib

import jax
import numpy as np
import pytest

torch = pytest.importorskip("torch")
from transformers import AutoModelForCausalLM, AutoTokenizer  # noqa: E402

from grpo_jax import GRPOConfig, GRPOTrainer, UserError  # noqa: E402
from grpo_jax.models.safetensors_io import read_header  # noqa: E402
from grpo_jax.setup.weights import load_trained  # noqa: E402
from grpo_jax.training.torch_models import NAMELESS, is_torch_model, write_torch_model  # noqa: E402

ROWS = [{"prompt": f"{i}: say a"} for i in range(8)]


def lengths(completions, **columns):
    return [float(sum(map(str.islower, text))) for text in completions]


@pytest.fixture
def model(tiny_model):
    return AutoModelForCausalLM.from_pretrained(tiny_model)


def with_adapter(model, name="default"):
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=2, lora_alpha=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    return peft.get_peft_model(model, config, adapter_name=name)


def tensors(folder):
    from safetensors.numpy import load_file

    return load_file(folder / "model.safetensors")


def test_the_weights_are_those_of_the_object_not_of_the_place_it_came_from(model, tiny_model):
    with torch.no_grad():
        model.model.norm.weight += 1
    written = write_torch_model(model)
    changed, before = tensors(written.folder), tensors(tiny_model)
    assert changed.keys() == before.keys()
    different = [name for name in before if not np.array_equal(changed[name], before[name])]
    assert different == ["model.norm.weight"]
    assert written.name == str(tiny_model)
    assert (written.folder / "tokenizer.json").exists()


@pytest.mark.parametrize("name", ["default", "other"])
def test_a_peft_models_base_and_adapter_are_written_apart_and_the_object_stays(model, tiny_model, name):
    adapted = with_adapter(model, name)
    before = {key: value.clone() for key, value in adapted.state_dict().items()}
    written = write_torch_model(adapted)
    base, original = tensors(written.folder), tensors(tiny_model)
    assert base.keys() == original.keys()
    assert all(np.array_equal(base[key], original[key]) for key in base)
    assert (written.adapter / "adapter_config.json").exists()
    assert all(torch.equal(value, before[key]) for key, value in adapted.state_dict().items())


def test_the_folder_goes_with_the_object(model):
    written = write_torch_model(model)
    folder = pathlib.Path(written.home.name)
    assert folder.exists()
    del written
    assert not folder.exists()


def test_a_model_from_nowhere_needs_a_tokenizer(model, tiny_model):
    nowhere = type(model)(model.config.__class__(**{**model.config.to_dict(), "_name_or_path": ""}))
    with pytest.raises(
        UserError, match="processing_class: must be given, as the model was loaded from nowhere"
    ):
        write_torch_model(nowhere)
    written = write_torch_model(nowhere, AutoTokenizer.from_pretrained(tiny_model))
    assert written.name == NAMELESS


def test_names_and_plain_modules_are_no_models():
    assert not any(map(is_torch_model, ["a/name", torch.nn.Linear(2, 2), None]))


def test_a_quantised_model_is_refused(model):
    model.config.quantization_config = {"load_in_4bit": True}
    with pytest.raises(UserError, match="model: a quantised Qwen2ForCausalLM"):
        write_torch_model(model)


def trainer_of(model, **given):
    sizes = {"num_generations": 2, "max_completion_length": 8, "max_steps": 1, "mesh": "data=1"}
    args = GRPOConfig(output_dir=given.pop("output_dir", None), learning_rate=1e-2, **sizes)
    return GRPOTrainer(model, lengths, args, ROWS, **given)


def test_a_peft_model_trains_its_own_adapter(model, tmp_path):
    """The run's adapter starts from its values, has its rank, and is exported."""
    adapted = with_adapter(model)
    trainer = trainer_of(adapted, output_dir=str(tmp_path / "run"))
    started = load_trained(trainer.components.policy, seed=0)
    theirs = sum(float(value.abs().sum()) for name, value in adapted.named_parameters() if "lora_" in name)
    assert sum(float(abs(leaf).sum()) for leaf in jax.tree.leaves(started)) == pytest.approx(theirs)
    trainer.train()
    exported = read_header(tmp_path / "run" / "adapter" / "adapter_model.safetensors")
    assert any(
        name.endswith("q_proj.lora_A.weight") and stored.shape[0] == 2 for name, stored in exported.items()
    )
    assert trainer.args.adapter == "an adapter given from Python"
    again = trainer_of(adapted, output_dir=str(tmp_path / "run"))
    assert again.train().global_step == 1, "the same object resumes the same run"


def test_a_peft_model_beside_a_peft_config_is_refused(model):
    with pytest.raises(UserError, match="peft_config: the model has an adapter of its own"):
        trainer_of(with_adapter(model), peft_config={"r": 2})
