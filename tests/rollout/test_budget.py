"""The memory formula agrees with real arrays, and never allows more rows than fit."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest
from hypothesis import given, settings, strategies

from grpo_jax.models.cache import empty_cache
from grpo_jax.models.config import PUBLISHED
from grpo_jax.rollout.budget import Demand

CFG = PUBLISHED["1.5b"]


def demand_of(prompts, num_generations, max_completion_length, prompt_width, **changes):
    return Demand(
        **{"cfg": CFG, "dtype": "bfloat16"} | changes,
        prompts=prompts,
        num_generations=num_generations,
        max_completion_length=max_completion_length,
        prompt_width=prompt_width,
    )


@settings(max_examples=200, deadline=None)
@given(
    strategies.integers(1, 40),
    strategies.integers(1, 20),
    strategies.integers(1, 3000),
    strategies.integers(1, 2000),
    strategies.sampled_from([1, 2, 8]),
    strategies.floats(0.001, 40),
)
def test_the_most_rows_that_fit_are_chosen(prompts, samples, width, prompt_width, parts, gib):
    demand = demand_of(prompts, samples, width, prompt_width, shards=parts)
    memory = int(gib * 2**30)
    rows = demand.rows_within(memory)
    if rows is None:
        assert demand.peak_bytes(demand.size(1)) > memory
        return
    size = demand.size(rows)
    assert demand.peak_bytes(size) <= memory
    if rows:
        assert size.places * size.rows * parts == rows
        assert demand.peak_bytes(demand.size()) > memory
        one = demand.size(1)
        more = rows + one.places * one.rows * parts
        assert demand.size(more).places <= size.places or demand.peak_bytes(demand.size(more)) > memory


@pytest.mark.parametrize("form", ["auto", "int8"])
def test_the_cache_takes_the_bytes_that_the_formula_gives(form):
    cfg = dataclasses.replace(CFG, num_layers=2)
    demand = demand_of(6, 5, 33, 17, cfg=cfg, shards=2, cache_dtype=form)
    size = demand.size()
    shapes = jax.eval_shape(
        lambda: empty_cache(cfg, size.places, size.rows, 17, size.slots, jnp.dtype("bfloat16"), form)
    )
    arrays = jax.tree.leaves(shapes.layers)
    assert demand.cache_bytes(size) == sum(x.size * x.dtype.itemsize for x in arrays)


@pytest.mark.parametrize(("shared", "repeated"), [(0.9, 14)])
def test_a_prompts_cache_is_shared_by_its_completions(shared, repeated):
    """The figure of the design: 64 prompts of 512 tokens x 16 completions at 1.5B."""
    prompts = demand_of(64, 16, 1, 512)
    once = prompts.cache_bytes(dataclasses.replace(prompts.size(), slots=0)) / 2**30
    alone = demand_of(64 * 16, 1, 1, 512)
    each = alone.cache_bytes(dataclasses.replace(alone.size(), slots=0)) / 2**30
    assert once == pytest.approx(shared, abs=0.05)
    assert each == pytest.approx(repeated, abs=0.1)


@pytest.mark.parametrize(
    ("prompts", "width", "compiled_gib"),
    [(16, 512, 0.358), (64, 256, 0.690), (256, 256, 0.690), (1, 512, 0.022)],
)
def test_prefill_needs_no_more_memory_than_the_formula_gives(prompts, width, compiled_gib):
    """Temporary GiB of `prefill` as compiled for an H200, but for the last two: more prompts than one prefill takes,
    and one."""
    demand = demand_of(prompts, 1, 1, width)
    beside = demand.cache_bytes(demand.size()) + 12 * prompts * CFG.vocab_size
    assert (demand.peak_bytes(demand.size()) - beside) / 2**30 == pytest.approx(compiled_gib, rel=0.08)
    assert demand.peak_bytes(demand.size()) - beside >= compiled_gib * 2**30
