"""The tokenizer of a run: the one given or the model's own, kept in its folder and used whenever it is resumed."""

import shutil
import tempfile
from pathlib import Path
from typing import Any

from etils import epath

from grpo_jax.errors import UserError
from grpo_jax.models.hf import load_tokenizer
from grpo_jax.models.tokenizer_files import write_tokenizer
from grpo_jax.runs.files import copy_folder, is_local
from grpo_jax.runs.folder import RunFolder
from grpo_jax.setup.policy import Policy


def tokenizer_of(output_dir: str | None, given: Any = None) -> dict[str, Any]:
    """The arguments `tokenizer` and `tokenizer_folder` of `open_policy`: those of the run in `output_dir` if there is
    one that has kept its tokenizer, otherwise the one that is given.

    Raises:
        UserError: the one that is given is not the run's.
    """
    kept = _kept(output_dir)
    if kept is None:
        return {"tokenizer": given}
    if given is not None:
        _check_same(given, _loaded(kept), kept)
        return {"tokenizer": given}
    return {"tokenizer_folder": Path(kept)} if is_local(kept) else {"tokenizer": _loaded(kept)}


def keep_tokenizer(run: RunFolder, policy: Policy) -> None:
    """Write the policy's tokenizer to the folder of a new run."""
    with tempfile.TemporaryDirectory() as here:
        write_tokenizer(policy.tokenizer_source, here)
        if policy.tokenizer_folder is not None:  # transformers chooses the class by the model's type
            shutil.copyfile(policy.tokenizer_folder / "config.json", Path(here) / "config.json")
        if run.tokenizer.exists():  # of a start that was killed
            run.tokenizer.rmtree()
        copy_folder(here, run.tokenizer)


def _kept(output_dir: str | None) -> epath.Path | None:
    if output_dir is None:
        return None
    run = RunFolder(output_dir)
    try:
        return run.tokenizer if run.config_file.exists() and run.tokenizer.exists() else None
    except Exception:  # a place that cannot be reached is refused, with its reason, when the run is opened
        return None


def _loaded(kept: epath.Path) -> Any:
    if is_local(kept):
        return load_tokenizer(Path(kept))
    with tempfile.TemporaryDirectory() as here:
        copy_folder(kept, here)
        return load_tokenizer(here)


def _check_same(given: Any, own: Any, kept: epath.Path) -> None:
    differs = [name for name, read in _WHAT.items() if read(given) != read(own)]
    if differs:
        raise UserError(
            f"processing_class: not the tokenizer of the run in {kept.parent}: its {' and '.join(differs)} differ. "
            f"Leave it out, since the run has its own in {kept.name}/, or give another output_dir"
        )


_TEXT = "Ann has  12 eggs.\n\tSo: 3*4=12, <b>isn't</b> it?"
_WHAT = {
    "chat_template": lambda tokenizer: getattr(tokenizer, "chat_template", None),
    "vocabulary": lambda tokenizer: tokenizer.get_vocab(),
    "eos_token": lambda tokenizer: tokenizer.eos_token,
    "tokens of a text": lambda tokenizer: tokenizer(_TEXT)["input_ids"],
}
