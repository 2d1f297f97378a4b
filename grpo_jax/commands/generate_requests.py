"""The prompts of the verb `generate`: a single one, or a file of them."""

from dataclasses import dataclass
from typing import Any

from grpo_jax.config import GenerateConfig
from grpo_jax.data.chat import Prompt
from grpo_jax.data.files import read_file
from grpo_jax.errors import UserError


@dataclass(frozen=True)
class Request:
    """A prompt, and the seed and identity that its random numbers come from."""

    prompt: Prompt
    seed: int
    uid: int  # tells prompts of one seed apart


def requests_of(config: GenerateConfig) -> list[Request]:
    """All prompts. UserError for a file without prompts, or an invalid row."""
    if config.prompts is None:
        return [Request(_prompt(config, config.prompt, config.prefill), config.seed, 0)]
    from etils import epath

    file = epath.Path(config.prompts)
    if not file.is_file():
        raise UserError(f"prompts = {config.prompts!r}: no such file; give one with a prompt a row")
    rows = read_file(file)
    if not rows:
        raise UserError(f"prompts = {config.prompts!r}: no rows; give one with a prompt a row")
    return [_request(config, number, row) for number, row in enumerate(rows)]


def _request(config: GenerateConfig, number: int, row: dict[str, Any]) -> Request:
    """A row with a seed of its own gives what its prompt gives alone with that seed. The other rows share the seed of
    the settings and differ by their number."""
    source = f"{config.prompts}, row {number + 1}"
    prompt, prefill, seed = row.get("prompt"), row.get("prefill"), row.get("seed")
    if not (isinstance(prompt, str) and prompt):
        raise UserError(f"{source}: prompt = {prompt!r}: must be text; give each row a prompt")
    if not (prefill is None or isinstance(prefill, str)):
        raise UserError(f"{source}: prefill = {prefill!r}: must be text; or leave it out")
    if prefill and not config.chat:
        raise UserError(
            f"{source}: prefill = {prefill!r}: without chat there is no assistant's turn; put it into the prompt"
        )
    prompt = _prompt(config, prompt, prefill or config.prefill)
    return Request(prompt, config.seed, number) if seed is None else Request(prompt, _seed(seed, source), 0)


def _seed(seed: Any, source: str) -> int:
    try:
        number = int(seed)  # columns of a csv are text
    except (TypeError, ValueError, OverflowError):
        number = -1
    if isinstance(seed, bool) or not 0 <= number < 2**32 or str(number) != str(seed):
        raise UserError(f"{source}: seed = {seed!r}: must be a whole number, at least 0 and below {2**32}")
    return number


def _prompt(config: GenerateConfig, text: str | None, prefill: str | None) -> Prompt:
    if not config.chat:
        return str(text)
    turn = [{"role": "assistant", "content": prefill}] if prefill else []
    return [{"role": "user", "content": str(text)}, *turn]
