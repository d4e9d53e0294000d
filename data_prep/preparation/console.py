"""Console output of the data scripts: progress bar, summary, one sentence for an error."""

import errno
import logging
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tqdm import tqdm

from data_prep.dataset.manifest import SplitEntry
from data_prep.dataset.shards import DataSet
from storage.terminal.quantities import counted, data_size
from storage.terminal.standard_output import tolerate_lost_output
from storage.user_errors import exit_on_user_error, os_error_text

log = logging.getLogger(__name__)

_INTERRUPTED = 130  # 128 + SIGINT, the exit code of a shell
_MAKE_ROOM = "make room and run it again: finished units are kept"
_CURES = {
    errno.ENOSPC: _MAKE_ROOM,
    errno.EDQUOT: _MAKE_ROOM,
    errno.ENAMETOOLONG: "choose a shorter name: with what is added to it, such as .partial, a file "
    "system takes at most 255 bytes",
}
_BAD_RECORDS_SHOWN = 5
_SECONDS_BETWEEN_LINES = 30.0  # when standard error is a file, where each refresh is a new line


class ProgressBar:
    """Progress in bytes of text, with documents/s, tokens/s and the remaining time."""

    def __init__(self, text_bytes: int, done_bytes: int) -> None:
        on_terminal = sys.stderr.isatty()
        self._bar = tqdm(
            total=text_bytes,
            initial=done_bytes,
            unit="B",
            unit_scale=True,
            desc="text",
            mininterval=0.2 if on_terminal else _SECONDS_BETWEEN_LINES,
        )
        self._start = time.monotonic()
        self.documents = self.tokens = self.text_bytes = 0

    @property
    def seconds(self) -> float:
        """Seconds since the bar was made."""
        return max(time.monotonic() - self._start, 1e-9)

    def add(self, documents: int, tokens: int, text_bytes: int) -> None:
        """Add finished work."""
        self.documents += documents
        self.tokens += tokens
        self.text_bytes += text_bytes
        rates = f"{self.documents / self.seconds:,.0f} documents/s, "
        rates += f"{self.tokens / self.seconds:,.0f} tokens/s"
        self._bar.set_postfix_str(rates, refresh=False)
        self._bar.update(text_bytes)

    def close(self) -> None:
        """End the bar and leave its last state on the screen."""
        self._bar.close()


def log_summary(data: DataSet, bar: ProgressBar | None, passed_over: int) -> None:
    """Log what the data set holds, and the speed if it was made by this process."""
    manifest = data.manifest
    read = counted(len(manifest.source.files), "source file")
    log.info("%s", f"{read} read, {passed_over:,} passed over")
    target = manifest.split_rule["val_tokens"]
    for name, split in (("train", manifest.train), ("val", manifest.val)):
        goal = f" (target {target:,})" if name == "val" and target else ""
        log.info("%s", _split_line(name, split) + goal)
    found = manifest.duplicates
    if manifest.skipped_empty:
        log.info("%s", f"{counted(manifest.skipped_empty, 'empty document')} skipped")
    if found.normalised:
        copies = counted(found.normalised, "copy of another document", "copies of other documents")
        log.info("%s", f"{copies}, {found.exact:,} exact")
    if manifest.bad_records:
        bad = counted(manifest.bad_records, "bad record")
        log.info("%s", f"{bad} left out (see manifest.json):")
        for entry in manifest.first_bad_records[:_BAD_RECORDS_SHOWN]:
            log.info("  %s, %s: %s", entry.file, entry.place, entry.reason)
    if bar is not None:
        size, rate = data_size(bar.text_bytes), data_size(bar.text_bytes / bar.seconds)
        tokens = f"{bar.tokens / bar.seconds:,.0f} tokens/s"
        log.info("%s of text in %.1f s: %s/s, %s", size, bar.seconds, rate, tokens)
    log.info("data set %s in %s", data.fingerprint[:16], data.folder)


def _split_line(name: str, split: SplitEntry) -> str:
    parts = (
        counted(split.tokens, "token"),
        counted(split.documents, "document"),
        counted(split.text_bytes, "byte"),
        counted(len(split.shards), "shard"),
    )
    return f"{name:5}  {', '.join(parts)}"


def run_script(work: Callable[[], object]) -> None:
    """Run a script: a user error is printed as one sentence, with exit code 2; Ctrl-C gives 130."""
    tolerate_lost_output()
    # Of the libraries only warnings are shown: huggingface_hub's HTTP client logs every request.
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stdout)
    logging.getLogger("data_prep").setLevel(logging.INFO)
    try:
        with exit_on_user_error(ValueError, OSError), _cures_of_system_errors():
            work()
    except KeyboardInterrupt:
        sys.stderr.write("interrupted: finished units are kept; run the same command to continue\n")
        sys.exit(_INTERRUPTED)


@contextmanager
def _cures_of_system_errors() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        cure = _CURES.get(error.errno or 0)
        if cure is None:
            raise
        raise ValueError(os_error_text(error, cure)) from error
