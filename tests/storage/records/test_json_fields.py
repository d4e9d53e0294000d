"""A field of the wrong type is named with what it must be; every other value passes."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from storage.records.json_fields import check_field_types, check_fields

PATH = Path("runs/x/some.json")
SOUND = {"count": 3, "part": {"rate": 2}, "name": "", "on": False, "more": None}
KINDS = {"count": int, "part.rate": float, "name": str, "on": bool, "more": (int, type(None))}


def test_a_sound_file_passes():
    assert check_fields(PATH, SOUND, KINDS, "copy it") is SOUND
    assert check_fields(PATH, SOUND | {"part": {"rate": 0.5}, "more": 2**64 - 1}, KINDS, "")


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"count": -1}, "count is -1 but must be a whole number from 0 on"),
        ({"count": True}, "count is True but must be a whole number"),
        ({"count": 3.0}, "count is 3.0 but must be a whole number"),
        ({"count": 2**64 + 1}, "count is 18446744073709551617 but"),
        ({"count": 10**5000}, "count is a huge number but"),
        ({"count": None}, "count is missing or null but"),
        ({"part": [1]}, "part.rate is missing or null but must be a number"),
        ({"part": {"rate": float("nan")}}, "part.rate is nan but must be a number"),
        ({"part": {"rate": float("inf")}}, "part.rate is inf but must be a number"),
        ({"part": {"rate": 10**400}}, "part.rate is a huge number but must be a number"),
        ({"name": ["a", "b"]}, "name is a list of 2 but must be a text"),
        ({"name": {}}, "name is an object of 0 but must be a text"),
        ({"on": 1}, "on is 1 but must be true or false"),
        ({"more": "x" * 99}, f"more is '{'x' * 56}... but must be a whole number"),
    ],
)
def test_a_field_of_another_type_is_named(wrong, named):
    with pytest.raises(ValueError, match="^runs/x/some.json is damaged: ") as found:
        check_fields(PATH, SOUND | wrong, KINDS, "copy it")
    assert named in str(found.value)
    assert str(found.value).endswith("; copy it")


@pytest.mark.parametrize("found", [3, [], "x", None, 1.5])
def test_what_is_no_object_is_named(found):
    with pytest.raises(ValueError, match="not an object, so it is damaged; copy it"):
        check_fields(PATH, found, KINDS, "copy it")


@dataclass
class Entry:
    name: str = "a"
    tokens: int = 1
    rate: float = 0.5
    settings: dict[str, Any] | None = None
    rule: dict[str, Any] = None  # type: ignore[assignment]
    shards: tuple[int, ...] = ()


def test_the_types_of_a_dataclass_are_those_of_its_fields():
    check_field_types(PATH, Entry(rule={}), "")
    for wrong in (Entry(rule=[]), Entry(name=3, rule={}), Entry(tokens="1", rule={})):  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="is damaged: (rule|name|tokens) is"):
            check_field_types(PATH, wrong, "")
