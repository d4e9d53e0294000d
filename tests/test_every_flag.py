"""Every flag of every script, generated from the parsers themselves."""

import json

from tests.launching import python


def test_a_path_may_begin_with_the_home_folder_in_every_option_of_every_script(tmp_path):
    (tmp_path / "x").touch()
    done = python("tests/programs/home_paths.py", HOME=str(tmp_path))
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert len(found) > 70
    assert {option: path for option, path in found.items() if path != str(tmp_path / "x")} == {}
