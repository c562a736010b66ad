"""Loads and validates settings. Each room owns its own model; this file only reads YAML and words the errors."""

from collections.abc import Iterator
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, Tag, ValidationError

from distill.errors import InputError


class Settings(BaseModel):
    """Base of every room's settings: unknown fields are errors, values cannot change after validation."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


Model = TypeVar("Model", bound=Settings)


def validate(model: type[Model], values: dict[str, Any], *, source: str, beside: type[Settings] | None = None) -> Model:
    """`values` as a `model`. `source` names where they came from (a file, "command line") in the error; `beside` is a
    model whose fields stand in the same file and were taken out before, so that a misspelt one of them is recognised.

    Raises InputError with the first wrong field: its path, what was found, what was expected.
    """
    try:
        return model.model_validate(values)
    except InputError as error:  # a validator that asked another room
        raise InputError(f"{source}: {error}") from None
    except ValidationError as error:
        # A field that is misspelt is missing too: what stands there says more than what does not.
        first = min(error.errors(), key=lambda one: one["type"] != "extra_forbidden")
        field = ".".join(_as_written(values, first["loc"]))
        # What a rule about several fields was given is all of them: its message says which.
        untold = first["type"] in ("missing", "extra_forbidden") or isinstance(first["input"], dict)
        found = "" if untold else f", found {first['input']!r}"
        more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
        what = first["msg"].removeprefix("Value error, ")
        if first["type"] == "extra_forbidden":
            known = _fields_at(model, first["loc"][:-1])
            if beside and len(first["loc"]) == 1:
                known |= beside.model_fields.keys()
            near = get_close_matches(str(first["loc"][-1]), sorted(known), n=1)
            what = "no such field" + (f"; did you mean {near[0]}?" if near else "")
        elif first["type"] == "missing":
            what = "needed, but not given"
        where = f"field {field}: " if field else ""  # a rule about several fields names them itself
        raise InputError(f"{source}: {where}{what}{found}{more}") from None


def _as_written(values: Any, path: tuple[int | str, ...]) -> Iterator[str]:
    """The parts of a path without those that name the kind of a value: they stand in no file."""
    for depth, part in enumerate(path, start=1):
        if isinstance(values, str | int | float) or (
            isinstance(values, dict) and part not in values and depth < len(path)
        ):
            continue
        try:
            values = values[part]
        except (KeyError, IndexError, TypeError):
            values = None
        yield str(part)


def _fields_at(kind: Any, path: tuple[int | str, ...]) -> set[str]:
    """The names of the fields that a value of type `kind` can have where `path`, of an error of pydantic, leads."""
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        if not path:
            return set(kind.model_fields)
        if path[0] in kind.model_fields:
            return _fields_at(kind.model_fields[path[0]].annotation, path[1:])
        return _fields_at(kind, path[1:]) if kind.__name__ in str(path[0]) else set()  # it says which of a union it is
    origin, kinds = get_origin(kind), get_args(kind)
    if origin is Annotated:
        names = {mark.tag for mark in kinds[1:] if isinstance(mark, Tag)}
        return _fields_at(kinds[0], path[1:] if path and path[0] in names else path)
    if origin in (dict, list, tuple):
        return _fields_at(kinds[-1] if origin is dict else kinds[0], path[1:])
    return set().union(*(_fields_at(one, path) for one in kinds))


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file, read with the safe loader. Raises InputError naming file and line."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 text (byte {error.start})") from None
    try:
        values = yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f":{mark.line + 1}" if mark else ""
        raise InputError(f"{path}{where}: not valid YAML ({getattr(error, 'problem', None) or 'syntax'})") from None
    if not isinstance(values, dict):
        raise InputError(f"{path}: expected a mapping of settings, found {type(values).__name__}")
    return values


def load(model: type[Model], path: Path) -> Model:
    """The settings in a YAML file, validated. Raises InputError."""
    return validate(model, read_yaml(path), source=str(path))
