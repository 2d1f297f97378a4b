"""Qwen2.5 in Flax, and its Hugging Face format in and out. Import as `grpo_jax.models`."""
