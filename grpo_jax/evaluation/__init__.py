"""Evaluation: how often a model succeeds on held-out prompts; the same numbers for any batch size or mesh.

    tasks (prompts and scoring) -> evaluator (sample and score) -> statistics (avg@N, pass@k, maj@N) -> report

`answers.py`, `answer_rewards.py`, `statistics.py` and `tasks.py` are host code and import no jax.
"""
