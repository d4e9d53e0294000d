# ruff: noqa: E501, A002, SIM105, SIM115, UP031
"""A local stand-in for the Hugging Face Hub, for tests that must not touch the network.

Point a client at it with ``HF_ENDPOINT=http://127.0.0.1:PORT`` and ``load_dataset(...)``,
``hf_hub_download``, ``HfFileSystem`` and plain HTTP downloads work against a folder of files.
Standard library only. Checked with datasets 5.2.0 and huggingface_hub 2.4.0.

Folder layout (``--root``)::

    ROOT/<namespace>/<name>/README.md          dataset card, with the YAML "configs" block
    ROOT/<namespace>/<name>/sample/10BT/...    data files, any depth
    ROOT/_models/<namespace>/<name>/...        the same for model repositories (optional)
    ROOT/_converted/<namespace>/<name>/...     a data set's branch refs/convert/parquet (optional)

The commit of a repository, a 40-hex id, is derived from the file contents, so the same folder
always has the same id; it answers to ``main``, to that id, and to those it had before (if its files
are as they were then).

Endpoints served
    GET  /api/datasets[/{repo}[/revision/{rev}]]        info (``?blobs=true`` adds sizes and hashes)
    GET  /api/datasets/{repo}/tree/{rev}[/{path}]       listing (recursive, expand, limit, cursor)
    POST /api/datasets/{repo}/paths-info/{rev}          info on named paths (form or JSON body)
    GET  /api/datasets/{repo}/refs, /commits/{rev}
    GET/HEAD /datasets/{repo}/resolve/{rev}/{path}      the file (Range, ETag, X-Repo-Commit, ...)
    GET/HEAD /datasets/{repo}/raw/{rev}/{path}
    GET/HEAD http://<host>:<cdn port>/cdn/...           where "LFS" files are redirected to
    GET  /info, /parquet, /splits, ...                  dataset-viewer paths: always 404
    GET  /_fake/stats, POST /_fake/faults, POST /_fake/reset      control (never faulted)
Model repositories answer under /api/models/... and /{repo}/resolve/...

As on the real Hub, large or binary files ("LFS") answer ``resolve`` with a 302 to another origin
and carry X-Linked-Size / X-Linked-Etag on that answer; small text files are served in place.
``--lfs inline`` turns the redirect off.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import random
import re
import socket
import struct
import sys
import threading
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, quote, unquote, urlencode, urlsplit

log = logging.getLogger("fake_hub")

LFS_SUFFIXES = {
    ".parquet",
    ".arrow",
    ".bin",
    ".npy",
    ".npz",
    ".pt",
    ".safetensors",
    ".gz",
    ".bz2",
    ".zst",
    ".tar",
    ".zip",
}
LFS_MIN_BYTES = 10 * 1024 * 1024
CHUNK = 64 * 1024
CONVERTED = "refs@convert@parquet"
EPOCH = "2024-05-28T14:32:57.000Z"  # a fixed date: nothing the server says depends on the clock


# --------------------------------------------------------------------------------------------
# Repositories


@dataclass(frozen=True)
class Entry:
    """One file of a repository."""

    path: str  # POSIX path inside the repository
    file: Path
    size: int
    blob_id: str  # git blob id (what the Hub gives as the ETag of a small file)
    sha256: str  # what the Hub gives as the ETag of an LFS file
    lfs: bool

    @property
    def etag(self) -> str:
        return self.sha256 if self.lfs else self.blob_id

    def info(self, expand: bool, commit: str) -> dict:
        out: dict = {"type": "file", "oid": self.blob_id, "size": self.size, "path": self.path}
        if self.lfs:
            out["lfs"] = {"oid": self.sha256, "size": self.size, "pointerSize": 135}
        if expand:
            out["lastCommit"] = {"id": commit, "title": "fake_hub", "date": EPOCH}
            out["securityFileStatus"] = {"status": "safe", "avScan": None, "pickleImportScan": None}
        return out


@dataclass(frozen=True)
class Snapshot:
    """The whole content of a repository at its one commit."""

    commit: str
    files: dict[str, Entry]
    folders: dict[str, str]  # path -> tree id

    def children(self, path: str, recursive: bool) -> list[str]:
        """Paths below `path`, sorted; KeyError if it is neither a folder nor the root."""
        if path and path not in self.folders:
            raise KeyError(path)
        prefix = path + "/" if path else ""
        names = (p for p in (*self.folders, *self.files) if p.startswith(prefix) and p != path)
        return sorted(p for p in names if recursive or "/" not in p[len(prefix) :])

    def info(self, path: str, expand: bool) -> dict:
        if path in self.files:
            return self.files[path].info(expand, self.commit)
        out = {"type": "directory", "oid": self.folders[path], "size": 0, "path": path}
        if expand:
            out["lastCommit"] = {"id": self.commit, "title": "fake_hub", "date": EPOCH}
        return out


class Repos:
    """Reads repositories from disk, re-reading one when its files have changed."""

    def __init__(self, root: Path):
        self.root = root
        self._lock = threading.Lock()
        self._hashes: dict[tuple, tuple[str, str]] = {}
        self._snapshots: dict[tuple[str, str], tuple[tuple, Snapshot]] = {}
        self.commits: dict[tuple[str, str, str | None], Snapshot] = {}

    def folder(self, kind: str, repo_id: str) -> Path | None:
        if (
            not re.fullmatch(r"[\w.\-]+/[\w.\-]+", repo_id)
            or ".." in repo_id
            or repo_id.startswith("_")
        ):
            return None
        folder = self.root / {"datasets": "", "models": "_models"}.get(kind, kind) / repo_id
        return folder if folder.is_dir() else None

    def list(self, kind: str) -> list[str]:
        base = self.root if kind == "datasets" else self.root / "_models"
        return sorted(
            f"{ns.name}/{repo.name}"
            for ns in (base.iterdir() if base.is_dir() else ())
            if ns.is_dir() and not ns.name.startswith(("_", "."))
            for repo in ns.iterdir()
            if repo.is_dir()
        )

    def snapshot(self, kind: str, repo_id: str) -> Snapshot | None:
        folder = self.folder(kind, repo_id)
        if folder is None:
            return None
        with self._lock:
            found = sorted(
                p
                for p in folder.rglob("*")
                if p.is_file() and ".git" not in p.relative_to(folder).parts
            )
            signature = tuple((p, p.stat().st_size, p.stat().st_mtime_ns) for p in found)
            cached = self._snapshots.get((kind, repo_id))
            if cached is None or cached[0] != signature:
                cached = (signature, self._read(folder, signature))
                self._snapshots[(kind, repo_id)] = cached
                self.commits[(kind, repo_id, cached[1].commit)] = cached[1]
            return cached[1]

    def _read(self, folder: Path, signature: tuple) -> Snapshot:
        files: dict[str, Entry] = {}
        for key in signature:
            path, size, _ = key
            if key not in self._hashes:
                git, sha = hashlib.sha1(b"blob %d\0" % size), hashlib.sha256()
                with open(path, "rb") as f:
                    while block := f.read(1 << 20):
                        git.update(block)
                        sha.update(block)
                self._hashes[key] = git.hexdigest(), sha.hexdigest()
            blob_id, sha256 = self._hashes[key]
            rel = path.relative_to(folder).as_posix()
            lfs = path.suffix.lower() in LFS_SUFFIXES or size >= LFS_MIN_BYTES
            files[rel] = Entry(rel, path, size, blob_id, sha256, lfs)
        folders: dict[str, str] = {}
        for rel in files:
            for parent in list(Path(rel).parents)[:-1]:
                folders[parent.as_posix()] = hashlib.sha1(
                    f"tree {parent.as_posix()}".encode()
                ).hexdigest()
        listing = "\n".join(f"{e.blob_id} {p}" for p, e in sorted(files.items()))
        return Snapshot(hashlib.sha1(f"commit\n{listing}".encode()).hexdigest(), files, folders)


# --------------------------------------------------------------------------------------------
# Faults


FAULT_KINDS = {
    "status": "answer with an error status (code=503, retry_after=SECONDS)",
    "drop": "close the connection part-way through the body (at=0.5 of it)",
    "reset": "the same, with a TCP reset",
    "refuse": "close the connection before any answer",
    "slow": "wait before answering (seconds=1)",
    "throttle": "limit the body's speed (rate=BYTES_PER_SECOND)",
    "stall": "stop part-way through the body (at=0.5), wait (seconds=30), then go on",
    "truncate": "send fewer bytes than asked, with a Content-Length that agrees (bytes=1)",
    "corrupt": "flip one byte part-way through the body (at=0.5)",
    "norange": "ignore the Range header and answer 200 with the whole file",
}


@dataclass
class Fault:
    """One fault, and which of the requests it matches it strikes.

    `on` names the requests it looks at: ``data`` (GET of file bytes, the default), ``head``
    (HEAD of a file), ``api`` (everything else), or ``all``; `path` (a regular expression) narrows
    that to some addresses.  Of the requests it looks at, it strikes: every `every`-th (1 = each),
    after skipping the first `after`, at most `count` times, and with probability `prob`.
    """

    kind: str
    on: str = "data"
    path: str = ""
    every: int = 1
    after: int = 0
    count: int = 0  # 0: no limit
    prob: float = 1.0
    code: int = 503
    retry_after: float = 0
    at: float = 0.5
    seconds: float = -1.0
    rate: float = 1_000_000
    bytes: int = 1
    seen: int = field(default=0, repr=False)
    struck: int = field(default=0, repr=False)

    def __post_init__(self):
        if self.kind not in FAULT_KINDS:
            raise ValueError(f"unknown fault {self.kind!r}: one of {', '.join(FAULT_KINDS)}")
        if self.on not in ("data", "head", "api", "all"):
            raise ValueError(f"on={self.on!r}: one of data, head, api, all")
        if self.seconds < 0:
            self.seconds = 30.0 if self.kind == "stall" else 1.0

    @classmethod
    def parse(cls, text: str) -> Fault:
        """``kind`` or ``kind:key=value,key=value``."""
        kind, _, rest = text.partition(":")
        values: dict = {}
        for item in filter(None, rest.split(",")):
            key, eq, value = item.partition("=")
            types = {"on": str, "path": str, "every": int, "after": int, "count": int, "code": int, "bytes": int,
                     "prob": float, "retry_after": float, "at": float, "seconds": float, "rate": float}  # fmt: skip
            if not eq or key not in types:
                raise ValueError(
                    f"bad fault option {item!r} in {text!r}: one of {', '.join(types)}"
                )
            values[key] = types[key](value)
        return cls(kind, **values)


class Faults:
    """The faults in force.  Thread-safe; the random ones come from a seeded generator."""

    def __init__(self, faults: list[Fault] | None = None, seed: int = 0):
        self._lock = threading.Lock()
        self._rng = random.Random(seed)
        self.rules = list(faults or [])

    def replace(self, rules: list[Fault]) -> None:
        with self._lock:
            self.rules = rules

    def strike(self, what: str, target: str) -> dict[str, Fault]:
        """The faults that strike this request, by kind."""
        out: dict[str, Fault] = {}
        with self._lock:
            for rule in self.rules:
                if rule.on not in ("all", what) or (rule.path and not re.search(rule.path, target)):
                    continue
                rule.seen += 1
                if rule.seen <= rule.after or (rule.seen - rule.after) % rule.every:
                    continue
                if (rule.count and rule.struck >= rule.count) or self._rng.random() >= rule.prob:
                    continue
                rule.struck += 1
                out[rule.kind] = rule
        return out

    def report(self) -> list[dict]:
        with self._lock:
            return [
                {"kind": r.kind, "on": r.on, "path": r.path, "seen": r.seen, "struck": r.struck}
                for r in self.rules
            ]


# --------------------------------------------------------------------------------------------
# The server


class Problem(Exception):
    """An error answer in the Hub's own form (its X-Error-Code decides the client's exception)."""

    def __init__(self, status: int, code: str, message: str, commit: str | None = None):
        super().__init__(message)
        self.status, self.code, self.message, self.commit = status, code, message, commit


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_version = "fake-hub"
    hub: FakeHub  # set on the subclass each FakeHub makes

    # -- plumbing -------------------------------------------------------------------------

    def log_message(self, format: str, *args) -> None:
        log.debug("%s %s", self.client_address[0], format % args)

    def setup(self) -> None:
        super().setup()
        self.connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def handle(self) -> None:
        try:
            super().handle()
        except (ConnectionError, TimeoutError, BrokenPipeError):
            pass  # the client went away

    def do_GET(self) -> None:
        self._answer()

    def do_HEAD(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def _answer(self) -> None:
        hub = self.hub
        split = urlsplit(self.path)
        path = split.path.replace("refs%2Fconvert%2Fparquet", CONVERTED)  # a name with slashes
        route, self.query = unquote(path), parse_qs(split.query)
        body_in = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if route.startswith("/_fake/"):
            return self._control(route, body_in)
        is_file = bool(re.search(r"/(resolve|raw)/[^/]+/.+|^/cdn/", route))
        what = "api" if not is_file else "head" if self.command == "HEAD" else "data"
        self.faults = hub.faults.strike(what, self.path)
        record = {"method": self.command, "path": self.path, "range": self.headers.get("Range"),
                  "faults": sorted(self.faults), "status": None, "bytes": 0}  # fmt: skip
        self.record = record
        try:
            if "slow" in self.faults:
                hub.sleep(self.faults["slow"].seconds)
            if "refuse" in self.faults:
                self.close_connection = True
                return
            if rule := self.faults.get("status"):
                headers = {"Retry-After": f"{rule.retry_after:g}"} if rule.retry_after else {}
                return self._send(rule.code, b"injected fault", headers)
            try:
                self._route(route, body_in)
            except Problem as p:
                headers = {"X-Error-Code": p.code, "X-Error-Message": p.message}
                if p.commit:
                    headers["X-Repo-Commit"] = p.commit
                self._json({"error": p.message}, p.status, headers)
        finally:
            hub.note(record)

    def _send(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.record["status"] = status
        self.send_response(status)
        for key, value in {
            "Content-Type": "text/plain",
            "Content-Length": str(len(body)),
            **(headers or {}),
        }.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
            self.record["bytes"] += len(body)

    def _json(self, value, status: int = 200, headers: dict[str, str] | None = None) -> None:
        self._send(
            status,
            json.dumps(value).encode(),
            {"Content-Type": "application/json; charset=utf-8", **(headers or {})},
        )

    def _flag(self, name: str) -> bool:
        return self.query.get(name, ["false"])[-1].lower() in ("1", "true")

    # -- routes ---------------------------------------------------------------------------

    def _route(self, route: str, body: bytes) -> None:
        if m := re.fullmatch(
            r"/cdn/(datasets|models)/([^/]+/[^/]+)/([0-9a-f]{40})/[0-9a-f]{64}/(.+)", route
        ):
            kind, repo, commit, path = m.groups()
            return self._file(kind, repo, path, commit, cdn=True)
        if m := re.fullmatch(r"/(?:(datasets)/)?([^/]+/[^/]+)/(resolve|raw)/([^/]+)/(.+)", route):
            kind, repo, how, revision, path = m.groups()
            self._snapshot(kind or "models", repo, revision)
            return self._file(kind or "models", repo, path, revision, in_place=how == "raw")
        if m := re.fullmatch(r"/api/(datasets|models)/?", route):
            return self._json([{"id": r} for r in self.hub.repos.list(m[1])])
        if m := re.fullmatch(
            r"/api/(datasets|models)/([^/]+/[^/]+)(?:/(revision|tree|paths-info|refs|commits)(?:/([^/]+)(?:/(.+))?)?)?",
            route,
        ):
            return self._api(*m.groups(), body)
        if re.match(r"/api/telemetry", route):
            return self._json({})
        if route == "/api/whoami-v2":
            raise Problem(401, "", "Invalid credentials in Authorization header")
        raise Problem(404, "EntryNotFound", f"fake_hub has nothing at {route}")

    def _snapshot(self, kind: str, repo: str, revision: str | None) -> Snapshot:
        snapshot = self.hub.repos.snapshot(kind, repo)
        if snapshot is None:
            raise Problem(404, "RepoNotFound", "Repository not found")
        converted = self.hub.repos.snapshot("_converted", repo)
        if converted and revision in (CONVERTED, converted.commit):
            return converted
        if (earlier := self.hub.repos.commits.get((kind, repo, revision))) is not None:
            return earlier
        if revision not in (None, "main", "HEAD"):
            raise Problem(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return snapshot

    def _api(
        self,
        kind: str,
        repo: str,
        verb: str | None,
        revision: str | None,
        path: str | None,
        body: bytes,
    ) -> None:
        snapshot = self._snapshot(kind, repo, revision)
        if verb in (None, "revision"):
            blobs = self._flag("blobs")
            siblings = [
                {"rfilename": p, **({"size": e.size, "blobId": e.blob_id,
                                     **({"lfs": {"sha256": e.sha256, "size": e.size, "pointerSize": 135}} if e.lfs else {})}
                                    if blobs else {})}
                for p, e in sorted(snapshot.files.items())
            ]  # fmt: skip
            return self._json({"_id": snapshot.commit[:24], "id": repo, "author": repo.split("/")[0], "sha": snapshot.commit,
                               "lastModified": EPOCH, "createdAt": EPOCH, "private": False, "gated": False, "disabled": False,
                               "downloads": 0, "likes": 0, "tags": [], "siblings": siblings})  # fmt: skip
        if verb == "refs":
            return self._json({"branches": [{"name": "main", "ref": "refs/heads/main", "targetCommit": snapshot.commit}],
                               "tags": [], "converts": [], "pullRequests": []})  # fmt: skip
        if verb == "commits":
            return self._json(
                [
                    {
                        "id": snapshot.commit,
                        "title": "fake_hub",
                        "message": "",
                        "date": EPOCH,
                        "authors": [],
                    }
                ]
            )
        if verb == "paths-info":
            return self._paths_info(snapshot, body)
        return self._tree(snapshot, kind, repo, revision or "main", (path or "").strip("/"))

    def _tree(self, snapshot: Snapshot, kind: str, repo: str, revision: str, path: str) -> None:
        expand, recursive = self._flag("expand"), self._flag("recursive")
        try:
            paths = snapshot.children(path, recursive)
        except KeyError:
            raise Problem(
                404, "EntryNotFound", f"{path} does not exist on {revision!r}", snapshot.commit
            ) from None
        size = self.hub.page_size if not expand else max(1, self.hub.page_size // 20)
        size = min(size, int(self.query.get("limit", [size])[-1]))
        start = int(self.query.get("cursor", ["0"])[-1])
        headers = {"X-Repo-Commit": snapshot.commit}
        if start + size < len(paths):
            query = {
                "recursive": str(recursive).lower(),
                "expand": str(expand).lower(),
                "limit": size,
                "cursor": start + size,
            }
            where = f"/api/{kind}/{repo}/tree/{quote(revision, safe='')}" + (
                f"/{quote(path)}" if path else ""
            )
            headers["Link"] = f'<{self.hub.url}{where}?{urlencode(query)}>; rel="next"'
        self._json([snapshot.info(p, expand) for p in paths[start : start + size]], headers=headers)

    def _paths_info(self, snapshot: Snapshot, body: bytes) -> None:
        if "json" in self.headers.get("Content-Type", ""):
            asked = json.loads(body or b"{}")
            paths, expand = asked.get("paths", []), bool(asked.get("expand"))
        else:
            form = parse_qs(body.decode())
            paths, expand = (
                form.get("paths", []),
                form.get("expand", ["false"])[-1].lower() in ("1", "true"),
            )
        paths = [p.strip("/") for p in ([paths] if isinstance(paths, str) else paths)]
        self._json(
            [
                snapshot.info(p, expand)
                for p in paths
                if p in snapshot.files or p in snapshot.folders
            ]
        )

    # -- file bytes -----------------------------------------------------------------------

    def _file(
        self,
        kind: str,
        repo: str,
        path: str,
        revision: str,
        *,
        cdn: bool = False,
        in_place: bool = False,
    ) -> None:
        snapshot = self._snapshot(kind, repo, revision)
        entry = snapshot.files.get(path)
        if entry is None:
            raise Problem(404, "EntryNotFound", "Entry not found", snapshot.commit)
        headers = {
            "ETag": f'"{entry.etag}"',
            "Accept-Ranges": "bytes",
            "Content-Type": "application/octet-stream",
        }
        if not cdn:
            headers["X-Repo-Commit"] = snapshot.commit
            if entry.lfs:
                headers["X-Linked-Size"], headers["X-Linked-Etag"] = (
                    str(entry.size),
                    f'"{entry.sha256}"',
                )
                if self.hub.lfs == "redirect" and not in_place:
                    where = f"{self.hub.cdn_url}/cdn/{kind}/{repo}/{snapshot.commit}/{entry.sha256}/{quote(path)}"
                    return self._send(302, b"", {**headers, "Location": where})
            headers["Content-Disposition"] = f'inline; filename="{Path(path).name}";'
        status, start, stop = 200, 0, entry.size
        asked = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range") or "")
        if asked and asked[0] != "bytes=-" and "norange" not in self.faults:
            first, last = asked.groups()
            start = int(first) if first else max(0, entry.size - int(last))
            stop = min(entry.size, int(last) + 1) if first and last else entry.size
            if start >= stop:
                return self._send(416, b"", {"Content-Range": f"bytes */{entry.size}"})
            status = 206
        if rule := self.faults.get("truncate"):
            stop = max(start, stop - rule.bytes)
        if status == 206:
            headers["Content-Range"] = f"bytes {start}-{stop - 1}/{entry.size}"
        headers["Content-Length"] = str(stop - start)
        self.record["status"] = status
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self._stream(entry, start, stop)

    def _stream(self, entry: Entry, start: int, stop: int) -> None:
        total, sent, begun = stop - start, 0, time.monotonic()
        cut = self.faults.get("drop") or self.faults.get("reset")
        stall, throttle, corrupt = (self.faults.get(k) for k in ("stall", "throttle", "corrupt"))
        with open(entry.file, "rb") as f:
            f.seek(start)
            while sent < total:
                if cut and sent >= int(total * cut.at):
                    self.close_connection = True
                    if cut.kind == "reset":
                        self.connection.setsockopt(
                            socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)
                        )
                    self.wfile.flush()
                    # shutdown, not only close: the client must see the end at once
                    if cut.kind == "drop":
                        self.connection.shutdown(socket.SHUT_RDWR)
                    self.connection.close()
                    return
                if stall and sent >= int(total * stall.at):
                    self.wfile.flush()
                    self.hub.sleep(stall.seconds)
                    stall = None
                want = min(CHUNK, total - sent)
                for rule in filter(None, (cut, stall)):  # stop exactly where the fault is due
                    want = min(want, int(total * rule.at) - sent) or want
                block = f.read(want)
                if not block:
                    self.close_connection = True  # the file shrank under us
                    return
                if corrupt and sent + len(block) > (where := int(total * corrupt.at)):
                    i = where - sent
                    block = block[:i] + bytes([block[i] ^ 0xFF]) + block[i + 1 :]
                    corrupt = None
                self.wfile.write(block)
                sent += len(block)
                self.record["bytes"] += len(block)
                if throttle and (wait := sent / throttle.rate - (time.monotonic() - begun)) > 0:
                    self.hub.sleep(wait)

    # -- control --------------------------------------------------------------------------

    def _control(self, route: str, body: bytes) -> None:
        self.record = {"status": None, "bytes": 0}
        hub = self.hub
        try:
            if route == "/_fake/stats":
                return self._json(hub.stats())
            if route == "/_fake/reset":
                hub.reset()
                return self._json({"ok": True})
            if route == "/_fake/faults":
                texts = json.loads(body or b"[]")
                hub.faults.replace([Fault.parse(t) for t in texts])
                return self._json({"ok": True, "faults": hub.faults.report()})
        except (ValueError, TypeError, re.error) as e:
            return self._json({"error": str(e)}, 400)
        self._json({"error": "no such control path"}, 404)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, request, client_address):
        if not isinstance(sys.exc_info()[1], (ConnectionError, TimeoutError, ValueError, OSError)):
            super().handle_error(request, client_address)


class FakeHub:
    """The server, for use from a test::

    with FakeHub(folder, faults=["status:code=503,every=5"]) as hub:
        env = {"HF_ENDPOINT": hub.url, ...}
    """

    def __init__(self, root, *, host: str = "127.0.0.1", port: int = 0, cdn_port: int = 0, faults=(), seed: int = 0,
                 lfs: str = "redirect", page_size: int = 1000, log_file=None):  # fmt: skip
        if lfs not in ("redirect", "inline"):
            raise ValueError("lfs: 'redirect' or 'inline'")
        self.repos = Repos(Path(root).resolve())
        if not self.repos.root.is_dir():
            raise FileNotFoundError(f"no such folder: {root}")
        self.faults = Faults([f if isinstance(f, Fault) else Fault.parse(f) for f in faults], seed)
        self.lfs, self.page_size = lfs, page_size
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._log = open(log_file, "a", buffering=1, encoding="utf-8") if log_file else None
        self.reset()
        handler = type("BoundHandler", (Handler,), {"hub": self})
        # Two listeners, so that the "CDN" is another origin, as it is for real.
        self._servers = [_Server((host, port), handler), _Server((host, cdn_port), handler)]
        self._threads: list[threading.Thread] = []

    @property
    def url(self) -> str:
        return "http://%s:%d" % self._servers[0].server_address[:2]

    @property
    def cdn_url(self) -> str:
        return "http://%s:%d" % self._servers[1].server_address[:2]

    def sleep(self, seconds: float) -> None:
        self._stopping.wait(seconds)

    def note(self, record: dict) -> None:
        with self._lock:
            self._count["requests"] += 1
            self._count["bytes"] += record["bytes"]
            key = f"{record['method']} {record['status']}"
            self._count["by_status"][key] = self._count["by_status"].get(key, 0) + 1
            for kind in record["faults"]:
                self._count["faults"][kind] = self._count["faults"].get(kind, 0) + 1
            self.requests.append(record)
            del self.requests[:-10_000]
            if self._log:
                self._log.write(
                    json.dumps({"time": datetime.now(UTC).isoformat(), **record}) + "\n"
                )

    def stats(self) -> dict:
        with self._lock:
            return {
                **json.loads(json.dumps(self._count)),
                "rules": self.faults.report(),
                "url": self.url,
                "cdn_url": self.cdn_url,
            }

    def reset(self) -> None:
        with self._lock:
            self._count: dict = {"requests": 0, "bytes": 0, "by_status": {}, "faults": {}}
            self.requests: list[dict] = []

    def start(self) -> FakeHub:
        for server in self._servers:
            thread = threading.Thread(
                target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True
            )
            thread.start()
            self._threads.append(thread)
        return self

    def stop(self) -> None:
        self._stopping.set()
        for server in self._servers:
            if self._threads:
                server.shutdown()
            server.server_close()
        for thread in self._threads:
            thread.join(timeout=5)
        self._threads.clear()
        if self._log:
            self._log.close()
            self._log = None

    def __enter__(self) -> FakeHub:
        return self.start()

    def __exit__(self, *exc) -> None:
        self.stop()


def main(argv: list[str] | None = None) -> int:
    faults = "\n".join(f"  {k:<9} {v}" for k, v in FAULT_KINDS.items())
    p = argparse.ArgumentParser(
        description="A local stand-in for the Hugging Face Hub.",
        epilog=f"faults (repeat --fault KIND[:key=value,...]; keys on, path, every, after, count, prob choose requests):\n{faults}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.add_argument("--root", required=True, help="folder holding <namespace>/<name>/ repositories")
    p.add_argument("--host", default="127.0.0.1")
    p.add_argument("--port", type=int, default=8765, help="0 picks a free one")
    p.add_argument("--cdn-port", type=int, default=0)
    p.add_argument("--port-file", help="write the chosen address here once listening")
    p.add_argument("--lfs", choices=("redirect", "inline"), default="redirect")
    p.add_argument(
        "--page-size", type=int, default=1000, help="entries in one page of a tree listing"
    )
    p.add_argument("--fault", action="append", default=[], metavar="KIND[:key=value,...]")
    p.add_argument("--seed", type=int, default=0, help="for faults with prob")
    p.add_argument("--log", help="append one JSON line for each request to this file")
    p.add_argument("-v", "--verbose", action="store_true")
    args = p.parse_args(argv)
    logging.basicConfig(level=logging.DEBUG if args.verbose else logging.INFO, format="%(message)s")
    try:
        hub = FakeHub(args.root, host=args.host, port=args.port, cdn_port=args.cdn_port, faults=args.fault, seed=args.seed,
                      lfs=args.lfs, page_size=args.page_size, log_file=args.log)  # fmt: skip
    except (ValueError, OSError) as e:
        p.error(str(e))
    with hub:
        log.info("serving %s at %s (CDN at %s)", hub.repos.root, hub.url, hub.cdn_url)
        log.info("HF_ENDPOINT=%s", hub.url)
        if args.port_file:
            tmp = Path(args.port_file + ".tmp")
            tmp.write_text(hub.url + "\n")
            tmp.replace(args.port_file)
        try:
            while True:
                time.sleep(3600)
        except KeyboardInterrupt:
            pass
    return 0


if __name__ == "__main__":
    sys.exit(main())
