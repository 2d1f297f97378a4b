"""Qwen2.5 in Flax, and reading and writing its Hugging Face format. Import as `grpo_jax.models`."""
