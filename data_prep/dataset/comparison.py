"""Compares files of a data set with its manifest, several at a time, as the disk holds them."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from tqdm import tqdm

from data_prep.dataset.disk_reading import hash_file_from_disk
from data_prep.dataset.shards import DataSet


def differing_files(data: DataSet, digests: Sequence[tuple[str, str]], threads: int) -> list[str]:
    """A sentence for each file, given as its name and sha256 by the manifest, that differs."""
    paths = [data.folder / name for name, _ in digests]
    sizes = [path.stat().st_size for path in paths]
    found = []
    with (
        tqdm(total=sum(sizes), unit="B", unit_scale=True, desc="bytes") as bar,
        ThreadPoolExecutor(threads) as pool,
    ):
        hashed = pool.map(hash_file_from_disk, paths)
        for path, (_, expected), size, (digest, same) in zip(
            paths, digests, sizes, hashed, strict=True
        ):
            bar.update(size)
            if digest != expected:
                found.append(f"{path} has sha256 {digest}, the manifest says {expected}")
            elif not same:
                found.append(
                    f"{path} is right on the disk, but this machine's memory held other bytes of "
                    "it until now; have its memory tested"
                )
    return found
