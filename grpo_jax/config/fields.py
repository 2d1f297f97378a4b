"""Types of fields, and how their text on the command line is read."""

import re
from typing import Annotated, Any

import yaml
from pydantic import BeforeValidator, Field, ValidationInfo


def split_list(value: Any, info: ValidationInfo) -> Any:
    """For list fields: `a,b` or `[a, b]` as a list; other values are unchanged."""
    if not isinstance(value, str):
        return value
    if value.strip().startswith("["):
        try:
            return yaml.safe_load(value)
        except yaml.YAMLError:
            raise ValueError(f"{info.field_name} = {value}: not a list; write a,b or [a, b]") from None
    return [part.strip() for part in value.split(",") if part.strip()]


def split_specs(value: Any, info: ValidationInfo) -> Any:
    """As `split_list`, for names with options: in `a:x=1,y=2,b` a comma before `y=` goes on with the same name."""
    parts = split_list(value, info)
    if not isinstance(parts, list) or not all(isinstance(part, str) for part in parts):
        return parts
    whole: list[str] = []
    for part in parts:
        if whole and ":" in whole[-1] and re.match(r"[A-Za-z_]\w*\s*=", part):
            whole[-1] += f",{part}"
        else:
            whole.append(part)
    return whole


def one_or_list(value: Any, info: ValidationInfo) -> Any:
    """For lists of texts in which commas and spaces count: `[a, b]` as a list, any other string as the only one."""
    if isinstance(value, str) and not value.startswith("["):
        return [value]
    return split_list(value, info)


def texts_or_ids(value: Any, info: ValidationInfo) -> Any:
    """For lists of tokens: `[text, 17]`, or one text alone. A number is an id, and in quotes a text."""
    tokens = one_or_list(value, info)
    if tokens is None:
        return None
    plain = lambda token: isinstance(token, str | int) and not isinstance(token, bool) and token != ""
    if not (isinstance(tokens, list | tuple) and all(map(plain, tokens))):
        raise ValueError(f"{info.field_name} = {value!r}: must be texts or ids; write e.g. ['<think>', 17]")
    return list(tokens)


def read_mapping(value: Any, info: ValidationInfo) -> Any:
    """For mapping fields: `{name: value}` in a string as a mapping; other values are unchanged."""
    if not isinstance(value, str):
        return value
    try:
        return yaml.safe_load(value)
    except yaml.YAMLError:
        raise ValueError(f"{info.field_name} = {value}: not a mapping; write {{name: value}}") from None


Count = Annotated[int, Field(ge=0)]


Positive = Annotated[int, Field(ge=1)]


Share = Annotated[float, Field(ge=0, le=1)]


Decay = Annotated[float, Field(ge=0, lt=1)]


Name = Annotated[str, Field(min_length=1)]


Names = Annotated[list[Name], BeforeValidator(split_list), Field(min_length=1)]


Specs = Annotated[list[Name], BeforeValidator(split_specs), Field(min_length=1)]


Texts = Annotated[list[Name], BeforeValidator(one_or_list)]


Tokens = Annotated[list[int | str], BeforeValidator(texts_or_ids)]


Numbers = Annotated[list[float], BeforeValidator(split_list)]


Counts = Annotated[list[Positive], BeforeValidator(split_list), Field(min_length=1)]


Mapped = Annotated[dict[str, Any], BeforeValidator(read_mapping)]
