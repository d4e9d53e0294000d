"""Fingerprints, and digests that are computed again only for a changed file."""

import os
import time

import pytest

from storage import digest
from storage.digest import DigestCache, file_sha256, fingerprint


def test_a_fingerprint_ignores_the_order_of_keys():
    assert fingerprint({"a": 1, "b": [2]}) == fingerprint({"b": [2], "a": 1})
    assert fingerprint({"a": 1}) != fingerprint({"a": 2})


def test_a_digest_is_recomputed_only_when_the_file_changed(tmp_path):
    file = tmp_path / "shard"
    file.write_bytes(b"one")
    cache = DigestCache(tmp_path / "digests.json")
    first = cache.sha256(file)
    cache.known[file.name][-1] = "remembered"
    assert cache.sha256(file) == "remembered"
    file.write_bytes(b"two!")
    assert cache.sha256(file) == file_sha256(file) != first


@pytest.mark.fault("D10", injected="a file changed in place, size and modification time kept")
def test_a_file_changed_in_place_whose_time_was_set_back_is_hashed_again(tmp_path, monkeypatch):
    monkeypatch.setattr(digest, "_COARSEST_CLOCK_NS", 0)
    file = tmp_path / "shard"
    file.write_bytes(b"one")
    cache = DigestCache(tmp_path / "digests.json")
    cache.sha256(file)
    cache.save()
    before = file.stat()
    time.sleep(0.02)  # two ticks of the coarsest clock that file systems of Linux use
    with file.open("r+b") as open_file:
        open_file.write(b"two")
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    again = DigestCache(tmp_path / "digests.json")
    assert again.known.keys() == {"shard"}
    assert again.sha256(file) == file_sha256(file)
    assert file.stat().st_mtime_ns == before.st_mtime_ns


def test_the_digest_of_a_file_changed_a_moment_ago_is_not_kept_for_the_next_start(tmp_path):
    file = tmp_path / "shard"
    file.write_bytes(b"one")
    cache = DigestCache(tmp_path / "digests.json")
    cache.sha256(file)
    cache.save()
    assert DigestCache(tmp_path / "digests.json").known == {}


@pytest.mark.parametrize(
    "content",
    [
        *("[]", "null", "{", '{"shard": 5}', '{"shard": []}', '{"shard": [1, 2, 3, 4, 5]}'),
        '{"shard": [3, 1, 2, "a digest without the change time"]}',
    ],
)
def test_a_damaged_cache_of_digests_only_costs_time(tmp_path, content):
    (tmp_path / "shard").write_bytes(b"one")
    (tmp_path / "digests.json").write_text(content)
    cache = DigestCache(tmp_path / "digests.json")
    assert cache.sha256(tmp_path / "shard") == file_sha256(tmp_path / "shard")
