"""train/main.py with steps of at least PACE seconds, so that a fault happens in the run."""

import os
import time

from torch.optim.optimizer import register_optimizer_step_post_hook

from train.main import main

if __name__ == "__main__":
    pace = float(os.environ["PACE"])
    register_optimizer_step_post_hook(lambda *_: time.sleep(pace))
    main()
