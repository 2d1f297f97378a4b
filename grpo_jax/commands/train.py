"""The verb `train`: GRPO."""

from grpo_jax.config import GRPOConfig
from grpo_jax.demo.cold_start import starting_model
from grpo_jax.setup.status import with_status
from grpo_jax.trainer import GRPOTrainer


@with_status
def train(config: GRPOConfig) -> int:
    """Train as the settings say."""
    if config.model == "demo":
        return train_demo(config)
    GRPOTrainer(config.model, args=config).train()
    return 0


def train_demo(config: GRPOConfig) -> int:
    """Train the demo's starting model, which is deleted after the run."""
    with starting_model(config) as folder:
        trainer = GRPOTrainer(folder, args=config)
        # The folder is temporary, so config.yaml keeps the model's name: the run can be repeated.
        trainer.args = trainer.args.replace(model=config.model)
        trainer.train()
    return 0
