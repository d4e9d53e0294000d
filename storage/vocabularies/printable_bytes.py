"""The printable characters by which Hugging Face's files write bytes."""

from functools import cache


@cache
def byte_characters() -> dict[int, str]:
    """The printable character that stands for each byte in Hugging Face's files.

    Source: https://github.com/openai/gpt-2/blob/master/src/encoder.py bytes_to_unicode
    """
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {
        byte: chr(256 + place) for place, byte in enumerate(others)
    }


def as_printable(token: bytes) -> str:
    """A token as Hugging Face's files write it."""
    characters = byte_characters()
    return "".join(characters[byte] for byte in token)


@cache
def _bytes_of() -> dict[str, int]:
    return {character: byte for byte, character in byte_characters().items()}


def from_printable(text: str) -> bytes | None:
    """The bytes that a token of Hugging Face's files stands for; None if it stands for none."""
    byte_of = _bytes_of()
    try:
        return bytes(byte_of[character] for character in text)
    except KeyError:
        return None
