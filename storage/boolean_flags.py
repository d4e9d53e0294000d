"""Booleans on a command line: `--x True` and `--x=False` become `--x` and `--no-x`.

The flag is the one form of a boolean in every script. Command lines that spell out the value keep
working: a script passes its words through `with_flags` before tyro reads them.
"""

from collections.abc import Iterator, Sequence
from dataclasses import MISSING, Field, fields, is_dataclass
from typing import Any, get_type_hints

_VALUES = {"True": True, "true": True, "False": False, "false": False}


def with_flags(options: Any, words: Sequence[str], prefixed: bool = True) -> list[str]:
    """The words of a command line, with a flag for each boolean option that has a value.

    `options` is the dataclass that describes the command line, or an instance of it with other
    defaults. `prefixed`: fields of a nested dataclass have its name in front, as in `--model.bias`.
    Options of another type, and words after `--`, are not changed.
    """
    flags = {f"--{name}" for name, boolean in option_names(options, prefixed) if boolean}
    rewritten: list[str] = []
    rest = list(words)
    while rest and rest[0] != "--":
        word = rest.pop(0)
        option, equals, value = word.partition("=")
        flag = option.replace("_", "-")  # tyro takes both
        if flag in flags and not equals and rest and rest[0] in _VALUES:
            value = rest.pop(0)
        if flag in flags and value in _VALUES:
            word = flag if _VALUES[value] else _negated(flag)
        rewritten.append(word)
    return rewritten + rest


def option_names(options: Any, prefixed: bool) -> Iterator[tuple[str, bool]]:
    """The name of every option, without the hyphens in front, and whether tyro reads it as a flag.

    A positional option is among them, with the name of its field.
    """
    types = get_type_hints(options if isinstance(options, type) else type(options))
    for field in fields(options):
        name = field.name.replace("_", "-")
        default = _default(options, field)
        # The class of the default may be a subclass with more fields, such as an optimizer's.
        inner = default if is_dataclass(default) else types[field.name]
        if is_dataclass(inner):
            prefix = f"{name}." if prefixed else ""
            yield from ((prefix + o, flag) for o, flag in option_names(inner, prefixed))
        else:
            # Without a default it is no flag: tyro then requires a value.
            yield name, types[field.name] is bool and default is not MISSING


def _default(options: Any, field: Field[Any]) -> Any:
    """The default of a field; MISSING if it is required."""
    if not isinstance(options, type):
        return getattr(options, field.name)
    return field.default if field.default_factory is MISSING else field.default_factory()


def _negated(flag: str) -> str:
    """The flag that sets a boolean to False, as tyro names it: `--guard.no-box-weights`."""
    prefix, dot, name = flag.removeprefix("--").rpartition(".")
    return f"--{prefix}{dot}no-{name}"
