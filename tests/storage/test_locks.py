"""A file system without locks is reported and used."""

import errno
import fcntl

from storage.run_folder import RunFolder


def test_a_file_system_without_locks_is_reported_and_used(tmp_path, monkeypatch, caplog):
    def no_locks(file, operation):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    run = RunFolder(tmp_path)
    run.lock()
    run.unlock()
    assert "see to it yourself that nothing is started twice there" in caplog.text
