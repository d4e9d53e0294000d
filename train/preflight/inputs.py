"""The inputs of a run, checked before anything is built or written."""

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch

from data_prep.dataset.manifest import MANIFEST_NAME
from data_prep.dataset.shards import check_data_set, open_data_set
from data_prep.dataset.staging import stage_data_set, staged_folder
from data_prep.order.training_data import TrainingData, open_training_data
from data_prep.order.weights import folders_and_weights
from model.config import GPTConfig
from model.precision import choose_dtype
from parallel.collectives import all_gather_object, on_main, together
from parallel.ranks import Ranks
from storage.run_folder import RunFolder
from storage.writers.trackers import check_trackers
from train.batch_plan import BatchPlan, plan_batch
from train.checkpoints.branch import check_branch, run_of_branch
from train.checkpoints.config_changes import Change, check_same_run
from train.checkpoints.disk_space import check_space, space_for_checkpoints
from train.checkpoints.recorded_config import recorded_settings
from train.checkpoints.run_position import load_position
from train.checkpoints.soundness import Resumable
from train.config import Config
from train.guards.band.record import read_band
from train.memory.host_memory import available
from train.memory.micro_batch import choose_micro_batch, recorded_micro_batch
from train.mixture import check_epochs, starts_of_run
from train.preflight.finished_run import FinishedRun, finished_run
from train.preflight.initial_weights import check_init
from train.preflight.open_sizes import (
    RecordedSizes,
    choose_validation,
    choose_warmup,
    run_length,
    with_sizes,
)
from train.preflight.threads import recorded_threads, set_threads

_COPIES = 3  # of a rank's windows: this step's, and two buffers for the next


@dataclass(frozen=True)
class Inputs:
    """What a run is made of, checked."""

    data: TrainingData
    network: GPTConfig
    """The shape of the model: as configured, with as many ids as the tokenizer of the data."""
    plan: BatchPlan
    untried: bool
    """Whether the plan's micro-batch was chosen just now, by the cost model alone."""
    steps: int
    val_tokens: int
    """Tokens of each validation: the preset's, or as many as there are."""
    warmup_steps: int | float
    """Steps of warm-up: the preset's, or fewer if the run is short."""
    changes: list[Change]
    """What differs from the run that is continued."""
    finished: bool
    """Whether this run has already reached its end, by its status."""
    last_step: int
    """The step at which it ends: the last one, or where it had stopped improving."""
    resumable: Resumable
    """What a checkpoint of the run is made of."""


def check_inputs(config: Config, ranks: Ranks) -> Inputs:
    """Check everything that can be known to be wrong before anything is built or written.

    Raises: ValueError on every rank if something is wrong on one.
    """
    recorded, threads, sizes, last = on_main(partial(_recorded_run, config, RunFolder(config.out)))
    set_threads(config, ranks, threads)
    data, network, own = together(partial(_data_and_network, config, ranks, recorded))
    micro_batch = min(all_gather_object(own))  # what fits on every rank
    inputs = together(
        partial(_check_run, config, ranks, data, network, micro_batch, recorded, sizes, last)
    )
    if config.stage is None or inputs.finished:
        return inputs
    return replace(inputs, data=_staged(inputs.data, config.stage, config, ranks))


def _recorded_run(
    config: Config, folder: RunFolder
) -> tuple[int | None, int | None, RecordedSizes, FinishedRun | None]:
    """Micro-batch and threads of the run in the folder, its open sizes, its end if it has finished.

    A new run takes all but the end of the run that it continues.
    Only rank 0 reads them: which collectives follow depends on them, and a network file system may
    show other ranks an older folder.
    """
    finished = finished_run(folder, config.stop_when_worse)
    if config.branch is not None and not folder.config.is_file():
        folder, _ = run_of_branch(config.branch)
    sizes = RecordedSizes.of(recorded_settings(folder))
    return recorded_micro_batch(folder), recorded_threads(folder), sizes, finished


def _data_and_network(
    config: Config, ranks: Ranks, recorded: int | None
) -> tuple[TrainingData, GPTConfig, int]:
    """Data, shape, and the micro-batch that this rank would take."""
    missing = [
        place.folder
        for place in folders_and_weights(config.data)
        if not (place.folder / MANIFEST_NAME).is_file()
    ]
    if missing and RunFolder(config.out).config.is_file():
        raise ValueError(
            f"there is no data set at {missing[0]}, which the run in {config.out} is to read; "
            "give --data FOLDER with the place of its data"
        )
    data = open_training_data(config.data)
    network = config.network_for(data.tokenizer().n_vocab)
    return data, network, choose_micro_batch(config, network, ranks, recorded)


def _check_run(
    config: Config,
    ranks: Ranks,
    data: TrainingData,
    network: GPTConfig,
    micro_batch: int,
    recorded: int | None,
    sizes: RecordedSizes,
    last: FinishedRun | None,
) -> Inputs:
    _check_residual(config, ranks)
    _check_tuning(config)
    _check_reduction(config)
    plan = plan_batch(config, ranks.world_size, micro_batch)
    _check_training_tokens(data, plan)
    _check_batch_memory(plan, ranks, data.token_bytes)
    steps = run_length(config, data, plan)
    check_epochs(config, data, steps)
    val_tokens = choose_validation(config, data, plan.context_length, sizes)
    warmup_steps = choose_warmup(config, steps, sizes)
    config = with_sizes(config, val_tokens, warmup_steps, steps)
    folder, parent = RunFolder(config.out), None
    if config.branch is not None and not folder.config.is_file():
        parent = check_branch(config.branch, steps, data.fingerprint)
        _, checkpoint = run_of_branch(config.branch)
        starts_of_run(config, plan, load_position(checkpoint))  # refuses others than were read
    if config.init is not None and not (parent or folder).all_checkpoints():
        check_init(config.init, data.sources[0].data, network)
    if config.stage is None:
        _check_shards(data, config, ranks)
    if not folder.config.is_file() and (config.out / MANIFEST_NAME).is_file():
        raise ValueError(
            f"--out {config.out} is a data set; choose another folder, such as runs/demo"
        )
    defaults = Config(optimizer=type(config.optimizer)()).as_json(network, micro_batch)
    now = config.as_json(network, micro_batch)
    changes = check_same_run(folder, now, defaults, config.allow, parent)
    check_space(space_for_checkpoints(folder, config, network, steps))
    config.eval.options(micro_batch, config.dtype)  # which checks that its files exist
    check_trackers(config.log.to)
    if isinstance(config.guard.band, Path) and not folder.config.is_file():
        read_band(config.guard.band)  # a run that continues does not end for it
    untried = config.micro_batch == "auto" and recorded is None
    return Inputs(
        data,
        network,
        plan,
        untried,
        steps,
        val_tokens,
        warmup_steps,
        changes,
        finished=last is not None and (last.stopped or last.step == steps),
        last_step=last.step if last is not None and last.stopped else steps,
        resumable=Resumable(network, config.optimizer),
    )


def _check_batch_memory(plan: BatchPlan, ranks: Ranks, token_bytes: int) -> None:
    """Raises: ValueError if the windows of a step do not fit in the memory of this machine."""
    share = plan.windows // plan.world_size * ranks.local_world_size
    needed = _COPIES * share * (plan.context_length + 1) * token_bytes
    if needed > (free := available()):
        raise ValueError(
            f"batch_tokens={plan.tokens} takes {needed / 1e9:.1f} GB of memory on each machine for "
            f"the windows of a step, and {free / 1e9:.1f} GB are available; give a smaller "
            "--batch-tokens"
        )


def _check_residual(config: Config, ranks: Ranks) -> None:
    if config.residual == "bfloat16" and choose_dtype(config.dtype, ranks.device) == torch.float32:
        raise ValueError(
            f"residual=bfloat16 with dtype={config.dtype}, which is float32 on {ranks.device.type}"
            ", would only lose precision; give --dtype bfloat16 or --residual float32"
        )


def _check_tuning(config: Config) -> None:
    if config.compile == "max" and config.deterministic:
        raise ValueError(
            "compile=max chooses kernels by measuring them, which may end differently at each "
            "start, but --deterministic asks for the same bits; give --compile on, or leave out "
            "--deterministic"
        )


def _check_reduction(config: Config) -> None:
    if config.reduction == "tree" and config.gradient_compression == "bfloat16":
        raise ValueError(
            "gradient_compression=bfloat16 rounds what --reduction tree defines exactly; give "
            "--gradient-compression none or --reduction ddp"
        )


def _check_shards(data: TrainingData, config: Config, ranks: Ranks) -> None:
    for source in data.sources:
        share = (ranks.local_rank, ranks.local_world_size)
        check_data_set(source.data, config.data_check, share)


def _staged(data: TrainingData, stage: Path, config: Config, ranks: Ranks) -> TrainingData:
    """The copies of the data sets on this machine's own disk. One rank copies, all ranks check."""

    def copy() -> None:
        if ranks.local_rank == 0:
            for source in data.sources:
                stage_data_set(source.data, stage)

    def checked_copies() -> TrainingData:
        folders = (staged_folder(source.data, stage) for source in data.sources)
        copies = data.over(map(open_data_set, folders))
        _check_shards(copies, config, ranks)
        return copies

    together(copy)
    return together(checked_copies)


def _check_training_tokens(data: TrainingData, plan: BatchPlan) -> None:
    """Raises: ValueError if a data set holds not even one window."""
    for source in data.sources:
        if source.tokens <= plan.context_length:
            raise ValueError(
                f"context_length={plan.context_length} needs {plan.context_length + 1} training "
                f"tokens and {source.data.folder} has {source.tokens}; give a smaller "
                "--context-length or more data"
            )
