"""The whole objective once more, in float64 NumPy and in plain loops over rows and tokens, from its formulas; and its
gradient by central differences. It shares no code with the product."""

import numpy as np

ROW_MEANS, ROW_SUMS = ("grpo", "sapo"), ("luspo", "reinforce")


def numpy_loss(o, case, x=None):
    """The loss of objective `o` (a GRPO, for its settings alone) at log-probs `x`, those of the case if None.

    What the objective does not differentiate through (stop-gradients) stays that of the case.
    """
    base = case.logprobs.astype(np.float64)
    x = base if x is None else x
    old, sampler = _arrays(case, base)
    weights = _row_weights(o, case)
    total = 0.0
    for b, length in enumerate(case.mask.sum(1).astype(int)):
        cut = lambda array, b=b, length=length: array[b, :length].astype(np.float64)
        lx, l0, lo, lf, ls = (cut(array) for array in (x, base, old, case.ref, sampler))
        A = cut(np.broadcast_to(case.advantages.reshape(len(base), -1), base.shape))
        r, r0, u = _ratio(o, lx - lo), _ratio(o, l0 - lo), _correction(o, lo - ls)
        for t in range(length):
            p = _policy_loss(o, A[t], r[t], r0[t], lx[t], l0 - lo, u)
            if o.off_policy_threshold is not None and A[t] < 0 and np.mean(ls - l0) > o.off_policy_threshold:
                p = 0.0
            if o.sampler_mode != "none" and o.loss_type != "vespo":
                p = p * u[t]
            if o.beta:
                p += (
                    o.beta
                    * _divergence(o.kl_estimator, lx[t], lf[t])
                    * (r[t] if o.use_bias_correction_kl else 1)
                )
            total += weights[b] * p
    return total


def difference_gradient(o, case, step=1e-6):
    """The gradient [B,Tc] of `numpy_loss` by central differences."""
    grads = np.zeros(case.logprobs.shape)
    for place in np.ndindex(grads.shape):
        if not case.mask[place]:
            continue
        ends = []
        for sign in (1, -1):
            x = case.logprobs.astype(np.float64)
            x[place] += sign * step
            ends.append(numpy_loss(o, case, x))
        grads[place] = (ends[0] - ends[1]) / (2 * step)
    return grads


def _arrays(case, base):
    old = base if case.old is None else case.old
    sampler = old if case.sampler is None else case.sampler
    return old if case.on_policy is None else np.where(case.on_policy[:, None], old, sampler), sampler


def _ratio(o, gap):
    if o.level == "token":
        return np.exp(gap)
    return np.full(len(gap), np.exp(gap.mean() if o.level == "sequence" else gap.sum())) if len(gap) else gap


def _policy_loss(o, A, r, r0, logprob, gap0, u):
    if o.loss_type == "reinforce":
        return -A * logprob
    if o.loss_type == "cispo":
        return -min(r0, o.epsilon_high) * A * logprob
    if o.loss_type == "sapo":
        tau = o.sapo_temperatures[0] if A > 0 else o.sapo_temperatures[1]
        return -A * 4 / tau / (1 + np.exp(-tau * (r - 1)))
    if o.loss_type == "vespo":
        k, lam = o.vespo_positive if A >= 0 else o.vespo_negative
        log_w = np.clip(gap0, -20, 20).sum()
        if o.sampler_mode != "none":
            once = u[:1] if o.sampler_mode.startswith("sequence") else u
            log_w += np.log(np.maximum(once, 1e-8)).sum()
        log_w = np.clip(log_w, np.log(1e-8), 20)
        return -np.exp(lam + k * log_w - lam * np.exp(log_w)) * A * logprob
    bounded = r if o.delta is None else min(r, o.delta)
    return -min(bounded * A, min(max(r, 1 - o.epsilon_low), 1 + o.epsilon_high) * A)


def _divergence(kind, logprob, ref):
    gap = ref - logprob
    return {"k1": -gap, "k2": gap**2 / 2, "k3": np.exp(gap) - gap - 1}[kind]


def _correction(o, gap):
    u = np.exp(gap.sum()) * np.ones(len(gap)) if o.sampler_mode.startswith("sequence") else np.exp(gap)
    low, high = (
        (-np.inf if o.sampler_bounds[0] is None else o.sampler_bounds[0]),
        o.sampler_bounds[1] or np.inf,
    )
    if o.sampler_mode.endswith("truncate"):
        return np.clip(u, low, high)
    return np.where((u < low) | (u > high), 0.0, u) if o.sampler_mode.endswith("mask") else u


def _row_weights(o, case):
    tokens = case.mask.sum(1).astype(np.float64)
    rows = len(tokens)
    if o.loss_type in ROW_MEANS:
        return 1 / (rows * np.maximum(tokens, 1))
    if o.loss_type in ROW_SUMS:
        return np.full(rows, 1 / rows)
    if o.loss_type == "dr_grpo":
        return np.full(rows, 1 / (rows * o.max_length))
    return np.full(rows, 1 / (tokens.sum() if o.loss_type == "bnpo" else case.rollout_tokens / case.updates))
