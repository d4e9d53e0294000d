"""Records of tiny runs that are edited afterwards, as a forger would.

`seal` computes manifests, digests and chain again over whatever a folder now says, as a forger
would who knows them.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from storage.atomic import read_json, write_json
from storage.checkpoint_folder import step_of, write_manifest
from storage.records.line_digest import LineDigest
from storage.run_folder import RunFolder
from train.auditing.recorded_run import read_recorded_run
from train.checkpoints.state_digest import (
    append_digest,
    chain_digest,
    deciding_settings,
    position_digest,
    read_digest,
    saved_tensors,
    tensors_digest,
)

EVERY = 4  # steps between checkpoints of the runs
STEPS = 24
AT = 12  # the checkpoint, and the first step, that are forged
Change = Callable[[Path], None]


def seal(folder: Path, chain: bool) -> None:
    """Write manifests that fit, and with `chain` all digests too."""
    run = RunFolder(folder)
    if not chain:
        for checkpoint in run.all_checkpoints():
            write_manifest(checkpoint)
        return
    recorded = read_recorded_run(folder)
    run.digests.unlink()
    run.lock()
    previous, began = "", None
    for checkpoint in sorted((folder / "checkpoints").glob("step_??????"), key=step_of):
        state, step = read_json(checkpoint / "state.json"), step_of(checkpoint)
        record = read_digest(checkpoint)
        assert record is not None
        began = record["began"] if began is None else began
        lines = LineDigest.begin(began["step"], began["weights"])
        for at in sorted(recorded.lines):
            if at < step:
                lines.add(recorded.lines[at])
        record |= {
            "step": step,
            "run_id": state["run_id"],
            "tensors": tensors_digest(saved_tensors(checkpoint)),
            "position": position_digest(state),
            "lines": lines.value,
            "lines_until": lines.until,
            "settings": deciding_settings(recorded.record["config"]),
            "previous": previous,
        }
        previous = record["digest"] = chain_digest(record)
        write_json(checkpoint / "digest.json", record)
        write_manifest(checkpoint)
        append_digest(run, record)
    run.unlock()


# --- records that are edited --------------------------------------------------------------------


def _checkpoint(folder: Path, step: int = AT) -> Path:
    return folder / "checkpoints" / f"step_{step:06d}"


def change_tensors(file: str, change: Callable[[dict[str, Tensor]], object]) -> Change:
    def edit(folder: Path) -> None:
        tensors = load_file(_checkpoint(folder) / file)
        change(tensors)
        save_file(tensors, _checkpoint(folder) / file)

    return edit


def add_to_one(name: str, value: float) -> Callable[[dict[str, Tensor]], object]:
    return lambda tensors: tensors[name].view(-1)[7].add_(value)


def change_json(name: str, change: Callable[[dict[str, Any]], object]) -> Change:
    def edit(folder: Path) -> None:
        path = next(p for p in (folder / name, _checkpoint(folder) / name) if p.exists())
        found = read_json(path)
        change(found)
        write_json(path, found)

    return edit


def change_lines(change: Callable[[list[dict[str, Any]]], object]) -> Change:
    def edit(folder: Path) -> None:
        path = folder / "metrics.jsonl"
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        change(lines)
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))

    return edit


def set_in_line(step: int, key: str, value: Callable[[Any], Any]) -> Change:
    def change(lines: list[dict[str, Any]]) -> None:
        line = next(line for line in lines if line["step"] == step)
        line[key] = value(line[key])

    return change_lines(change)


def set_in_config(group: str, key: str, value: Any) -> Change:
    def change(found: dict[str, Any]) -> None:
        (found["config"][group] if group else found["config"])[key] = value

    return change_json("config.json", change)


def average_with_before(folder: Path) -> None:
    for name in ("model.safetensors", "optimizer.safetensors"):
        paths = [_checkpoint(folder, step) / name for step in (AT - EVERY, AT)]
        one, other = map(load_file, paths)
        save_file({k: (one[k] + other[k]) / 2 for k in one}, paths[1])


def state_of_before(folder: Path) -> None:
    """The state of the step before under the name of this one."""
    for name in ("model.safetensors", "optimizer.safetensors"):
        shutil.copy(_checkpoint(folder, AT - EVERY) / name, _checkpoint(folder) / name)


def sibling_checkpoint(folder: Path) -> None:
    shutil.rmtree(_checkpoint(folder))
    shutil.copytree(_checkpoint(folder.with_name("sibling")), _checkpoint(folder))
    run_id = read_json(folder / "config.json")["run_id"]
    change_json("state.json", lambda s: s.update(run_id=run_id, seed=1337))(folder)


def without_steps(folder: Path) -> None:
    """The steps from AT to the next checkpoint are cut out, and the later ones renumbered."""

    def cut(lines: list[dict[str, Any]]) -> None:
        kept = [line for line in lines if not AT <= line["step"] < AT + EVERY]
        for line in kept:
            line["step"] -= EVERY * (line["step"] >= AT)
        lines[:] = kept

    change_lines(cut)(folder)
    shutil.rmtree(_checkpoint(folder, AT))
    for step in range(AT + EVERY, STEPS + 1, EVERY):
        target = _checkpoint(folder, step - EVERY)
        _checkpoint(folder, step).rename(target)
        state = read_json(target / "state.json")
        write_json(target / "state.json", state | {"step": step - EVERY})
    for name, key in (("config.json", "run"), ("config.json", "config")):
        change_json(name, lambda c, key=key: c[key].update(steps=STEPS - EVERY))(folder)
    change_json("status.json", lambda s: s.update(step=STEPS - EVERY))(folder)


def longer_training(folder: Path) -> None:
    """The last checkpoint is that of a run which trained EVERY steps more."""
    longer = _checkpoint(folder.with_name("longer"), STEPS + EVERY)
    for name in ("model.safetensors", "optimizer.safetensors"):
        shutil.copy(longer / name, _checkpoint(folder, STEPS) / name)


def other_data_claimed(folder: Path) -> None:
    """Trained on other data; the records claim the data set of the honest runs."""
    claimed = read_json(folder.with_name("honest") / "config.json")
    for key in ("data_fingerprint",):
        change_json("config.json", lambda c, key=key: c.update({key: claimed[key]}))(folder)
    data = claimed["config"]["data"]
    set_in_config("", "data", data)(folder)
    for checkpoint in (folder / "checkpoints").glob("step_??????"):
        state = read_json(checkpoint / "state.json")
        changed = {"data": data, "data_fingerprint": claimed["data_fingerprint"]}
        write_json(checkpoint / "state.json", state | changed)


def as_float32(folder: Path) -> None:
    """A run in bfloat16 that claims float32 everywhere."""
    set_in_config("", "dtype", "float32")(folder)
    for name in ("config.json", "starts.jsonl"):
        path = folder / name
        path.write_text(path.read_text().replace('"bfloat16"', '"float32"'))


def other_seed_claimed(folder: Path) -> None:
    """Every record says another seed."""
    set_in_config("", "seed", 7)(folder)
    for path in (folder / "checkpoints").glob("step_??????/state.json"):
        write_json(path, read_json(path) | {"seed": 7})


def lower_validation(step: int) -> Change:
    """A validation loss is lower by 0.01, in its line and in its checkpoint."""

    def edit(folder: Path) -> None:
        set_in_line(step, "val/loss", lambda loss: loss - 0.01)(folder)
        path = _checkpoint(folder, step) / "results.json"
        results = read_json(path)
        results["metrics"]["val/loss"] -= 0.01
        write_json(path, results)

    return edit
