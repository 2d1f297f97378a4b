"""TRL, measured inside its own training loop.

`GRPOTrainer.train()` runs as it always does. At the start of a step a callback asks the driver what to measure:
rollout and score are calls of the trainer's own methods; update and step let the loop go on, until the callback sees
the step's end. For an update the trainer is handed the given rows where it would have sampled some.
"""

from types import MethodType
from typing import Any

import torch
import transformers
import trl
import work
from datasets import Dataset
from serving import Line, action_of, main
from trl.models.utils import disable_gradient_checkpointing
from words import make_tokenizer, reward, text

NEVER = -1  # an id that no model draws
STEPS = 10**6  # more than any driver asks for


class RowLimits(transformers.StoppingCriteria):
    """Row b ends after limits[b] tokens, as if it had drawn the end."""

    eos_token_id = NEVER  # transformers pads rows that have ended if some criterion has this attribute

    def __init__(self, limits: torch.Tensor, prompt_length: int):
        self.ends = limits + prompt_length

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        return self.ends <= input_ids.shape[1]


class Theirs:
    """The trainer and what it is measured on."""

    def __init__(self, spec: dict[str, Any]):
        self.work, self.given = work.load(spec)
        self.settings = spec["settings"]
        self.prompts = [list(map(int, row)) for row in self.given["prompts"]]
        self.trainer = self._trainer(spec)
        self._limit_rows()
        self.batch = self._batch()

    def _trainer(self, spec: dict[str, Any]) -> trl.GRPOTrainer:
        config = transformers.AutoConfig.from_pretrained(spec["model"])
        rows = [{"prompt": text(ids)} for ids in self.prompts]
        return trl.GRPOTrainer(
            model=spec["model"],
            reward_funcs=reward,
            args=trl.GRPOConfig(output_dir=spec["scratch"], **self._arguments()),
            train_dataset=Dataset.from_list(rows * 100),
            processing_class=make_tokenizer(config.vocab_size),
        )

    def _arguments(self) -> dict[str, Any]:
        """Equal work: what is named here is the same in all systems, or switches off what is not measured."""
        s, w = self.settings, self.work
        return {
            "model_init_kwargs": {"dtype": "float32"},
            "loss_type": "grpo",
            "beta": s["beta"],
            "use_bias_correction_kl": False,
            "learning_rate": s["learning_rate"],
            "lr_scheduler_type": "constant",
            "weight_decay": 0.0,
            "max_grad_norm": 1.0,
            "per_device_train_batch_size": s["micro_batch_size"],
            "gradient_accumulation_steps": w.rows // s["micro_batch_size"],
            "num_generations": w.samples,
            "max_completion_length": w.completion_length,
            "temperature": 1.0,
            "top_k": 0,
            "top_p": 1.0,
            "gradient_checkpointing": s["gradient_checkpointing"],
            "max_steps": STEPS,
            "logging_steps": STEPS,
            "shuffle_dataset": False,
            "bf16": False,
            "use_cpu": True,
            "report_to": "none",
            "save_strategy": "no",
            "disable_tqdm": True,
        }

    def never_end(self) -> None:
        """No token ends a completion: its length is the given one. `train()` gives the model its tokenizer's end."""
        trainer, model = self.trainer, self.trainer.model
        trainer.eos_token_ids = [NEVER]
        trainer.generation_kwargs["eos_token_id"] = None
        for config in (trainer.generation_config, model.generation_config):
            config.eos_token_id = None

    def _limit_rows(self) -> None:
        """Where rows have lengths of their own, generation is told so."""
        if self.work.long_rows:
            model, generate = self.trainer.model, self.trainer.model.generate
            limits = RowLimits(torch.tensor(self.given["lengths"].ravel()), self.work.prompt_length)
            model.generate = lambda *args, **kwargs: generate(*args, stopping_criteria=[limits], **kwargs)

    def _batch(self) -> dict[str, Any]:
        """The given rows as the trainer's sampling returns them."""
        x, rows = self.given, self.work.rows
        prompts = torch.tensor(x["prompts"]).repeat_interleave(self.work.samples, 0).long()
        completions = torch.tensor(x["completions"]).reshape(rows, -1).long()
        mask = torch.arange(completions.shape[1]) < torch.tensor(x["lengths"]).reshape(-1, 1)
        return {
            "prompt_ids": prompts,
            "prompt_mask": torch.ones_like(prompts),
            "completion_ids": completions,
            "completion_mask": mask.int(),
            "advantages": torch.tensor(x["advantages"]).reshape(rows),
            "num_items_in_batch": mask.sum(),
        }

    def rollout(self) -> int:
        """The trainer's own sampling of a generation batch."""
        prompts = [ids for ids in self.prompts for _ in range(self.work.samples)]
        completions, _ = self.trainer._generate_single_turn(prompts, None, {}, self.work.samples)
        return self._useful(completions)

    def _useful(self, completions: list[list[int]]) -> int:
        limits = self.given["lengths"].ravel()
        return sum(min(len(row), int(limit)) for row, limit in zip(completions, limits, strict=True))

    def logprobs(self, model: Any) -> torch.Tensor:
        """Log-probs [B,Tc] of the given rows, as the trainer computes the reference's."""
        x, trainer = self.batch, self.trainer
        ids = torch.cat([x["prompt_ids"], x["completion_ids"]], 1)
        mask = torch.cat([x["prompt_mask"], x["completion_mask"]], 1)
        with (
            torch.no_grad(),
            disable_gradient_checkpointing(model, trainer.args.gradient_checkpointing_kwargs),
        ):
            found, _, _ = trainer._get_per_token_logps_and_entropies(
                model, ids, mask, x["completion_ids"].shape[1], self.settings["micro_batch_size"]
            )
        return found

    def score(self) -> None:
        self.logprobs(self.trainer.model)

    def check(self, file: str) -> None:
        import numpy as np

        np.save(file, self.logprobs(self.trainer.model).numpy())

    def sampled(self, trainer: Any, inputs: Any) -> dict[str, Any]:
        """The given rows and the reference's log-probs of them, in place of sampled ones."""
        return self.batch | {"ref_per_token_logps": self.logprobs(trainer.ref_model)}


class Turns(transformers.TrainerCallback):
    """Asks the driver at each step's start; answers at its end."""

    def __init__(self, line: Line, system: Theirs):
        self.line, self.system, self.commands = line, system, line.commands()
        self.sample = system.trainer._generate_and_score_completions

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.system.never_end()
        for command in self.commands:
            if command["do"] in ("update", "step"):
                self._let_go(command["do"])
                return
            actions = {"rollout": self.system.rollout, "score": self.system.score}
            self.line.measure(action_of(command, actions, self.system.check))
        raise SystemExit  # the driver has ended

    def _let_go(self, measure: str) -> None:
        trainer = self.system.trainer
        given = MethodType(lambda trainer, inputs: self.system.sampled(trainer, inputs), trainer)
        trainer._generate_and_score_completions = self.sample if measure == "step" else given
        self.measure, self.begun = measure, self.line.start()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        sampled = work.tokens(self.system.work, "step") if self.measure == "step" else None
        self.line.done(self.begun, tokens=sampled)


def build(line: Line, spec: dict[str, Any]) -> None:
    system = Theirs(spec)
    versions = {"trl": trl.__version__, "torch": torch.__version__, "transformers": transformers.__version__}
    line.send(ready={"versions": versions, "threads": torch.get_num_threads()})
    system.trainer.add_callback(Turns(line, system))
    system.trainer.train()


if __name__ == "__main__":
    main(build)
