"""A value of params.yaml that does not fit, said in one line."""

from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from pipeline.base.errors import did_you_mean
from pipeline.base.sections import SOURCES


def one_line(error: ValidationError, model: type[BaseModel]) -> tuple[str, str]:
    """The first thing wrong as (dotted key, message); the key is "" where it concerns the whole.

    Args:
        error: of validating a mapping as `model`.
    """
    errors = error.errors()
    # A misspelt key is also a missing one; the misspelling is what the user wants to hear of.
    first = next((e for e in errors if e["type"] == "extra_forbidden"), errors[0])
    location = tuple(str(part) for part in first["loc"] if part not in ("[key]", *SOURCES))
    key = ".".join(location)
    if first["type"] == "extra_forbidden":
        message = f"unknown key {location[-1]!r}; {did_you_mean(location[-1], _known_keys(first['loc'], model))}"
        key = ".".join(location[:-1])
    elif first["type"] == "union_tag_invalid":
        key, message = f"{key}.source", f"must be one of {', '.join(SOURCES)}, got {first['ctx']['tag']!r}"
    elif first["type"] == "union_tag_not_found":
        key, message = f"{key}.source", "is missing"
    elif first["type"] == "missing":
        message = "is missing"
    else:
        message = first["msg"].removeprefix("Value error, ")
        if not isinstance(first["input"], (dict, BaseModel)):
            message += f", got {first['input']!r}"
    return key, message + (f" (and {len(errors) - 1} more)" if len(errors) > 1 else "")


def _known_keys(location: tuple[int | str, ...], model: type[BaseModel]) -> list[str]:
    fields: dict[str, Any] = dict(model.model_fields)
    for part in location[:-1]:
        if part in SOURCES:  # pydantic names the member of a union as if it were a key
            fields = dict(SOURCES[str(part)].model_fields)
            continue
        annotation: Any = next((f.annotation for n, f in fields.items() if (f.alias or n) == part), None)
        members = [annotation, *get_args(annotation)]  # X | None, dict[str, X]
        fields = next((dict(m.model_fields) for m in members if hasattr(m, "model_fields")), {})
    return [field.alias or name for name, field in fields.items()]
