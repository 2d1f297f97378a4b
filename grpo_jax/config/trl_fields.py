"""How TRL's settings are translated: a table, applied by `config/trl_translation.py`.

Every field of `GRPOConfig` in TRL 1.16, those that it inherits from transformers' `TrainingArguments` included, is
a setting of ours with the same meaning, or is in `RULES`: accepted where its value is what grpo-jax does anyway,
accepted with a line on stderr where no result depends on it, and refused in all other cases, with what to write
instead.
"""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Rule:
    """What happens to a setting that only TRL has."""

    advice: str  # what to write instead, or why nothing is needed
    accepted: tuple[Any, ...] = ()  # values that change nothing; None is always one
    refused: bool = True  # other values; False: ignored with a line on stderr, as no result depends on them


def _refused(advice: str, **accepted: list[Any]) -> dict[str, Rule]:
    return {name: Rule(advice, tuple(values)) for name, values in accepted.items()}


def _ignored(advice: str, **accepted: list[Any]) -> dict[str, Rule]:
    return {name: Rule(advice, tuple(values), refused=False) for name, values in accepted.items()}


EITHER = [True, False]
MESH = "write mesh, e.g. fsdp=8 to shard over 8 devices"
NO_HUB = "grpo-jax does not upload; the trained model is in the run folder's hf/"
SAMPLED_HERE = "leave it out: completions are sampled in JAX, from the weights that are trained"
CORRECTION = "write sampler_correction: token_truncate, token_mask, sequence_truncate or sequence_mask"

RULES: dict[str, Rule] = {
    # ---- how much at a time ----
    **_refused(
        "write prompts_per_step and num_generations, over all devices (sft: rows_per_step)",
        per_device_train_batch_size=[],
        generation_batch_size=[],
    ),
    **_refused(
        "write micro_batch_size, the rows computed at a time over all devices, whatever the batch",
        gradient_accumulation_steps=[],
        auto_find_batch_size=[False],
    ),
    **_refused(
        "write num_minibatches, the number of optimizer steps in one pass over a rollout",
        steps_per_generation=[],
    ),
    **_ignored("the evaluation takes prompts_per_step prompts at a time", per_device_eval_batch_size=[8]),
    **_ignored("prompts are padded to powers of two", pad_to_multiple_of=["auto"]),
    # ---- model and machine ----
    **_refused("write dtype: bfloat16 or float32 (auto is bfloat16 on accelerators)", bf16=[]),
    **_refused(
        "float16 is not offered; write dtype: bfloat16 or float32", fp16=[False], fp16_full_eval=[False]
    ),
    **_ignored("the evaluation uses dtype, as the training does", bf16_full_eval=[False]),
    **_refused("write dtype: float32 to compute everything in it", cast_lm_head_to_fp32=[False]),
    **_refused(
        "set the environment variable JAX_DEFAULT_MATMUL_PRECISION (tensorfloat32 or float32)", tf32=[]
    ),
    **_refused("set the environment variable JAX_PLATFORMS=cpu", use_cpu=[False]),
    **_refused("write dtype and attention; the rest is chosen to fit the devices", model_init_kwargs=[{}]),
    **_ignored("code that comes with a checkpoint is never run", trust_remote_code=[False]),
    **_refused("leave it out: only adapters have dropout, as lora_dropout says", disable_dropout=[False]),
    **_refused("leave it out: there are no mixture-of-experts models here", router_aux_loss_coef=[0]),
    **_refused(
        MESH,
        fsdp=["", [], False],
        fsdp_config=[{}],
        deepspeed=[{}],
        parallelism_config=[],
    ),
    **_ignored(
        "one compiled program runs over all devices",
        accelerator_config=[{}],
        average_tokens_across_devices=EITHER,
        ddp_backend=[],
        ddp_broadcast_buffers=[],
        ddp_bucket_cap_mb=[],
        ddp_find_unused_parameters=[False],
        ddp_static_graph=[],
        ddp_timeout=[1800],
        ds3_gather_for_generation=EITHER,
        local_rank=[-1, 0],
    ),
    **_refused("write gradient_checkpointing", activation_checkpointing=[]),
    **_ignored(
        "the compiler decides how activations are recomputed",
        activation_checkpointing_kwargs=[{}],
        gradient_checkpointing_kwargs=[{}],
    ),
    **_ignored(
        "every step is compiled",
        torch_compile=EITHER,
        torch_compile_backend=[],
        torch_compile_mode=[],
        use_liger_kernel=[False],
        liger_kernel_config=[{}],
        torch_empty_cache_steps=[],
    ),
    **_refused("set the environment variable JAX_DEBUG_NANS=1", debug=["", []]),
    **_ignored("runs repeat bit by bit for a given seed", full_determinism=EITHER),
    **_refused("write seed: it is used for the data, too", data_seed=[]),
    # ---- data ----
    **_ignored(
        "rows are read before training, and the last batch of an epoch is filled from the next",
        dataloader_drop_last=EITHER,
        dataloader_in_order=EITHER,
        dataloader_multiprocessing_context=[],
        dataloader_num_workers=[0],
        dataloader_persistent_workers=[False],
        dataloader_pin_memory=EITHER,
        dataloader_prefetch_factor=[],
        label_names=[[]],
        length_column_name=["length"],
    ),
    **_refused("leave it out: reward functions receive all columns", remove_unused_columns=[False]),
    **_refused("write shuffle_dataset", train_sampling_strategy=["random"]),
    **_refused("leave it out: a resumed run continues with its next prompts", ignore_data_skip=[False]),
    # ---- sampling ----
    **_refused(SAMPLED_HERE, use_vllm=[False]),
    **_ignored(
        SAMPLED_HERE.removeprefix("leave it out: "),
        cache_implementation=[],
        use_cache=EITHER,
        use_transformers_continuous_batching=[False],
        use_transformers_paged=[False],
        transformers_continuous_batching_config=[{}],
        vllm_enable_sleep_mode=[False],
        vllm_gpu_memory_utilization=[0.3],
        vllm_group_port=[51216],
        vllm_max_model_length=[],
        vllm_mode=["colocate"],
        vllm_model_impl=["vllm"],
        vllm_server_base_url=[],
        vllm_server_host=["0.0.0.0"],
        vllm_server_port=[8000],
        vllm_server_timeout=[240.0],
        vllm_tensor_parallel_size=[1],
    ),
    **_refused(
        "write temperature, top_k, top_p, min_p, repetition_penalty, stop_strings, min_tokens or banned_tokens; "
        "there are no other sampling settings",
        generation_kwargs=[{}],
        vllm_structured_outputs_regex=[],
    ),
    **_refused("leave it out: tool calls are not supported", max_tool_calling_iterations=[0]),
    **_refused(CORRECTION, vllm_importance_sampling_correction=[False], vllm_importance_sampling_mode=[]),
    **_refused(
        "write sampler_correction_max (with a sampler_correction)",
        vllm_importance_sampling_clip_max=[3.0],
        vllm_importance_sampling_cap=[],
    ),
    **_refused(
        "write sampler_correction_min (with a sampler_correction)", vllm_importance_sampling_clip_min=[]
    ),
    # ---- objective and optimizer ----
    **_refused("leave it out: noise on embeddings is not supported", neftune_noise_alpha=[]),
    **_ignored("GRPO has no labels to smooth", label_smoothing_factor=[0.0]),
    **_refused(
        "write adam_beta1, adam_beta2, adam_epsilon or weight_decay, or pass an optax transformation as optimizers=",
        optim_args=["", {}],
        optim_target_modules=[[]],
    ),
    # ---- evaluation ----
    **_refused("write eval_samples, and an eval_temperature above 0", num_generations_eval=[]),
    **_refused("write eval_steps (0: before and after training only)", eval_strategy=[]),
    **_ignored(
        "the evaluation runs before and after training, and every eval_steps steps",
        do_eval=EITHER,
        do_predict=EITHER,
        do_train=EITHER,
        eval_delay=[0],
        eval_on_start=EITHER,
    ),
    **_ignored(
        "the evaluation samples completions and reports their rewards",
        batch_eval_metrics=[False],
        eval_accumulation_steps=[],
        eval_do_concat_batches=EITHER,
        eval_use_gather_object=[False],
        include_for_metrics=[[]],
        prediction_loss_only=[False],
    ),
    **_refused(
        "write save_total_limit: 0 to keep all checkpoints, and export the best one with grpo-jax export",
        load_best_model_at_end=[False],
    ),
    **_ignored(
        "pass callbacks=[EarlyStopping(metric=...)] to stop by a metric",
        greater_is_better=[],
        metric_for_best_model=[],
    ),
    # ---- logs ----
    **_ignored(
        "every step is written to metrics.jsonl",
        disable_tqdm=EITHER,
        include_num_input_tokens_seen=["no", False],
        log_level=["passive"],
        log_level_replica=["warning"],
        log_multimodal=EITHER,
        log_on_each_node=EITHER,
        log_unique_prompts=[False],
        logging_first_step=EITHER,
        logging_nan_inf_filter=EITHER,
        logging_steps=[1],
        logging_strategy=["steps"],
        num_completions_to_print=[],
        skip_memory_metrics=EITHER,
    ),
    **_ignored(
        "metrics go to metrics.jsonl and summary.json; pass a callback with on_log to send them elsewhere",
        project=["huggingface"],
        report_to=["none", [], ["none"], ""],
        run_name=[],
        trackio_bucket_id=[],
        trackio_space_id=[],
        trackio_static_space_id=[],
    ),
    **_ignored("write log_completions_steps: 0 to save no completions", log_completions=[True]),
    # ---- checkpoints ----
    **_refused("write save_steps (0: only after the last step)", save_strategy=["steps"]),
    **_refused(
        "leave it out: the same command on the same output_dir resumes", resume_from_checkpoint=[True]
    ),
    **_ignored(
        "checkpoints hold all that resuming needs, including callback states; SIGTERM saves one",
        enable_jit_checkpoint=EITHER,
        restore_callback_states_from_checkpoint=EITHER,
        save_on_each_node=[False],
        save_only_model=[False],
    ),
    **_refused(NO_HUB, push_to_hub=[False]),
    **_ignored(
        NO_HUB,
        hub_always_push=[False],
        hub_model_id=[],
        hub_private_repo=[],
        hub_revision=[],
        hub_strategy=["every_save"],
        hub_token=[],
        log_completions_hub_repo=[],
    ),
}
PREFIXES = {"vllm_": SAMPLED_HERE, "fsdp_": MESH}  # of other versions of TRL

OTHERS = {
    "bad_words_ids": "write banned_tokens",
    "batch_size": RULES["per_device_train_batch_size"].advice,
    "dataset_name": "write dataset: a path, a hub id or a task",
    "load_in_4bit": "write base_weights: nf4",
    "load_in_8bit": "write base_weights: int8",
    "modules_to_save": "embedding and head stay frozen beside adapters; leave it out, or leave out lora_r to train all",
    "lora_rank": "write lora_r",
    "lr": "write learning_rate",
    "max_new_tokens": "write max_completion_length",
    "max_seq_length": "write max_prompt_length and max_completion_length (sft: max_length)",
    "min_new_tokens": "write min_tokens",
    "model_name_or_path": "write model: a folder or a hub id",
    "num_train_epochs": "write max_steps: a step takes rows_per_step rows",
    "remat": "write gradient_checkpointing",
    "reward_funcs": "write rewards: names or file.py:function",
    "shuffle": "write shuffle_dataset",
    "stop": "write stop_strings",
    "suppress_tokens": "write banned_tokens",
    "use_peft": "write lora_r, the rank of the adapters",
    "torch_dtype": "write dtype: bfloat16 or float32",
    # Names of our own commands; looked up only if the command at hand does not have them.
    "dataset": "write task",
    "dataset_split": "write split",
    "eval_split": "write split",
    "max_length": "write max_prompt_length and max_completion_length",
    "max_prompt_length": "write max_length: prompt and completion together",
    "num_generations": "write samples",
    "num_samples": "write samples",
    "prompts_per_step": "write rows_per_step",
    "task": "write dataset",
}
"""Names that other libraries, and our other commands, use for our settings."""
