"""Marks the options that `--help` shows; `--help-all` shows the others too."""

from collections.abc import Iterator
from dataclasses import MISSING, dataclass, fields, is_dataclass
from typing import Annotated, Any, TypeVar, get_args, get_origin, get_type_hints

_T = TypeVar("_T")


class _UsualMark:
    """What `Usual` adds to the type of a field."""


_MARK = _UsualMark()
Usual = Annotated[_T, _MARK]
"""The type of a field that `--help` shows: `steps: Usual[int]`. It is written beside the field."""


@dataclass(frozen=True)
class UsualOption:
    """An option that `--help` shows."""

    flag: str
    """As typed, such as --eval.every."""
    kind: Any
    """The type of its value."""
    default: Any
    """Its value if it is not given; MISSING if it must be."""
    owner: type
    """The dataclass that has the field."""
    field: str
    """The name of the field."""


def usual_options(options: Any, prefixed: bool = True, prefix: str = "--") -> Iterator[UsualOption]:
    """The usual options of a dataclass, or of an instance with other defaults, in their order.

    `prefixed`: options of a nested dataclass have its name in front.
    """
    kind = options if isinstance(options, type) else type(options)
    hints = get_type_hints(kind, include_extras=True)
    for field in fields(options):
        default = field.default if isinstance(options, type) else getattr(options, field.name)
        name, hint = field.name.replace("_", "-"), hints[field.name]
        if is_dataclass(default):
            inner = f"{prefix}{name}." if prefixed else prefix
            yield from usual_options(default, prefixed, inner)
        elif get_origin(hint) is Annotated and _MARK in get_args(hint)[1:]:
            if field.default_factory is not MISSING and default is MISSING:
                default = field.default_factory()
            yield UsualOption(f"{prefix}{name}", get_args(hint)[0], default, kind, field.name)
