"""Train a language model.

    torchrun --nproc_per_node=8 train/main.py [PRESET] [--data ...] [--out ...] [--help]

Data set folder in, run folder with checkpoints, metrics and samples out. Again: it continues.
"""

import logging
import sys

import tyro

from parallel.ranks import quiet_other_ranks, start, stop, user_errors
from train.config import Config
from train.inputs import check_inputs
from train.loop import train
from train.presets import PRESETS
from train.report import finished_notice, write_report
from train.run import Run, build_run

log = logging.getLogger("train")


def parse(arguments: list[str]) -> Config:
    """The configuration on the command line: a preset's name (or none), then changes to it."""
    names = ", ".join(PRESETS)
    named = bool(arguments) and not arguments[0].startswith("-")
    preset = arguments[0] if named else "gpt2"
    if preset not in PRESETS:
        raise ValueError(f"preset {preset} is not known; choose one of {names}")
    return tyro.cli(
        Config,
        default=PRESETS[preset],
        args=arguments[1:] if named else arguments,
        prog=f"train/main.py {preset}",
        description=f"Train a language model. First word, default gpt2: {names}.",
        config=(tyro.conf.FlagConversionOff,),
    )


def finish(run: Run) -> None:
    """Train what is left, and leave a folder that says how it ended."""
    state, reason = "failed", ""
    try:
        run.stop.listen()
        state = train(run)
        reason = run.stop.reason
    except BaseException as error:
        reason = f"{type(error).__name__}: {error}"
        raise
    finally:
        if run.ranks.is_main:
            run.folder.write_status(state, run.step, reason)
        run.close()
    if run.ranks.is_main:
        log.info("\n%s at step %d\n%s", state, run.step, write_report(run))


def main() -> None:
    """Check, build, train, report."""
    quiet_other_ranks()
    with user_errors():
        config = parse(sys.argv[1:])
        ranks = start(config.device)
        inputs = check_inputs(config, ranks)
        run = None if inputs.finished else build_run(config, ranks, inputs)
    if run is None:
        log.info("%s", finished_notice(config.out, inputs.steps))
    else:
        finish(run)
    stop()


if __name__ == "__main__":
    main()
