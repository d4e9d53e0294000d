"""Fingerprints, and digests that are computed again only for a changed file."""

import pytest

from storage.digest import DigestCache, file_sha256, fingerprint


def test_a_fingerprint_ignores_the_order_of_keys():
    assert fingerprint({"a": 1, "b": [2]}) == fingerprint({"b": [2], "a": 1})
    assert fingerprint({"a": 1}) != fingerprint({"a": 2})


def test_a_digest_is_recomputed_only_when_the_file_changed(tmp_path):
    file = tmp_path / "shard"
    file.write_bytes(b"one")
    cache = DigestCache(tmp_path / "digests.json")
    first = cache.sha256(file)
    cache.known[file.name][3] = "remembered"
    assert cache.sha256(file) == "remembered"
    file.write_bytes(b"two!")
    assert cache.sha256(file) == file_sha256(file) != first


@pytest.mark.parametrize(
    "content", ["[]", "null", '{"shard": 5}', '{"shard": []}', '{"shard": [1, 2, 3, 4]}', "{"]
)
def test_a_damaged_cache_of_digests_only_costs_time(tmp_path, content):
    (tmp_path / "shard").write_bytes(b"one")
    (tmp_path / "digests.json").write_text(content)
    cache = DigestCache(tmp_path / "digests.json")
    assert cache.sha256(tmp_path / "shard") == file_sha256(tmp_path / "shard")
