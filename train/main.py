"""Train a language model.

    torchrun --standalone --nproc_per_node=8 train/main.py [PRESET] [--data ...] [--out ...]
    torchrun --standalone --nproc_per_node=8 train/main.py --continue runs/gpt2 [flags]

Reads a data set folder, writes a run folder with checkpoints, metrics and samples. The same command
again continues the run, as --continue does with the recorded settings.
"""

import logging
import sys

from parallel.ranks import exit_on_interrupt, silence_other_ranks, start, stop, user_errors
from parallel.stop_signals import StopRequest
from train.build import build_run
from train.command_line.parse import parse
from train.preflight.dry_run import dry_run
from train.preflight.inputs import check_inputs
from train.recovery.ending import finish, record_early_preemption
from train.recovery.run_folder_start import confirm_finished
from train.reporting.closing_table import finished_notice

log = logging.getLogger("train")


def main() -> None:
    """Check, build, train, report."""
    silence_other_ranks()
    stop_request = StopRequest()
    stop_request.listen()
    with user_errors():
        config = parse(sys.argv[1:])
        with record_early_preemption(config.out, stop_request):
            ranks = start(
                config.device, deterministic=config.deterministic, watched=True, whole_job=True
            )
            inputs = check_inputs(config, ranks)
            if inputs.finished and not confirm_finished(
                config.out, inputs.last_step, inputs.resumable
            ):
                inputs = check_inputs(config, ranks)
            run = None if inputs.finished else build_run(config, ranks, inputs, stop_request)
            if run is not None:
                dry_run(run)
    with exit_on_interrupt():  # also one that comes after the end of the run
        if run is None:
            log.info("%s", finished_notice(config.out, inputs.steps, inputs.last_step))
            code = 0
        else:
            code = finish(run)
        del run  # its DDP replica must be freed before the process group, see stop()
        stop()
    if code:
        sys.exit(code)


if __name__ == "__main__":
    main()
