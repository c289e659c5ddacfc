"""Memory that the C library keeps instead of handing it back to the system, for training on the CPU.

glibc gives every freed block of more than 32 MB straight back, and the top of its heap with the last activations of each step; the
next step then takes a page fault for every 4 kB of them: on a WRN-40-2 a tenth of a step. On a GPU torch has an allocator of
its own. Another C library than glibc is left as it is.
"""

from __future__ import annotations

import ctypes

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # glibc's malloc.h
_NEVER = 2**31 - 1
_MAPPED = 2**30  # bytes from which a block is still mapped by itself, and handed back


def keep_freed_memory() -> bool:
    """For the rest of the process; whether it could be done."""
    try:
        set_option = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    return bool(set_option(_MMAP_THRESHOLD, _MAPPED) and set_option(_TRIM_THRESHOLD, _NEVER))
