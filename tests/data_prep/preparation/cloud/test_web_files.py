"""Addresses of web servers and of the Hub as sources: index pages, ranges, faults, logins."""

import logging
import threading
from base64 import b64encode
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import fsspec
import pytest

from data_prep.hub.retries import RetryPolicy
from data_prep.preparation.cloud import copying
from data_prep.preparation.cloud.addresses import without_credentials
from data_prep.preparation.cloud.source_copies import CopyOptions, opened_source
from tests.fake_hub import FakeHub, Fault

LOGIN = "Basic " + b64encode(b"user:secret").decode()
IMPATIENT = RetryPolicy(
    attempts=6,
    first_request_attempts=3,
    first_wait=0.001,
    max_wait=0.002,
    connect_seconds=0.5,
    read_seconds=0.4,
)
REPOSITORY = "someone/texts"
FILES = {"a.txt": b"0123456789" * 25_000, "b.txt": b"abc", "empty.txt": b""}


class _Folder(SimpleHTTPRequestHandler):
    """Serves a folder with index pages and without ranges, below /private/ to a user only."""

    def do_GET(self) -> None:
        if self.path.startswith("/private/") and self.headers.get("Authorization") != LOGIN:
            self.send_error(401)
        elif self.path.startswith("/signed") and "sig=secret" not in self.path:
            self.send_error(403)
        elif self.path == "/endless.txt":  # of no known length
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"text " * 1000)
        elif self.path == "/blob.txt":
            self.send_response(200)
            self.send_header("Content-Type", "text/html; charset=utf-8")
            self.end_headers()
        else:
            super().do_GET()

    def log_message(self, *words: object) -> None:
        pass


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """The host and port of a server of the folder."""
    with ThreadingHTTPServer(
        ("127.0.0.1", 0), lambda *given: _Folder(*given, directory=str(folder))
    ) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield f"127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch):
    monkeypatch.setattr("os.fsync", lambda descriptor: None)
    monkeypatch.setattr(copying, "_BLOCK_BYTES", 100_000)


def copied(out: Path, *places: str) -> dict[str, bytes]:
    """The copies of what URLs name, by name."""
    with opened_source(places, CopyOptions(out, retries=IMPATIENT)) as source:
        return {file.name: (source.root / file.name).read_bytes() for file in source.files}


def failure(out: Path, *places: str) -> str:
    with pytest.raises(ValueError, match=".") as error:
        copied(out, *places)
    return str(error.value)


def test_folders_and_globs_of_a_server_without_ranges(tmp_path):
    (tmp_path / "tree" / "in ner").mkdir(parents=True)
    (tmp_path / "tree" / "a b.txt").write_text("one")
    (tmp_path / "tree" / "in ner" / "c.txt").write_text("two")
    (tmp_path / "tree" / ".hidden.txt").write_text("three")
    (tmp_path / "tree" / "page.html").write_text("<a href='https://elsewhere/x.txt'>x</a>")
    with served(tmp_path) as host:
        every = {"a b.txt": b"one", "in ner/c.txt": b"two"}
        assert copied(tmp_path / "out", f"http://{host}/tree/") == every
        assert copied(tmp_path / "out", f"HTTP://{host}/tree/**/c.txt") == {"c.txt": b"two"}
        assert copied(tmp_path / "out", f"http://{host}/tree/*.txt") == {"a b.txt": b"one"}
        assert "a folder ends in /" in failure(tmp_path / "out", f"http://{host}/tree")
        assert "there is no http://" in failure(tmp_path / "out", f"http://{host}/none.txt")
    assert not (tmp_path / "out.source").exists()


def test_a_file_of_unknown_length_is_copied_whole_and_a_web_page_is_refused(tmp_path):
    with served(tmp_path) as host:
        address = f"http://{host}/endless.txt"
        assert copied(tmp_path / "out", address) == {"endless.txt": b"text " * 1000}
        said = failure(tmp_path / "out", f"http://{host}/blob.txt")
        assert "blob.txt is a web page and no file" in said


def test_users_passwords_and_signatures_are_in_no_log_and_no_file(tmp_path, caplog):
    caplog.set_level(logging.INFO, logger="data_prep")  # as the scripts set it
    (tmp_path / "private").mkdir()
    (tmp_path / "private" / "a.txt").write_text("one")
    (tmp_path / "signed.txt").write_text("two")
    said, out = "", tmp_path / "out"
    with served(tmp_path) as host:
        places = f"http://user:secret@{host}/private/", f"http://{host}/signed.txt?sig=secret"
        with opened_source(places, CopyOptions(out, keep=True)) as source:
            assert [file.name for file in source.files] == ["private/a.txt", "signed.txt"]
        said += failure(out, f"http://user:secreT@{host}/private/a.txt")
        said += failure(out, f"http://{host}/signed.txt?sig=secreT")
        said += failure(out, f"http://user:sec/ret@{host}/private/a.txt")
        said += failure(
            out, f"http://{host}/signed.txt?sig=secret", f"http://{host}/signed.txt?sig=secret&a=2"
        )
    assert said.count("may not be read (status 40") == 2
    kept = b"".join(
        path.read_bytes() for path in tmp_path.glob("out.source/**/*") if path.is_file()
    )
    names = " ".join(map(str, tmp_path.rglob("*")))
    # Of our loggers: a script shows no other one below its warnings, and httpx logs addresses.
    logged = " ".join(r.getMessage() for r in caplog.records if r.name.startswith("data_prep"))
    everything = logged + said + kept.decode() + names
    assert not [secret for secret in ("secre", "sec/ret", "user:") if secret in everything]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("https://u:p@ss@[::1]:80/a?sig=1#b", "https://[::1]:80/a"),
        ("s3://KEY:secret@bucket/a", "s3://bucket/a"),
        ("abfs://container@account.dfs.core.windows.net/a", None),
        ("hf://datasets/a/b@main/c.txt", None),
        ("zip://x::https://u@h/a (url='http://u:p@h/b?c'), s3://b/a?.txt",
         "zip://x::https://h/a (url='http://h/b'), s3://b/a?.txt"),
    ],
)  # fmt: skip
def test_addresses_are_shown_without_credentials(text, shown):
    assert without_credentials(text) == (shown or text)


def test_a_server_that_is_not_there_is_reported_soon(tmp_path):
    with ThreadingHTTPServer(("127.0.0.1", 0), _Folder) as closed:
        host = f"127.0.0.1:{closed.server_port}"
    said = failure(tmp_path / "out", f"http://{host}/a.txt")
    assert "a.txt cannot be fetched from its server" in said
    assert "3 attempts" in said


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    root = tmp_path_factory.mktemp("hub")
    (root / REPOSITORY / "data").mkdir(parents=True)
    for name, content in FILES.items():
        (root / REPOSITORY / "data" / name).write_bytes(content)
    with FakeHub(root) as server:
        yield server


@pytest.mark.fault("D11", injected="a web server that drops, stalls or refuses", identical=True)
@pytest.mark.parametrize(
    "faults",
    ["", "drop:every=2", "status:code=503,every=2", "reset:every=3", "truncate:bytes=9,every=3",
     "norange", "norange drop:every=3", "stall:seconds=1,after=2,count=1"],
)  # fmt: skip
def test_a_fault_of_a_web_server_ends_in_the_same_bytes(tmp_path, hub, faults):
    base = f"{hub.url}/datasets/{REPOSITORY}/resolve/main/data"
    places = [f"{base}/{name}" for name in FILES]
    hub.faults.replace([Fault.parse(text) for text in faults.split()])
    try:
        assert copied(tmp_path / "out", *places) == FILES
    finally:
        hub.faults.replace([])


def test_the_hub_by_hf_urls(tmp_path, hub, monkeypatch):
    monkeypatch.setitem(
        fsspec.config.conf, "hf", {"endpoint": hub.url, "skip_instance_cache": True}
    )
    place = f"hf://datasets/{REPOSITORY}"
    assert copied(tmp_path / "out", f"{place}/data/*.txt") == FILES
    assert copied(tmp_path / "out", f"{place}@main/data") == FILES
    assert "there is no hf://" in failure(tmp_path / "out", f"{place}/none.txt")
    assert "hf://datasets/no/body" in failure(tmp_path / "out", "hf://datasets/no/body/a.txt")
