"""What a process is told about its memory, and when it looks for cycles in it."""

from __future__ import annotations

import gc
import platform
import subprocess
import sys

import pytest

from sdf_vqvae.utils.runtime import without_collector

PROGRAM = """
import ctypes, re, sys, threading
from sdf_vqvae.utils.runtime import allocate_from_one_arena
if sys.argv[1] == "one":
    allocate_from_one_arena()
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
places = []
threads = [threading.Thread(target=lambda: places.append(libc.malloc(50_000))) for _ in range(4)]
for thread in threads:
    thread.start()
    thread.join()
low, high = re.search(r"^(\\w+)-(\\w+) .*\\[heap\\]$", open("/proc/self/maps").read(), re.M).groups()
print(sum(int(low, 16) <= place < int(high, 16) for place in places))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's allocator alone has arenas")
def test_threads_share_one_arena_once_asked_to():
    for asked, expected in (("one", "4"), ("many", "0")):
        done = subprocess.run([sys.executable, "-c", PROGRAM, asked], capture_output=True, text=True, check=True)
        assert done.stdout.strip() == expected


def test_cycles_are_looked_for_again_after_a_block_without_and_never_where_nobody_does():
    with pytest.raises(ValueError, match="as it comes"), without_collector():
        assert not gc.isenabled()
        with without_collector():
            pass
        assert not gc.isenabled()
        raise ValueError("as it comes")
    assert gc.isenabled()
