"""GRPO, top to bottom. Read `train_loop` first: it is the algorithm.

prompts -> rollout -> rewards -> advantages -> update -> (checkpoint, report, export)
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax

from grpo_jax.assembly import Rows, Stages, assemble, open_run
from grpo_jax.config import GRPOConfig
from grpo_jax.errors import UserError
from grpo_jax.evaluate import Evaluation
from grpo_jax.learner.advantages import group_advantages
from grpo_jax.learner.learner import trim
from grpo_jax.learner.optimizer import TrainState
from grpo_jax.models.hf import save_model
from grpo_jax.reporting import evaluation_metrics, save_completions, show, step_metrics, summarize
from grpo_jax.rewards import RewardPool
from grpo_jax.rollout.sampler import fetch
from grpo_jax.runs.run import Run, Stopwatch
from grpo_jax.sharding import hosts

RewardFunction = str | Callable[..., Any]


class GRPOTrainer:
    """Group-relative policy optimization of a Qwen2.5 model in Hugging Face format.

    Args:
        model: a local folder or a hub id.
        reward_funcs: one or several functions with TRL's signature, built-in names, or `file.py:function`.
        args: the settings.
        train_dataset, eval_dataset: rows (dicts with a `prompt`), instead of what the settings name. Without
            `eval_dataset`, rows given here are not evaluated on.
        processing_class: a tokenizer, instead of the model's own.

    The run's config.yaml names what is given here in place of what the settings say.
    Raises:
        UserError: anything wrong with what was given, before any weight is read.
    """

    def __init__(
        self,
        model: str | Path,
        reward_funcs: RewardFunction | Sequence[RewardFunction] | None = None,
        args: GRPOConfig | None = None,
        train_dataset: Rows | None = None,
        eval_dataset: Rows | None = None,
        processing_class: Any = None,
    ):
        train_rows, eval_rows = _rows(train_dataset), _rows(eval_dataset)
        self.args = _resolved(args or GRPOConfig(), model, train_rows, eval_rows)
        chosen = self.args.rewards if reward_funcs is None else reward_funcs
        functions = [chosen] if isinstance(chosen, str) or callable(chosen) else list(chosen)
        if self.args.reward_weights is not None and len(self.args.reward_weights) != len(functions):
            raise UserError(
                f"reward_weights = {self.args.reward_weights}: there are {len(functions)} reward functions; "
                "give one weight for each"
            )
        self.pool = RewardPool(
            functions,
            workers=self.args.reward_workers,
            timeout=self.args.reward_timeout,
            on_error=self.args.on_reward_error,
        )
        if reward_funcs is not None:
            self.args = self.args.replace(rewards=[f.spec or f.name for f in self.pool.functions])
        self.stages: Stages = assemble(self.args, model, self.pool, train_rows, eval_rows, processing_class)
        self.state: TrainState | None = None

    def train(self) -> dict[str, Any]:
        """Train to `max_steps`, from the newest checkpoint in `output_dir` if there is one.

        Returns the summary that is written to `summary.json`. After SIGTERM it saves and raises SystemExit(143).
        """
        policy = self.stages.policy
        with open_run(self.args, policy) as run, jax.set_mesh(policy.mesh), self.pool:
            return self._train(run)

    def save_model(self, out: str | Path) -> None:
        """Write the trained model to a new folder in Hugging Face format."""
        if self.state is None:
            raise UserError("save_model: nothing is trained yet; call train() first")
        save_model(Path(out), self.stages.policy.cfg, self.state.params, self.stages.policy.folder)

    def _train(self, run: Run) -> dict[str, Any]:
        first, state, notes = self._start(run)
        if "before" not in notes:
            notes["before"] = self._evaluate(state)
        state, notes = self.train_loop(run, first, state, notes)
        self.state = state
        if "after" not in notes:
            notes["after"] = self._evaluate(state)
        return self._finish(run, notes)

    def train_loop(
        self, run: Run, first: int, state: TrainState, notes: dict[str, Any]
    ) -> tuple[TrainState, dict[str, Any]]:
        """The algorithm, from step `first` on."""
        config, stages = self.args, self.stages
        for step in range(first, config.max_steps):
            clock = Stopwatch()
            batch = stages.prompts(step)  # tokens [P,Tp], lengths [P], columns
            with clock("rollout"):
                # The copy lives no longer than this call: the update needs its memory.
                drawn = stages.sampler(
                    stages.policy.rollout_copy(state.params), batch.tokens, batch.lengths, batch.uids, step
                )
                rollout = fetch(drawn)  # tokens and log-probs [P,G,Tc], lengths [P,G]
            with clock("reward"):
                scored = stages.scorer(batch, rollout)  # rewards [P,G], on the host
            with clock("update"):
                advantages = group_advantages(scored.rewards, config.scale_rewards)  # [P,G]
                part = trim(drawn.tokens, drawn.logprobs, drawn.lengths, int(rollout.lengths.max()))
                state, metrics = stages.learner(state, batch.tokens, batch.lengths, part, advantages)
            done = step + 1
            metrics |= step_metrics(stages, batch, rollout, scored, clock, notes, done)
            if config.eval_steps and done % config.eval_steps == 0 and done < config.max_steps:
                metrics |= evaluation_metrics(self._evaluate(state))
            run.log(done, metrics)
            if config.log_completions_steps and done % config.log_completions_steps == 0:
                save_completions(run.folder, done, batch, rollout, scored, advantages, self.pool.names)
            run.end_step(done, state, notes)
        return state, notes

    def _start(self, run: Run) -> tuple[int, TrainState, dict[str, Any]]:
        """(steps done, state, notes): of the newest checkpoint, or of the starting model."""
        policy, learner = self.stages.policy, self.stages.learner
        found = run.restore(learner.abstract_state)
        if found is None or self.args.beta > 0:
            weights = policy.load_weights()
            if self.args.beta > 0:
                learner.set_reference(weights)
        return found or (0, learner.init(weights), {"num_tokens": 0, "seconds": 0.0})

    def _evaluate(self, state: TrainState) -> dict[str, Any] | None:
        """The held-out summary with a few samples; None without held-out prompts."""
        if self.stages.evaluator is None:
            return None
        result: Evaluation = self.stages.evaluator(self.stages.policy.rollout_copy(state.params))
        return {"summary": result.summary(), "samples": result.samples}

    def _finish(self, run: Run, notes: dict[str, Any]) -> dict[str, Any]:
        """Export, summary, closing table."""
        run.export(self.save_model)
        summary = summarize(self.args.max_steps, notes, self.stages.prompts.dropped)
        run.folder.write_summary(summary)
        run.end_progress()
        if hosts.is_writer():
            show(summary, notes, run.folder)
        return summary


def _rows(dataset: Any) -> Rows | None:
    """A list of dicts from a list, a `datasets.Dataset` or any other sized iterable of rows."""
    return None if dataset is None else [dict(row) for row in dataset]


def _resolved(args: GRPOConfig, model: str | Path, rows: Rows | None, eval_rows: Rows | None) -> GRPOConfig:
    """The settings with the model and the rows that are really used: what resuming compares."""
    changes: dict[str, Any] = {"model": str(model)}
    if rows is not None:
        changes["dataset"] = _described(rows)
        if eval_rows is None and args.eval_dataset is None:
            changes |= {"eval_prompts": 0, "eval_steps": 0}  # nothing is held out
    if eval_rows is not None:
        changes["eval_dataset"] = _described(eval_rows)
    return args.replace(**changes)


def _described(rows: Rows) -> str:
    """What stands for rows given from Python in config.yaml: other rows have another name."""
    text = json.dumps(rows, sort_keys=True, default=lambda value: type(value).__name__)
    return f"{len(rows)} rows given from Python ({hashlib.sha256(text.encode()).hexdigest()[:12]})"


def train(config: GRPOConfig) -> int:
    """The verb `train`."""
    if config.model != "demo":
        GRPOTrainer(config.model, args=config).train()
        return 0
    from grpo_jax.demo import starting_model

    with starting_model(config) as folder:
        trainer = GRPOTrainer(folder, args=config)
        trainer.args = config  # the folder moves with the run; the name stays
        trainer.train()
    return 0
