"""Packing: every row once, no sequence too long, and an order that is a function of seed and epoch."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from grpo_jax.data.curriculum.epoch_order import epoch_order
from grpo_jax.data.sft.examples import Examples, PackedBatch
from grpo_jax.data.sft.packing import WINDOW, Packing, pack

EOS = 3
ROWS = [{"prompt": f"ask {i}", "completion": f"say {'a' * i}"} for i in range(1, 8)]


@given(st.lists(st.integers(1, 20), min_size=1, max_size=60), st.sampled_from(["ffd", "bfd"]))
def test_every_row_is_packed_once_and_no_sequence_overflows(lengths, strategy):
    packed = pack(lengths, 20, strategy)
    assert sorted(row for rows in packed for row in rows) == list(range(len(lengths)))
    filled = [sum(lengths[row] for row in rows) for rows in packed]
    assert max(filled) <= 20
    # A sequence is begun only by a row for which none before it has room.
    assert all(a + lengths[rows[0]] > 20 for i, a in enumerate(filled) for rows in packed[i + 1 :])


def test_both_strategies_pack_as_worked_out_by_hand():
    """20 and 20 go to 50, and 10 finds room beside 60 first, but leaves less beside the others."""
    lengths = [60, 50, 25, 20, 20, 10]
    assert pack(lengths, 100, "ffd") == [[0, 2, 5], [1, 3, 4]]
    assert pack(lengths, 100, "bfd") == [[0, 2], [1, 3, 4, 5]]


def test_an_epoch_has_every_row_once_and_depends_on_seed_and_epoch_alone():
    lengths = np.random.default_rng(0).integers(1, 30, 2 * WINDOW + 100)
    order = lambda epoch: epoch_order(0, epoch, len(lengths))
    make = lambda: Packing(lengths, 64, "ffd", order, lambda epoch, n: epoch_order(9, epoch, n))
    packing, later = make(), make()
    first, two = packing.count(Fraction(1)), packing.count(Fraction(2))
    epochs = [[packing[i] for i in range(*span)] for span in ((0, first), (first, two))]
    for sequences in epochs:
        assert sorted(row for rows in sequences for row in rows) == list(range(len(lengths)))
    assert epochs[0] != epochs[1]
    assert [later[i] for i in range(first, two)] == epochs[1], "a resumed run starts in the second epoch"
    assert packing.count(Fraction("1.5")) == first + -(-(two - first) // 2)
    fill = lengths.sum() / (first * 64)
    assert fill > 0.97, "the windows are wide enough to fill sequences"


@pytest.fixture
def packed(tokenizer):
    return lambda rows=ROWS, **changes: Examples(
        rows, tokenizer, **{"rows_per_step": 2, "max_length": 41, "eos_id": EOS, "packing": "ffd"} | changes
    )


def learned(batch, tokenizer):
    """(text that is read, text that is learned) of each row of a packed batch, by its segments."""
    text = lambda ids: "".join(tokenizer.convert_ids_to_tokens(list(map(int, ids))))
    found = []
    for b in range(len(batch.sequences)):
        real = batch.mask[b] > 0
        targets = batch.before[b][real] + 1
        for number in range(1, batch.segments[b].max() + 1):
            mine = batch.segments[b] == number
            own = [t for t in targets if mine[t]]
            assert (batch.completions[b][real] == batch.sequences[b][targets]).all()
            assert all(mine[t - 1] for t in own), "a token's predecessor is of its own row"
            found.append((text(batch.sequences[b][mine]), text(batch.sequences[b][own])))
    return found


def test_a_packed_row_is_read_and_learned_as_if_alone(packed, tokenizer):
    examples = packed(shuffle=False)
    wanted = {(f"<s>ask {i}say {'a' * i}<|im_end|>", f"say {'a' * i}<|im_end|>") for i in range(1, 8)}
    steps = examples.steps_for(1)
    assert steps == 2
    batches = [examples(step) for step in range(steps)]
    assert all(isinstance(batch, PackedBatch) for batch in batches)
    assert batches[0].sequences.shape == (2, 42), "an even width"
    assert {row for batch in batches for row in learned(batch, tokenizer)} == wanted
    assert sum(batch.rows for batch in batches) >= 7
    assert batches[0].fill_rate == batches[0].tokens / 84
    assert examples.fill_rate == sum(len("_ask 1say _") + i for i in range(1, 8)) / (3 * 41)


def test_long_rows_are_cut_and_counted_if_asked(packed, tokenizer):
    rows = [*ROWS, {"prompt": "a question too long to be answered in the room", "completion": "x"}]
    examples = packed(rows, max_length=16, long_rows="cut", shuffle=False)
    assert (len(examples), examples.dropped, examples.cut) == (7, 1, 2)
    cut = dict(pair for step in range(4) for pair in learned(examples(step), tokenizer))
    assert cut["<s>ask 7say aaaaaa"] == "say aaaaaa"
