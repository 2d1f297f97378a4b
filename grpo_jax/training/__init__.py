"""The parts of the training loop, which itself is `grpo_jax/trainer.py`."""
