"""GRPO, top to bottom. Read `train_loop` first: it is the algorithm.

prompts -> rollout -> rewards -> advantages -> update -> (checkpoint, report, export)
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import optax

from grpo_jax.config import GRPOConfig, ScriptConfig
from grpo_jax.errors import UserError
from grpo_jax.evaluation.evaluator import Evaluation, Evaluator
from grpo_jax.evaluation.results import keep_step
from grpo_jax.learner.optimizer import TrainState
from grpo_jax.models.transformer import Params
from grpo_jax.rewards import RewardPool
from grpo_jax.runs.run import Run, Stopwatch
from grpo_jax.runs.status import phase
from grpo_jax.setup.run import open_run
from grpo_jax.setup.status import show_status
from grpo_jax.setup.weights import export_run, load_base, load_trained, save_trained
from grpo_jax.sharding import hosts
from grpo_jax.training import arguments
from grpo_jax.training.adapter_arguments import adapters_of
from grpo_jax.training.assembly import Components, assemble, make_evaluator
from grpo_jax.training.callback_handler import CallbackHandler
from grpo_jax.training.callbacks import TrainerState
from grpo_jax.training.completion_log import keep_completions, keeps_samples, show_first_sample
from grpo_jax.training.components import set_base, set_reference
from grpo_jax.training.metrics import evaluation_metrics, show, step_metrics, summarize
from grpo_jax.training.run_state import RunState
from grpo_jax.training.run_summary import show_plan
from grpo_jax.training.script_api import ScriptAPI, TrainOutput, place_model
from grpo_jax.training.script_callbacks import callbacks_of
from grpo_jax.training.torch_models import is_torch_model, write_torch_model

RewardFunction = str | Callable[..., Any]


class GRPOTrainer(ScriptAPI):
    """Group-relative policy optimization of a Qwen2.5 model in Hugging Face format.

    Args:
        model: a local folder, a hub id, or a loaded model of transformers or PEFT, whose weights are taken.
        reward_funcs: one or several functions with TRL's signature (async ones too), built-in names,
            `file.py:function`, or reward models, `model:FOLDER`.
        args: the settings.
        train_dataset, eval_dataset: rows (dicts with a `prompt`) in place of those that the settings name, or several
            named sets of rows, {name: rows}. Several training sets are mixed; each evaluation set is reported
            separately. Without `eval_dataset`, a run on a given `train_dataset` is not evaluated.
        processing_class: a tokenizer, instead of the model's own.
        reward_processing_classes: a tokenizer for each of the `reward_funcs`, None for the reward model's own.
        callbacks: objects with methods of `grpo_jax.TrainerCallback`.
        optimizers: an optax transformation, instead of AdamW and its schedule; gradients come to it clipped at
            `max_grad_norm`, as in TRL.
        quantization_config: a BitsAndBytesConfig, or a dict of its fields, instead of the setting base_weights.
        peft_config: a LoraConfig of PEFT, or a dict of its fields, instead of the settings lora_r and so on.
        unsupported: what TRL's trainer also takes; each is refused with what to do instead.

    The run's config.yaml records what is given here in place of the settings.
    Raises:
        UserError: anything wrong with what was given, before any weight is read.
    """

    def __init__(
        self,
        model: Any,
        reward_funcs: RewardFunction | Sequence[RewardFunction] | None = None,
        args: GRPOConfig | None = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        processing_class: Any = None,
        reward_processing_classes: Any = None,
        callbacks: Sequence[Any] | None = None,
        optimizers: optax.GradientTransformation | None = None,
        quantization_config: Any = None,
        peft_config: Any = None,
        **unsupported: Any,
    ):
        arguments.check(model, processing_class, unsupported)
        args = args or ScriptConfig()
        arguments.check_given(args, reward_funcs, train_dataset)
        train_rows = arguments.domains_of("train_dataset", train_dataset)
        eval_rows = arguments.domains_of("eval_dataset", eval_dataset)
        self._written = write_torch_model(model, processing_class) if is_torch_model(model) else None
        name = self._written.name if self._written else model
        config = arguments.resolved(args, name, train_rows, eval_rows)
        config = config.replace(**adapters_of(peft_config, quantization_config, self._written))
        asked = callbacks_of(config)
        config, self._sizes = arguments.in_rollouts(config)
        functions = arguments.functions_of(config, reward_funcs)
        reward_tokenizers = arguments.reward_tokenizers_of(functions, reward_processing_classes)
        self.pool = RewardPool(
            functions,
            workers=config.reward_workers,
            objects_in_process=arguments.wants_no_workers(config),
            timeout=config.reward_timeout,
            on_error=config.on_reward_error,
        )
        if reward_funcs is not None:
            config = config.replace(rewards=[f.spec or f.name for f in self.pool.functions])
        with show_status(config.quiet), phase("preparing the run"):
            self.components: Components = assemble(
                config,
                self._written.folder if self._written else model,
                self.pool,
                train_rows=train_rows,
                eval_rows=eval_rows,
                tokenizer=processing_class,
                optimizer=arguments.optimizer_of(optimizers),
                reward_tokenizers=reward_tokenizers,
            )
        self.args = arguments.recorded(self.components.config, self._written)
        updates = self.args.num_minibatches * self.args.num_iterations if self._sizes else 1
        self.callback_handler = CallbackHandler(
            self.args, callbacks or (), len(self.components.prompts), updates
        )
        for callback in asked:
            self.add_callback(callback)
        self.trained: TrainState | None = None

    @property
    def state(self) -> TrainerState:
        """The progress of the run, as callbacks see it: steps, epochs, `log_history`."""
        return self.callback_handler.state

    def add_callback(self, callback: Any) -> None:
        """Add a callback, which is called after the others."""
        self.callback_handler.callbacks.add(callback)

    def train(self, resume_from_checkpoint: bool | str | None = None) -> TrainOutput:
        """Train to `max_steps`, from the newest checkpoint in `output_dir` if there is one.

        Returns the summary that is written to `summary.json`. After SIGTERM it saves and raises SystemExit(143).
        After Ctrl-C it finishes the step, saves and raises KeyboardInterrupt; a second Ctrl-C raises it at once.
        """
        arguments.check_resume(resume_from_checkpoint, self.args)
        policy = self.components.policy
        reward_models = self.components.stages[0].scorer.fingerprint
        with (
            show_status(self.args.quiet),
            open_run(self.args, policy, reward_models) as run,
            jax.set_mesh(policy.mesh),
            self.pool,
        ):
            return self.callback_handler.output(self._train(run))

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: Any = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Metrics of the held-out prompts, or of the rows given, each with the prefix and an underscore: of the trained
        model, or before training of the starting one. `ignore_keys` has no meaning here."""
        policy, evaluator = self.components.policy, self._evaluator_of(eval_dataset)
        with show_status(self.args.quiet), jax.set_mesh(policy.mesh), self.pool:
            if self.trained is None:
                set_base(self.components.stages, load_base(policy))
            params = self.trained.params if self.trained else load_trained(policy, self.args.seed)
            summary = evaluator(self._sampler_weights(params), self.callback_handler.for_rewards()).summary()
        return {f"{metric_key_prefix}_{name}": value for name, value in summary.items()}

    def _evaluator_of(self, rows: Any) -> Evaluator:
        """Of the rows, or the run's own. UserError if there are neither."""
        if rows is not None:
            return make_evaluator(self.components, arguments.domains_of("eval_dataset", rows) or [])
        if self.components.evaluator is None:
            raise UserError("evaluate: no held-out prompts; give eval_dataset, here or to the trainer")
        return self.components.evaluator

    def save_model(self, out: str | Path | None = None) -> None:
        """Write the trained model to a new folder in Hugging Face format. A run's own folder has it already."""
        if self.trained is None:
            raise UserError("save_model: nothing is trained yet; call train() first")
        own = self.args.output_dir
        if own and (out is None or Path(out).resolve() == Path(own).resolve()):
            if hosts.is_writer():
                place_model(own)
                print(f"model: {Path(own) / 'hf'}")  # as TRL's scripts end
            return
        if out is None:
            raise UserError("save_model: the run has no output_dir; say where to")
        with show_status(self.args.quiet):
            save_trained(Path(out), self.components.policy, self.trained.params)

    def _train(self, run: Run) -> dict[str, Any]:
        show_plan(self.components, self._sizes)
        done, state, run_state = self._start(run)
        self.callback_handler.begin(done, run_state, run.logged())
        if run_state.before is None:
            run_state = run_state.replace(before=self._evaluate(state.params, run, done))
        with run.interrupts:
            done, state, run_state = self.train_loop(run, done, state, run_state)
        self.trained = state
        after = self._evaluate(state.params, run, done)
        del state  # the best one needs its memory
        after = self._take_best(run, done, after)
        self.callback_handler.end(run_state.curriculum.over)
        return self._finish(run, done, run_state, after)

    def _take_best(self, run: Run, done: int, after: dict[str, Any] | None) -> dict[str, Any] | None:
        """The evaluation of the run's model: of the last step, or of the best one, whose checkpoint is read."""
        best = self.callback_handler.best_step()
        if best is None or best == done:
            return after
        self.trained = None
        self.trained = run.restore_step(best, self.components.learner.abstract_state)
        run.progress.say(f"the best model is that of step {best}: the run ends with it")
        return self._evaluate(self.trained.params, run, best, tell=False)

    def train_loop(
        self, run: Run, done: int, state: TrainState, run_state: RunState
    ) -> tuple[int, TrainState, RunState]:
        """The algorithm, from the step after `done` on."""
        components, callbacks = self.components, self.callback_handler
        while done < self.args.max_steps and not run_state.stopped:
            clock = Stopwatch()
            callbacks.step_begins()
            number = run_state.curriculum.stage
            stage = components.stages[number]
            # The copy of the weights lives no longer than this call: the update needs its memory.
            groups, sampled, run_state = stage.collect(
                self._sampler_weights(state.params), done, clock, run_state, callbacks.for_rewards()
            )  # tokens, log-probs [P,G,Tc], rewards [P,G], on the host
            with clock("update"):
                advantages, metrics = stage.advantages(groups, state.reference)  # [P,G]
                show_first_sample(components, run, done + 1, groups, advantages)
                state, learned = stage.learner(state, groups, advantages)
            done, seconds = done + 1, clock.total()
            run_state = run_state.counted(sampled.num_tokens, seconds)
            metrics |= learned | step_metrics(
                components, number, sampled, run_state, clock=clock, seconds=seconds, done=done
            )
            callbacks.step_ends(done, run_state)
            if callbacks.evaluation_is_due(done):
                metrics |= evaluation_metrics(self._evaluate(state.params, run, done))
            run.log(done, metrics)
            callbacks.logged(metrics)
            keep_completions(components, run, done, groups, advantages)
            run_state = self._end_step(run, done, state, run_state)
        return done, state, run_state

    def _end_step(self, run: Run, done: int, state: TrainState, run_state: RunState) -> RunState:
        """Save a checkpoint, and note whether to stop: because a callback asks, or because the curriculum has ended."""
        callbacks = self.callback_handler
        run_state = run_state.replace(
            stopped=callbacks.asks("training_stop") or run_state.curriculum.over,
            callbacks=callbacks.callbacks.state_dict(),
            samples=run.samples.sizes() if keeps_samples(self.args) else {},
        )
        wanted = run_state.stopped or callbacks.asks("save")
        if run.end_step(done, state, run_state, wanted=wanted, spare=callbacks.best_step()):
            callbacks.saved()
        return run_state

    def _start(self, run: Run) -> tuple[int, TrainState, RunState]:
        """(steps done, weights and moments, what else is known): of the newest checkpoint, or of the start."""
        policy, learner, stages = self.components.policy, self.components.learner, self.components.stages
        set_base(stages, load_base(policy))
        found = run.restore(learner.abstract_state)
        # A reference that follows the policy is part of the state.
        fixed_reference = self.args.beta > 0 and not self.args.sync_ref_model
        if found is None or fixed_reference:
            weights = load_trained(policy, self.args.seed)
            if fixed_reference:
                set_reference(stages, weights)
        if found is None:
            return 0, learner.init(weights), RunState(self.components.curriculum.begin())
        done, state, saved = found
        return done, state, RunState.from_json(saved)

    def _sampler_weights(self, params: Params) -> Params:
        return self.components.policy.rollout_copy(self.components.learner.whole(params))

    def _evaluate(
        self, params: Params, run: Run | None = None, done: int = 0, tell: bool = True
    ) -> dict[str, Any] | None:
        """The evaluation's summary and a few samples; None without held-out prompts. The run keeps all of it, and
        callbacks are told."""
        if self.components.evaluator is None:
            return None
        result: Evaluation = self.components.evaluator(
            self._sampler_weights(params), self.callback_handler.for_rewards()
        )
        if run is not None:
            keep_step(run.folder, done, result)
        evaluation = {"summary": result.summary(), "samples": result.samples}
        if tell:
            self.callback_handler.evaluated(evaluation_metrics(evaluation))
        return evaluation

    def _finish(
        self, run: Run, done: int, run_state: RunState, after: dict[str, Any] | None
    ) -> dict[str, Any]:
        """Export the model, write the summary, print the closing table."""
        assert self.trained is not None
        export_run(run, self.components.policy, self.trained.params, self.args.model)
        summary = summarize(done, run_state, after, self.components.prompts.dropped)
        run.folder.write_summary(summary)
        run.end_progress()
        if hosts.is_writer():
            show(summary, run_state.before, after, run.folder, self.components.reflection)
        return summary
