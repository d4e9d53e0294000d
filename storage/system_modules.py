"""Modules that some systems lack; one sentence there names those that Ratchet runs on."""

import sys

from storage.exit_codes import USER_ERROR

try:
    import fcntl
    import resource
except ImportError as error:
    sys.stderr.write(
        "error: Ratchet runs on Linux (and on macOS, without GPUs), and this system "
        f"({sys.platform}) lacks {error.name}; on Windows use WSL 2\n"
    )
    raise SystemExit(USER_ERROR) from None

# Under names of this file, so that nothing imports the modules before they are known to exist.
FCNTL = fcntl
RESOURCE = resource
