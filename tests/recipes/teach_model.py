"""Makes the model in taught_model/: `python tests/recipes/teach_model.py` replaces it.

The demo's model, taught all tiny tasks, but for fewer steps: some of its completions succeed and some fail, so that
groups have rewards that differ. Teaching it took a minute and a half, so the result is kept (in bfloat16).
"""

import pathlib
import shutil

from grpo_jax.config import GRPOConfig
from grpo_jax.demo import cold_start

FOLDER = pathlib.Path(__file__).parent / "taught_model"
TASKS = ("tiny_countdown", "tiny_countdown:opened", "tiny_knights", "tiny_math", "tiny_math:form=answer")


def main() -> None:
    """Teach a new model and keep it."""
    import jax.numpy as jnp
    from safetensors.flax import load_file, save_file

    cold_start.STEPS = dict.fromkeys(cold_start.STEPS, (90, 30))
    config = GRPOConfig(dataset={task: task for task in TASKS}, output_dir=None)
    with cold_start.starting_model(config) as made:
        shutil.rmtree(FOLDER, ignore_errors=True)
        shutil.copytree(made, FOLDER)
    weights = FOLDER / "model.safetensors"
    save_file({name: x.astype(jnp.bfloat16) for name, x in load_file(weights).items()}, weights)


if __name__ == "__main__":
    main()
