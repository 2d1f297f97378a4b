"""Loads and saves a policy's weights: the trained ones, the frozen base of adapters, the sampler's.

Each device reads its own part from the files, one leaf of the tree at a time; a leaf is quantised, if at all, before
the next is read.
"""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from grpo_jax.models import hf
from grpo_jax.models.load import leaf_at
from grpo_jax.models.lora import Adapted, Base, init_adapters, merge
from grpo_jax.models.peft import load_adapters, save_adapters, save_merged
from grpo_jax.models.quantized import axes_and_form, errors, quantize_leaf
from grpo_jax.models.transformer import Params, abstract_params
from grpo_jax.rollout.programs import decoding_program
from grpo_jax.runs.run import Run
from grpo_jax.runs.status import current, phase, size
from grpo_jax.setup.policy import Policy
from grpo_jax.sharding import hosts
from grpo_jax.sharding.rules import ROLLOUT_RULES, TRAIN_RULES, Rules, shardings

LeafPath = tuple[str, ...]
Finish = Callable[[LeafPath, Array], Any]


def load_trained(policy: Policy, seed: int) -> Params:
    """The trained parameters in float32: the model's weights; or adapters, from a folder or new ones from `seed`."""
    layout = policy.train_shardings()
    if policy.lora is None:
        return _load(policy, layout, "float32")
    if policy.adapter is not None:
        return load_adapters(policy.adapter, policy.cfg, policy.lora, layout)
    new = jax.jit(init_adapters, static_argnums=(0, 1), out_shardings=layout)
    return new(policy.cfg, policy.lora, jax.random.key(seed))


def load_base(policy: Policy) -> Base | None:
    """The frozen base of adapters in the form `base_weights`; None when all weights are trained. Prints the
    quantisation error."""
    if policy.lora is None:
        return None
    found: list[tuple[Array, Array]] = []

    def finish(path: LeafPath, x: Array) -> Any:
        if policy.base_weights == "auto":
            return x
        leaf = _quantized(path, x, policy.base_weights, policy.dtype, leaf_at(policy.base_shardings(), path))
        axes, _ = axes_and_form(path, policy.base_weights)
        found.append(jax.jit(errors, static_argnums=2)(x, leaf, axes))
        return leaf

    params = _load(policy, _plain(policy, TRAIN_RULES), policy.dtype, finish)
    if found:
        off, all_ = (sum(float(hosts.get(pair[i])) for pair in found) for i in (0, 1))
        _say_error(policy, math.sqrt(off / all_))
    return Base(params, policy.lora.scale)


def _say_error(policy: Policy, error: float) -> None:
    if hosts.is_writer():
        relative = f"{100 * error:.2g} % from those of {policy.folder} (norm of the difference over the norm)"
        print(f"base weights in {policy.base_weights}: {relative}")


def load_sampler(policy: Policy) -> Params:
    """The weights in the sampler's form and layout, with adapters merged; for commands that do not train."""
    layout = policy.rollout_shardings()
    adapters = _adapters(policy)

    def finish(path: LeafPath, x: Array) -> Any:
        beside = adapters.get("layers", {}).get(path[1]) if path[-1] == "kernel" else None
        if beside is not None:
            assert policy.lora is not None
            x = _merged(x, beside["kernel"], policy.lora.scale)
        if policy.rollout_weights == "auto":
            return x
        return _quantized(path, x, policy.rollout_weights, policy.dtype, leaf_at(layout, path))

    return decoding_program(policy.mesh)(_load(policy, _plain(policy, ROLLOUT_RULES), policy.dtype, finish))


def save_trained(out: Path, policy: Policy, params: Params) -> None:
    """Write the trained model, adapters merged, to the new folder `out` in Hugging Face format."""
    with phase("export"):
        if policy.lora is None:
            hf.save_model(out, policy.cfg, params, policy.folder, tokenizer=policy.tokenizer_source)
        else:
            save_merged(out, policy.cfg, params, policy.lora, policy.folder, policy.tokenizer_source)


def save_adapter(out: Path, policy: Policy, adapters: Params, base: str) -> None:
    """Write the adapters to the new folder `out` in PEFT's format; `base` is their model's name."""
    assert policy.lora is not None
    save_adapters(out, policy.cfg, adapters, policy.lora, base, policy.tokenizer_source)


def export_run(run: Run, policy: Policy, params: Params, base: str) -> None:
    """Export a run: the model to `hf`, and trained adapters to `adapter`."""
    run.export(lambda out: save_trained(out, policy, params))
    if policy.lora is not None:
        run.export(lambda out: save_adapter(out, policy, params, base), "adapter", "adapter_config.json")


def _plain(policy: Policy, rules: Rules) -> Params:
    """The shardings of the model's weights, without adapters."""
    return shardings(abstract_params(policy.cfg), rules, policy.mesh)


def _load(policy: Policy, layout: Params, dtype: str, finish: Finish = lambda path, x: x) -> Params:
    """The model's weights, each finished before the next is read."""
    total = jnp.dtype(dtype).itemsize * sum(x.size for x in jax.tree.leaves(abstract_params(policy.cfg)))
    read = 0

    def finish_and_count(path: LeafPath, x: Array) -> Any:
        nonlocal read
        read += x.nbytes
        finished = finish(path, x)
        current().report(f"{size(read)} of {size(total)}")
        return finished

    with phase("loading weights"):
        current().report(f"none of {size(total)} yet")
        return hf.load_params(policy.folder, policy.cfg, layout, dtype, finish_and_count)


def _quantized(path: LeafPath, x: Array, form: str, dtype: str, sharding: Any) -> Any:
    """A leaf in quantised form. Blocks, so that its wide values are freed before the next leaf is read."""
    program = jax.jit(quantize_leaf, static_argnums=(1, 2, 3), out_shardings=sharding)
    return jax.block_until_ready(program(x, *axes_and_form(path, form), dtype))


def _adapters(policy: Policy) -> Params:
    if policy.lora is None or policy.adapter is None:
        return {}
    layout = shardings(policy.abstract_trained(), ROLLOUT_RULES, policy.mesh)
    return load_adapters(policy.adapter, policy.cfg, policy.lora, layout)


def _merged(x: Array, adapter: Params, scale: float) -> Array:
    """A matrix of all layers with its adapter added, in its own sharding."""
    merge_layers = lambda w, a, b: jax.lax.map(merge, Adapted(w, a, b, scale))
    return jax.jit(merge_layers, out_shardings=x.sharding)(x, adapter["lora_a"], adapter["lora_b"])
