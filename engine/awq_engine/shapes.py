"""Whether a value read from JSON has the type that a field declares: what stands between a damaged file and a screen.

Knows the types that events and reports are made of: numbers, texts, booleans, None, lists, tuples of any length,
dictionaries, unions and `TypedDict`. A whole number counts as a float, as in JSON. Standard library only: the app
imports this module.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from functools import cache
from types import NoneType, UnionType
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints, is_typeddict

LARGEST = 1 << 63
"""Whole numbers beyond are nobody's count of bytes, and no float can be made of the largest."""

Check = Callable[[Any], bool]
T = TypeVar("T")


@cache
def field_checks(kind: type) -> Mapping[str, Check]:
    """For every field of a dataclass, whether a value fits it."""
    hints = get_type_hints(kind)
    return {field.name: check_of(hints[field.name]) for field in dataclasses.fields(kind)}


def built(kind: type[T], data: Any) -> T | None:
    """A dataclass of what JSON holds under its fields' names; None where one is missing or of another type."""
    checks = field_checks(kind)
    if not isinstance(data, dict) or not all(name in data and fits(data[name]) for name, fits in checks.items()):
        return None
    return kind(**{name: data[name] for name in checks})


@cache
def check_of(kind: Any) -> Check:
    """Whether a value is of type `kind`, as a function."""
    if kind is Any:
        return lambda value: True
    if kind in _PLAIN:
        return _PLAIN[kind]
    if is_typeddict(kind):
        return _typed_dict(kind)
    parts = [check_of(part) for part in get_args(kind) if part is not ...]
    origin = get_origin(kind)
    if origin is list:
        return lambda value: isinstance(value, list) and all(map(parts[0], value))
    if origin is tuple:  # of any length; JSON has lists
        return lambda value: isinstance(value, list | tuple) and all(map(parts[0], value))
    if origin is dict:
        return lambda value: isinstance(value, dict) and all(map(parts[1], value.values()))
    if origin in (Union, UnionType):
        return lambda value: any(part(value) for part in parts)
    raise TypeError(f"no check for {kind}")


def _typed_dict(kind: Any) -> Check:
    checks = {name: check_of(hint) for name, hint in get_type_hints(kind).items()}
    required: frozenset[str] = kind.__required_keys__

    def check(value: Any) -> bool:
        return (
            isinstance(value, dict)
            and required <= value.keys()
            and all(fits(value[name]) for name, fits in checks.items() if name in value)
        )

    return check


def _whole(value: Any) -> bool:
    return type(value) is int and -LARGEST < value < LARGEST


_PLAIN: dict[Any, Check] = {
    int: _whole,
    float: lambda value: type(value) is float or _whole(value),
    str: lambda value: type(value) is str,
    bool: lambda value: type(value) is bool,
    NoneType: lambda value: value is None,
}
