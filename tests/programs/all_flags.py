"""Prints, as JSON, the names of all options of all scripts."""

import json
import sys

from tests.script_flags import COMMANDS, SCRIPTS, flags_of

if __name__ == "__main__":
    names = {
        flag.name
        for script in SCRIPTS
        for command in COMMANDS.get(script, ("",))
        for flag in flags_of(script, command)
    }
    sys.stdout.write(json.dumps(sorted(names)))
