"""Train a language model.

    torchrun --nproc_per_node=8 train/main.py [PRESET] [--data ...] [--out ...] [--help]

Data set folder in, run folder with checkpoints, metrics and samples out. Again: it continues.
"""

import logging
import sys

import tyro

from parallel.ranks import quiet_other_ranks, start, stop, user_errors
from train.build import build_run
from train.config import Config
from train.ending import early_stop_noted, finish
from train.inputs import check_inputs
from train.preemption import StopSignal
from train.presets import PRESETS, check_one_length
from train.rehearsal import rehearse
from train.report import finished_notice

log = logging.getLogger("train")


def parse(
    arguments: list[str],
    prog: str = "train/main.py",
    description: str = "Train a language model.",
) -> Config:
    """The configuration on the command line: a preset's name (or none), then changes to it.

    `prog` and `description` are of the script whose command line it is.
    """
    names = ", ".join(PRESETS)
    named = bool(arguments) and not arguments[0].startswith("-")
    preset = arguments[0] if named else "gpt2"
    if preset not in PRESETS:
        raise ValueError(f"preset {preset} is not known; choose one of {names}")
    config = tyro.cli(
        Config,
        default=PRESETS[preset],
        args=arguments[1:] if named else arguments,
        prog=f"{prog} {preset}",
        description=f"{description} First word, default gpt2: {names}.",
        config=(tyro.conf.FlagConversionOff,),
    )
    check_one_length(config, PRESETS[preset])
    return config


def main() -> None:
    """Check, build, train, report."""
    quiet_other_ranks()
    asked = StopSignal()
    asked.listen()
    with user_errors():
        config = parse(sys.argv[1:])
        with early_stop_noted(config.out, asked):
            ranks = start(config.device, deterministic=config.deterministic, watched=True)
            inputs = check_inputs(config, ranks)
            run = None if inputs.finished else build_run(config, ranks, inputs, asked)
            if run is not None:
                rehearse(run)
    if run is None:
        log.info("%s", finished_notice(config.out, inputs.steps))
        code = 0
    else:
        code = finish(run)
    del run  # before the process group that its replica belongs to, see stop()
    stop()
    if code:
        sys.exit(code)


if __name__ == "__main__":
    main()
