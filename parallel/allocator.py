"""glibc's allocator on the CPU: large blocks stay with the process instead of going back each time.

By default glibc maps a block above 32 MiB, such as float32 logits, anew each time it is asked for,
and the kernel clears every page of it: more system time than the arithmetic takes.
"""

import ctypes
import platform

# Parameters of mallopt(3), from glibc's malloc.h.
M_TOP_PAD = -2
M_MMAP_MAX = -4
KEPT_BYTES = 256 * 2**20  # free ones at the heap's end; what is beyond goes back to the kernel


def keep_large_blocks() -> bool:
    """From now on freed memory is used again by this process; whether the allocator can do so.

    What torch has allocated before stays as it is. Without glibc nothing happens.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    # No block has a mapping of its own. To keep all free memory would raise the peak.
    return bool(mallopt(M_MMAP_MAX, 0)) and bool(mallopt(M_TOP_PAD, KEPT_BYTES))
