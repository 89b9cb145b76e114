"""What a process is told about its memory and its threads, and when it looks for cycles."""

from __future__ import annotations

import gc
import os
import platform
import subprocess
import sys

import pytest

from sdf_vqvae.utils.programs import prepare
from sdf_vqvae.utils.runtime import without_collector

ARENAS = """
import ctypes, re, sys, threading
from sdf_vqvae.utils.runtime import keep_memory_level
if sys.argv[1] == "level":
    keep_memory_level()
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
HOLES = """
import sys, time
from sdf_vqvae.utils.runtime import keep_memory_level
if sys.argv[1] == "level":
    keep_memory_level(0.1)
held = lambda: int(open("/proc/self/statm").read().split()[1]) * 4096 >> 20
before = held()
blocks = [(bytearray(100_000), bytearray(1000)) for _ in range(2000)]
grown = held() - before
lasting = [small for _, small in blocks]
del blocks
until = time.monotonic() + 2
while held() - before > 50 and time.monotonic() < until:
    time.sleep(0.02)
print(grown > 150, held() - before > 50)
"""
of_glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="it is glibc's allocator that is told")


def said(program: str, how: str) -> str:
    done = subprocess.run([sys.executable, "-c", program, how], capture_output=True, text=True, check=True)
    return done.stdout.strip()


@of_glibc
@pytest.mark.parametrize(("how", "expected"), [("level", "4"), ("as it is", "0")])
def test_threads_share_one_arena(how, expected):
    assert said(ARENAS, how) == expected


@of_glibc
@pytest.mark.parametrize(("how", "expected"), [("level", "True False"), ("as it is", "True True")])
def test_what_large_objects_took_goes_back_though_small_ones_between_them_live_on(how, expected):
    assert said(HOLES, how) == expected


def test_cycles_are_looked_for_again_after_a_block_without_and_never_where_nobody_does():
    with pytest.raises(ValueError, match="as it comes"), without_collector():
        assert not gc.isenabled()
        with without_collector():
            pass
        assert not gc.isenabled()
        raise ValueError("as it comes")
    assert gc.isenabled()


@pytest.mark.parametrize("said", ["OMP_WAIT_POLICY", "GOMP_SPINCOUNT"])
def test_threads_of_programs_soon_leave_their_cores_unless_someone_said_otherwise(monkeypatch, said):
    for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    monkeypatch.setenv(said, "7")
    prepare()
    assert (os.environ.get("OMP_WAIT_POLICY"), os.environ.get("GOMP_SPINCOUNT")).count(None) == 1
    assert os.environ[said] == "7"
    monkeypatch.delenv(said)
    prepare()
    assert os.environ["GOMP_SPINCOUNT"] == "10000"
