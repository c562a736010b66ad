"""Loads and validates settings. Each room owns its own model; this file only reads YAML and words the errors."""

import json
import re
import reprlib
from collections.abc import Iterator
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args, get_origin
from urllib.parse import urlsplit

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Tag, ValidationError

from distill.errors import InputError


class Settings(BaseModel):
    """Base of every room's settings: unknown fields are errors, values cannot change after validation."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


def _server_url(url: str) -> str:
    """URLs are kept in files and shown: what identifies who asks stands elsewhere."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.netloc:
        raise ValueError("expected a URL such as http://127.0.0.1:8000/v1")
    if "@" in parts.netloc:
        host = parts.netloc.rpartition("@")[2]
        raise InputError(
            f"a URL at {host} with user name or password; expected none: keys are read from the environment"
        )
    return url


ServerUrl = Annotated[str, AfterValidator(_server_url)]  # with the version: http://127.0.0.1:8000/v1
Model = TypeVar("Model", bound=Settings)
_SHORT = reprlib.Repr()  # of what was found, which may be a whole preset, or aliases of aliases
_SHORT.maxstring = _SHORT.maxother = 120


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
        found = "" if untold else f", found {_SHORT.repr(first['input'])}"
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


class _KeyTwice(yaml.MarkedYAMLError):
    """YAML keeps the last of two equal keys; the first would be lost without a word."""


class SettingsLoader(yaml.SafeLoader):
    """The safe loader, for which `1e-5` is a number, as in YAML 1.2 and JSON, and a key that stands twice an error."""

    def compose_mapping_node(self, anchor: str | None) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    raise _KeyTwice(None, None, f"the key {key.value!r} stands twice", key.start_mark)
                seen.add(key.value)
        return node


SettingsLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file, read with the safe loader, or in a .json. Raises InputError naming file and line."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 text (byte {error.start})") from None
    try:
        values = json.loads(text) if path.suffix == ".json" else yaml.load(text, SettingsLoader)
    except json.JSONDecodeError as error:
        raise InputError(f"{path}:{error.lineno}: not valid JSON ({error.msg})") from None
    except _KeyTwice as error:
        raise InputError(f"{path}:{error.problem_mark.line + 1}: {error.problem}") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f":{mark.line + 1}" if mark else ""
        raise InputError(f"{path}{where}: not valid YAML ({getattr(error, 'problem', None) or 'syntax'})") from None
    except RecursionError:
        raise InputError(f"{path}: not valid YAML (nested too deep)") from None
    except ValueError as error:  # the 30th of February, a number of too many digits
        raise InputError(f"{path}: not valid YAML ({error})") from None
    if not isinstance(values, dict):
        raise InputError(f"{path}: expected a mapping of settings, found {type(values).__name__}")
    return values


def load(model: type[Model], path: Path) -> Model:
    """The settings in a YAML file, validated. Raises InputError."""
    return validate(model, read_yaml(path), source=str(path))
