"""train/main.py with slow steps, whose rank 1 exits once after its 20th update.

The environment variable LEAVE decides how: "exit" with code 0, or "raise" an error.
"""

import os
import time
from weakref import WeakKeyDictionary

from torch.optim.optimizer import register_optimizer_step_post_hook

from train.main import main

STEP_SECONDS = 0.02
LEAVES_AFTER = 20


def leave(how):
    """End this rank with code 0, or by an error."""
    if how == "exit":
        os._exit(0)
    raise RuntimeError("an error of rank 1")


if __name__ == "__main__":
    how = os.environ.get("LEAVE", "")
    is_it = os.environ["RANK"] == "1" and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0"
    # By optimizer: the check of the skip flag makes a few updates of tiny networks.
    updates = WeakKeyDictionary()

    def after_update(optimizer, *_):
        updates[optimizer] = updates.get(optimizer, 0) + 1
        time.sleep(STEP_SECONDS)
        if how and is_it and updates[optimizer] == LEAVES_AFTER:
            leave(how)

    register_optimizer_step_post_hook(after_update)
    main()
