"""TRL's `generation_kwargs`: the options of transformers' and vLLM's sampling, as settings of ours.

An option that has no counterpart is refused with the nearest setting, except where its value leaves it off.
"""

import reprlib
from collections.abc import Mapping
from typing import Any

import yaml

OURS = {
    "bad_words": "banned_tokens",
    "max_new_tokens": "max_completion_length",
    "max_tokens": "max_completion_length",
    "min_new_tokens": "min_tokens",
    "min_p": "min_p",
    "min_tokens": "min_tokens",
    "repetition_penalty": "repetition_penalty",
    "stop": "stop_strings",
    "stop_strings": "stop_strings",
    "suppress_tokens": "banned_tokens",
    "temperature": "temperature",
    "top_k": "top_k",
    "top_p": "top_p",
}
"""Options that are settings of ours."""

OFF: dict[str, tuple[Any, ...]] = {
    "do_sample": (True,),
    "num_beams": (1,),
    "num_return_sequences": (1,),
    "n": (1,),
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "encoder_repetition_penalty": (1,),
    "no_repeat_ngram_size": (0,),
    "length_penalty": (1,),
    "diversity_penalty": (0,),
    "typical_p": (1,),
    "epsilon_cutoff": (0,),
    "eta_cutoff": (0,),
    "ignore_eos": (False,),
    "remove_invalid_values": (True, False),
    "use_cache": (True, False),
    "disable_compile": (True, False),
}
"""Values with which an option changes nothing here; None always does."""

_LESS_REPETITION = "write repetition_penalty"
_FILTERS = "write top_k, top_p or min_p"
_DRAWN = "completions are drawn one token at a time; write temperature, top_k, top_p or min_p"
_OWN_IDS = "the ids of the model's generation config are used; write stop_strings to end completions earlier"
NEAREST = {
    "bad_words_ids": "write banned_tokens, which takes single tokens",
    "begin_suppress_tokens": "write banned_tokens, for all positions",
    "do_sample": "write temperature: 0 for the most likely token",
    "encoder_repetition_penalty": _LESS_REPETITION,
    "frequency_penalty": _LESS_REPETITION,
    "no_repeat_ngram_size": _LESS_REPETITION,
    "presence_penalty": _LESS_REPETITION,
    "epsilon_cutoff": _FILTERS,
    "eta_cutoff": _FILTERS,
    "top_h": _FILTERS,
    "typical_p": _FILTERS,
    "diversity_penalty": _DRAWN,
    "length_penalty": _DRAWN,
    "num_beams": _DRAWN,
    "penalty_alpha": _DRAWN,
    "eos_token_id": _OWN_IDS,
    "stop_token_ids": _OWN_IDS,
    "ignore_eos": "write min_tokens, as many as max_completion_length",
    "max_length": "write max_completion_length, without the prompt",
    "min_length": "write min_tokens, without the prompt",
    "n": "write num_generations",
    "num_return_sequences": "write num_generations",
    "seed": "write seed",
}
"""What to write instead of other options."""
ELSE = f"there are {', '.join(sorted(set(OURS.values())))} and no other sampling settings"


def translated(values: Mapping[str, Any]) -> dict[str, Any]:
    """`values` with the options of their `generation_kwargs` as settings. They stay as they are if one of them has no
    counterpart, so that it is reported as any unknown setting is."""
    options = _options(values)
    if options is None or problems(values):
        return dict(values)
    rest = {name: value for name, value in values.items() if name != "generation_kwargs"}
    return rest | {OURS[name]: value for name, value in options.items() if name in OURS}


def problems(values: Mapping[str, Any]) -> str | None:
    """A sentence on the options without counterpart; None if there are none."""
    options = _options(values)
    if options is None:
        return "write a mapping of sampling options" if values.get("generation_kwargs") is not None else None
    found = [_problem(name, value, values) for name, value in options.items()]
    return "; ".join(filter(None, found)) or None


def _problem(name: str, value: Any, values: Mapping[str, Any]) -> str | None:
    ours = OURS.get(name)
    if ours is None:
        off = any(value == one for one in OFF.get(name, ()))
        return None if off else f"for {name}: {NEAREST.get(name, ELSE)}"
    if ours in values and values[ours] != value:
        return (
            f"{name} = {reprlib.repr(value)} beside {ours} = {reprlib.repr(values[ours])}: keep one of them"
        )
    return None


def _options(values: Mapping[str, Any]) -> dict[str, Any] | None:
    """The options that are given, those of None left out; None if there is no mapping of them."""
    given = values.get("generation_kwargs")
    if isinstance(given, str):
        try:
            given = yaml.safe_load(given)
        except yaml.YAMLError:
            return None
    if not isinstance(given, Mapping):
        return None
    options = {str(name): value for name, value in given.items() if value is not None}
    words = options.get("bad_words_ids")
    if isinstance(words, list) and all(isinstance(word, list) and len(word) == 1 for word in words):
        options["suppress_tokens"] = [word[0] for word in options.pop("bad_words_ids")]
    return options
