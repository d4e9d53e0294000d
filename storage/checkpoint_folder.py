"""A checkpoint folder as a set of files: its manifest, its verification, the step in its name."""

from pathlib import Path

from storage.atomic import read_json, write_json
from storage.digest import file_sha256

MANIFEST = "MANIFEST.json"
MANIFEST_FORMAT = 1


def _free_name(path: Path) -> Path:
    number = 1
    free = path
    while free.exists():
        number += 1
        free = path.with_name(f"{path.name}{number}")
    return free


def write_manifest(folder: Path) -> None:
    """Write the digest of every file below `folder` into its MANIFEST.json."""
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p.name != MANIFEST)
    entries = {
        str(p.relative_to(folder)): {"bytes": p.stat().st_size, "sha256": file_sha256(p)}
        for p in files
    }
    write_json(folder / MANIFEST, {"format": MANIFEST_FORMAT, "files": entries})


def verify_checkpoint(folder: Path) -> None:
    """Check every file of a checkpoint against its manifest.

    Raises: ValueError naming the first file that is missing or differs.
    """
    if not folder.is_dir():
        raise ValueError(
            f"there is no checkpoint at {folder}; a run's are in its checkpoints/, "
            "once it has saved"
        )
    if not (folder / MANIFEST).is_file():
        raise ValueError(
            f"{folder} is not a whole checkpoint (no {MANIFEST}); "
            "give a folder such as runs/gpt2/checkpoints/latest"
        )
    for name, size, digest in _manifest_entries(folder / MANIFEST):
        path = folder / name
        if not path.resolve().is_relative_to(folder.resolve()):
            raise ValueError(f"{path} is a link that leads outside its folder; do not use it")
        if not path.is_file():
            raise ValueError(f"{path} is missing, so this checkpoint is damaged; use another one")
        if path.stat().st_size != size or file_sha256(path) != digest:
            raise ValueError(
                f"{path} differs from its digest in {MANIFEST}, so this checkpoint is damaged; "
                "use another one"
            )


def _manifest_entries(manifest: Path) -> list[tuple[str, int, str]]:
    """Name, size and sha256 of every file that a manifest lists.

    Raises: ValueError if it is not a manifest, or names a file outside its folder.
    """
    found = read_json(manifest)
    try:
        version = found["format"]
        entries = [(name, e["bytes"], e["sha256"]) for name, e in found["files"].items()]
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{manifest} is not a manifest ({error!r}); it is damaged") from error
    if version != MANIFEST_FORMAT:
        raise ValueError(
            f"{manifest} is of format {version}, this version reads {MANIFEST_FORMAT}; it is "
            "damaged, or update Ratchet"
        )
    for name, _, _ in entries:
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise ValueError(f"{manifest} names {name}, which is outside its folder; do not use it")
    return entries


def step_of(checkpoint: Path) -> int:
    """The step in a checkpoint's name."""
    return int(checkpoint.name.removeprefix("step_"))
