"""Configs as JSON: how a run's own is kept in its folder and read back."""

import dataclasses
import json
import types
import typing
from pathlib import Path
from typing import Any

from trainer.config import PretrainConfig

_IN_JSON = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "a string",
    Path: "a path",
    tuple: "a list",
}


def to_json(config: PretrainConfig) -> dict[str, Any]:
    """Give a config as what JSON can hold; every default is written out."""
    text = json.dumps(dataclasses.asdict(config), default=str)  # str is for paths
    fields: dict[str, Any] = json.loads(text)
    return fields


def read_config(path: Path) -> PretrainConfig:
    """Read a config that a run has kept.

    Raises:
        OSError: if there is no such file, or it cannot be read.
        ValueError: if it is no config of this version.
    """
    try:
        config: PretrainConfig = _parse(PretrainConfig, json.loads(path.read_text()), "")
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: no JSON: {error}") from error
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    return config


def _parse(kind: Any, value: Any, name: str) -> Any:  # any field's type, and any JSON
    """Make a value of a field's type from JSON; name is its dotted path, for messages."""
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        return _parse_fields(kind, value, name)
    if isinstance(kind, types.UnionType):
        others = [option for option in typing.get_args(kind) if option is not types.NoneType]
        return None if value is None else _parse(others[0], value, name)
    if typing.get_origin(kind) is tuple:
        if not isinstance(value, list):
            _refuse(kind, value, name)
        (item, *_) = typing.get_args(kind)  # all tuples of a config are of one type
        return tuple(_parse(item, one, name) for one in value)
    if typing.get_origin(kind) is typing.Literal:
        return value if value in typing.get_args(kind) else _refuse(kind, value, name)
    if kind is Path:
        return Path(value) if isinstance(value, str) else _refuse(kind, value, name)
    is_number = not isinstance(value, bool)
    if kind is float and isinstance(value, int) and is_number:
        return float(value)
    is_one = isinstance(value, kind) and (kind is bool or is_number)
    return value if is_one else _refuse(kind, value, name)


def _parse_fields(kind: type, value: Any, name: str) -> Any:  # as above
    """Make a config of a JSON object that has exactly its fields."""
    if not isinstance(value, dict):
        _refuse(kind, value, name)
    hints = typing.get_type_hints(kind)
    if hints.keys() != value.keys():
        faults = {"missing": hints.keys() - value.keys(), "unknown": value.keys() - hints.keys()}
        raise ValueError(
            "; ".join(
                f"{fault}: {', '.join(sorted(name + field for field in fields))}"
                for fault, fields in faults.items()
                if fields
            )
        )
    return kind(**{f: _parse(hints[f], value[f], f"{name}{f}.") for f in hints})


def _refuse(kind: Any, value: Any, name: str) -> None:  # as above
    if typing.get_origin(kind) is typing.Literal:
        expected = f"one of {', '.join(map(repr, typing.get_args(kind)))}"
    elif dataclasses.is_dataclass(kind):
        expected = "an object"
    else:
        expected = _IN_JSON[typing.get_origin(kind) or kind]
    raise ValueError(f"{name.removesuffix('.')} is {value!r}, expected {expected}")
