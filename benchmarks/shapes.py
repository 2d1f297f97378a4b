"""Shapes small enough for a processor, for programs that measure without a published model."""

from grpo_jax.models.config import ModelConfig

SMALL = {
    "10m": ModelConfig(8192, 256, 1024, 8, 8, 2, 32, 1e6, 1e-6, True, 4096),
    "60m": ModelConfig(16384, 512, 2048, 12, 8, 2, 64, 1e6, 1e-6, True, 4096),
}
