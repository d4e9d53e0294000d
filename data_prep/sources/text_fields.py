"""What the text of a record is: one of its fields, or several that a template joins."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from data_prep.sources.splitting import typed_text

# What may be in a template: a brace that is meant as such, a field, and any other brace.
_PARTS = re.compile(r"(\{\{|\}\}|\{[^{}]+\}|[{}])")
_CURE = "write {question} for a field, and {{ or }} for a brace"


@dataclass(frozen=True)
class TextFields:
    """The fields that make the text of a record, and what stands around them."""

    names: tuple[str, ...]
    """Each field once, in the order in which they are used first; a.b is the field b inside a."""
    order: tuple[int, ...] = (0,)
    """Which field follows each literal but the last."""
    literals: tuple[bytes, ...] = (b"", b"")
    option: str = "--text-key"
    """The option that names the fields."""

    @property
    def is_template(self) -> bool:
        """Whether no field may be null; that of --text-key may, and is an empty document then."""
        return self.option == "--template"

    def joined(self, values: Sequence[bytes]) -> bytes:
        """The text, from the values of all fields (UTF-8) in the order of `names`."""
        parts = [self.literals[0]]
        for number, literal in zip(self.order, self.literals[1:], strict=True):
            parts += (values[number], literal)
        return b"".join(parts)


def text_fields(text_key: str, template: str | None = None) -> TextFields:
    """The field `text_key`, or those of a template. Raises: ValueError if there is none in it."""
    if template is None:
        return TextFields((text_key,))
    literals, fields = [""], []
    for part in _PARTS.split(template):
        if part in ("{{", "}}"):
            literals[-1] += part[0]
        elif part in ("{", "}"):
            raise ValueError(f"template={template} has a single {part}; {_CURE}")
        elif part.startswith("{"):
            fields.append(part[1:-1])
            literals.append("")
        else:
            literals[-1] += part
    if not fields:
        raise ValueError(f"template={template} names no field; {_CURE}")
    names = tuple(dict.fromkeys(fields))
    order = tuple(names.index(field) for field in fields)
    return TextFields(names, order, tuple(part.encode() for part in literals), "--template")


def typed_template(words: str | None, text_key: str | None) -> str | None:
    """A template as it is typed in a shell, with \\n and \\t for a newline and a tab.

    Raises: ValueError for a backslash before anything else, a template without a field, or a
    `text_key` beside it.
    """
    if words is None:
        return None
    if text_key is not None:
        raise ValueError(f"text_key={text_key} and template={words}; give one of them")
    template = typed_text("template", words)
    text_fields("", template)
    return template
