"""The weight of each row in the loss."""

import jax.numpy as jnp
from jax import Array

KINDS = {  # the loss types by their normalisation
    "grpo": "row means",
    "sapo": "row means",
    "bnpo": "batch tokens",
    "dr_grpo": "constant",
    "dapo": "rollout tokens",
    "cispo": "rollout tokens",
    "vespo": "rollout tokens",
    "luspo": "row sums",
    "reinforce": "row sums",
}


def row_weights(mask: Array, loss_type: str, max_length: int, mean_tokens: Array | None = None) -> Array:
    """w [B] for a mini-batch of B rows with mask [B,Tc], so that sum_b w_b sum_t m_bt x_bt is

    - `grpo`, `sapo`: the mean over rows of each row's mean (DeepSeekMath, arXiv:2402.03300, equation 3);
    - `bnpo`: the mean over the mini-batch's tokens;
    - `dr_grpo`: the sum over B * max_length (Dr. GRPO, arXiv:2503.20783, section 3.2);
    - `dapo`, `cispo`, `vespo`: the sum over `mean_tokens`, the tokens of the whole rollout divided by its number of
      mini-batches (DAPO, arXiv:2503.14476, equation 8, as TRL spreads it over the updates of a rollout);
    - `luspo`, `reinforce`: the mean over rows of each row's sum (LUSPO, arXiv:2602.05261).
    """
    rows, tokens, kind = mask.shape[0], mask.sum(-1), KINDS[loss_type]
    if kind == "row means":
        return 1.0 / (rows * jnp.maximum(tokens, 1.0))
    if kind == "row sums":
        return jnp.full(rows, 1.0 / rows)
    if kind == "constant":
        return jnp.full(rows, 1.0 / (rows * max_length))
    total = tokens.sum() if kind == "batch tokens" or mean_tokens is None else mean_tokens
    return jnp.full(rows, 1.0) / jnp.where(
        total > 0, total, 1.0
    )  # the mean tokens per mini-batch may be below one
