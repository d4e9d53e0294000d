"""URLs of sources: which are local, how they are shown without credentials, names of copies."""

import re
from urllib.parse import unquote, urlsplit

WEB = ("http", "https")
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.\-]*:(?://|:[a-z])")
# Such as zip://a.txt::s3://bucket/a.zip, and not [::1], which is a host
_INSIDE = re.compile(r"(?:^[A-Za-z0-9]+|://.*)::[A-Za-z][A-Za-z0-9+.\-]*://")
_LOCAL = ("file", "local")
# abfs://CONTAINER@ACCOUNT.dfs.core.windows.net: what is before @ is no user
_CONTAINERS = ("abfs", "abfss")
# Up to the last @ before the path, because a password may hold one.
_USER = re.compile(r"([A-Za-z][A-Za-z0-9+.\-]*://)[^/\s'\"?#]*@")
_QUERY = re.compile(r"(https?://[^\s'\"?#<>]*)[?#][^\s'\"<>]*")


def is_url(place: str) -> bool:
    """Whether a place of a source is a URL and not a path."""
    return _URL.match(place) is not None or ("::" in place and "://" in place)


def protocol_of(url: str) -> str:
    """What is before ://, in lower case."""
    return url.partition("://")[0].lower()


def is_local_url(url: str) -> bool:
    """Whether a URL names a file of this machine."""
    return protocol_of(url) in _LOCAL


def checked_url(place: str) -> str:
    """The URL with its protocol in lower case.

    Raises: ValueError if it has no name, several protocols, or a port that is no number.
    """
    protocol, _, rest = place.partition("://")
    if _INSIDE.search(place):
        raise ValueError(
            f"{without_credentials(place)} is an address inside another one; unpack or copy it, "
            "and give the files"
        )
    if not rest.strip("/") or (protocol.lower() in WEB and rest.startswith("/")):
        raise ValueError(f"{place} names nothing; give a file, a folder or a glob behind ://")
    port = re.sub(r"\[.*\]", "", rest.partition("/")[0].rpartition("@")[2]).partition(":")[2]
    if protocol.lower() in WEB and port and not port.isdecimal():
        raise ValueError(
            f"the port in an {protocol}:// address is no number; in a password, write / as %2F, "
            "and : as %3A"
        )
    return f"{protocol.lower()}://{rest}"


def without_credentials(text: str) -> str:
    """A URL, or a sentence with URLs, without users, passwords, queries and fragments."""
    protocol = protocol_of(text)
    if protocol in _CONTAINERS and ":" not in text.partition("://")[2].partition("@")[0]:
        return text
    return _QUERY.sub(r"\1", _USER.sub(r"\1", text))


def copy_name(protocol: str, path: str) -> str:
    """The name of a copy below the folder of all copies: protocol, bucket or host, and path.

    Raises: ValueError if a part of the path cannot be the name of a file.
    """
    if protocol in WEB:
        address = urlsplit(path)
        host = address.netloc.rpartition("@")[2]
        parts = [host, *map(unquote, address.path.lstrip("/").split("/"))]
    else:
        parts = path.strip("/").split("/")
    for part in parts:
        if part in ("", ".", "..") or "/" in part or "\0" in part or not _is_utf8(part):
            raise ValueError(
                f"{without_credentials(path)!a} has the part {part!a}, which cannot be the name of "
                "a file here; rename it, or copy the files yourself"
            )
    return "/".join([protocol, *parts])


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
