"""Whether the kernel lets this user isolate programs, found out without the product: its bugs must fail, not skip."""

import subprocess
import sys
from functools import cache

import pytest

PROBE = """
import ctypes, os
libc = ctypes.CDLL(None)
mounts, processes, network, users = 0x00020000, 0x20000000, 0x40000000, 0x10000000
refused = libc.unshare(mounts | processes | network | (users if os.getuid() else 0))
raise SystemExit(refused or libc.mount(None, b"/", None, 16384 | 1 << 18, None) != 0)
"""


@cache
def allowed() -> bool:
    return subprocess.run([sys.executable, "-c", PROBE]).returncode == 0


needs_isolation = pytest.mark.skipif(not allowed(), reason="the kernel does not allow user namespaces")
