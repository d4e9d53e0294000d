"""Makes glibc's allocator keep large freed blocks on the CPU instead of returning them.

By default glibc maps a block above 32 MiB, such as float32 logits, anew for each allocation, and
the kernel clears every page of it. Keeping the blocks made the demo's forward and backward passes
1.5 to 1.7 times as fast (bench/LOG.md).
"""

import ctypes
import platform

# Parameters of mallopt(3), from glibc's malloc.h.
_M_TOP_PAD = -2
_M_MMAP_MAX = -4
_KEPT_BYTES = 256 * 2**20  # of free memory at the end of the heap; more is returned to the kernel


def keep_large_blocks() -> bool:
    """Keep large blocks from now on; returns whether the allocator supports it.

    Earlier allocations of torch are not affected. Without glibc nothing happens.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    # _M_MMAP_MAX 0: no block gets a mapping of its own. Keeping all free memory would avoid every
    # page fault, but raised the peak of the demo from 398 to 542 MiB (bench/LOG.md).
    return bool(mallopt(_M_MMAP_MAX, 0)) and bool(mallopt(_M_TOP_PAD, _KEPT_BYTES))
