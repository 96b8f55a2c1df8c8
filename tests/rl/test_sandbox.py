"""Programs that attack: each ends within its time, gets the right label, and leaves nothing and nobody behind."""

import os
import secrets
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from farside.rl.reward import sandbox as module
from farside.rl.reward.sandbox import GRACE_SECONDS, Outcome, Sandbox
from tests.rl.isolation import needs_isolation

SHORT, LONG = 0.4, 10.0
"""Seconds for a program that would never end, and for one that ends by itself, however busy the machine is."""


@pytest.fixture
def token(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """In the command line of every process of a program, which none may outlive."""
    word = f"test={secrets.token_hex(8)}"
    monkeypatch.setattr(module, "FLAGS", (*module.FLAGS, "-X", word))
    yield word
    deadline = time.monotonic() + 2
    while (left := processes(word)) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not left, "the program left processes"


def processes(word: str) -> list[int]:
    found = []
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            if word.encode() in Path(f"/proc/{name}/cmdline").read_bytes() and int(name) != os.getpid():
                found.append(int(name))
        except OSError:
            continue
    return found


def attack(program: str, isolated: bool = True, given: str = "", seconds: float = LONG) -> Outcome:
    sandbox = Sandbox(isolated, seconds, memory_bytes=256 << 20, output_bytes=1 << 20)
    started = time.monotonic()
    outcome = sandbox.run(program, given)
    assert time.monotonic() - started < seconds + GRACE_SECONDS
    return outcome


ENDLESS = "while True: pass"
BOTH = {
    "endless": (ENDLESS, "timeout"),
    "sleeps": ("import time; time.sleep(60)", "timeout"),
    "ignores signals": (f"import signal\nfor n in (2, 14, 15): signal.signal(n, signal.SIG_IGN)\n{ENDLESS}", "timeout"),
    "never ends at exit": ("import atexit, time; atexit.register(time.sleep, 60)", "timeout"),
    "100 GB": ("bytearray(10**11)", "memory"),
    "hoards": ("h = []\nwhile True: h.append(bytearray(1 << 22))", "memory"),
    "maps 100 GB": ("import mmap; mmap.mmap(-1, 10**11)", "crash: OSError: [Errno 12]"),
    "prints for ever": ("while True: print('x' * 1000)", "crash: OSError: [Errno 27]"),
    "one huge file": ("f = open('f', 'wb')\nwhile True: f.write(bytes(1 << 20))", "crash: OSError: [Errno 2"),
    "recursion": ("import sys\nsys.setrecursionlimit(10**9)\ndef f(x): return sorted([x], key=f)\nf(1)", "crash: "),
    "segfault": ("import ctypes; ctypes.string_at(0)", "crash: signal 11"),
    "raises": ("raise ValueError('no such luck')", "crash: ValueError: no such luck"),
    "no Python": ("def", "crash: SyntaxError"),
    "exits 3": ("raise SystemExit(3)", "crash: exit status 3"),
    "binary": ("import sys; sys.stdout.buffer.write(bytes(range(256)))", ""),
    "leaves at once": ("import os; print('before', flush=True); os._exit(0)", ""),
    "half a character": ("print('\ud800')", "crash: "),
}
DAEMON = """
import os, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        time.sleep(60)
    os._exit(0)
print("done")
"""
ISOLATED = {
    "fork bomb": ("import os\nwhile True: os.fork()", "crash: BlockingIOError"),
    "stubborn fork bomb": (
        "import os\nwhile True:\n try: os.fork()\n except OSError: pass", "timeout"),
    "fills the disk": (
        "n = 0\nwhile True: open(str(n), 'wb').write(bytes(1 << 19)); n += 1", "crash: OSError: [Errno 28]"),
    "fills the inodes": ("n = 0\nwhile True: open(str(n), 'w'); n += 1", "crash: OSError: [Errno 28]"),
    "reads the environment of others": ("open('/proc/1/environ')", "crash: FileNotFoundError"),
    "reads passwords": ("open('/etc/passwd')", "crash: FileNotFoundError"),
    "shared memory": ("open('/dev/shm/x', 'w')", "crash: FileNotFoundError"),
    "writes to the interpreter": ("import os; open(os.__file__, 'a')", "crash: "),
    "mounts": ("import ctypes; print(ctypes.CDLL(None).mount(b'tmpfs', b'/lib', b'tmpfs', 0, None))", ""),
    "metadata service": ("import socket; socket.create_connection(('169.254.169.254', 80))", "crash: OSError"),
}  # fmt: skip


@pytest.mark.usefixtures("token")
@pytest.mark.parametrize(
    ("name", "isolated"),
    [
        *(pytest.param(name, True, marks=needs_isolation) for name in BOTH),
        *((name, False) for name in ("endless", "hoards", "prints for ever", "segfault", "leaves at once")),
    ],
)
def test_an_attack_gets_its_label_in_time(name: str, isolated: bool) -> None:
    program, label = BOTH[name]
    outcome = attack(program, isolated, seconds=SHORT if label == "timeout" else LONG)
    assert outcome.detail.startswith(label)
    assert outcome.kind == label.partition(":")[0]
    assert len(outcome.output) <= 1 << 20


@needs_isolation
@pytest.mark.usefixtures("token")
@pytest.mark.parametrize("name", ISOLATED)
def test_an_attack_on_the_surroundings_is_stopped(name: str) -> None:
    program, label = ISOLATED[name]
    outcome = attack(program, seconds=SHORT if label == "timeout" else LONG)
    assert outcome.detail.startswith(label)
    assert label or outcome.output == "-1\n"


@pytest.mark.usefixtures("token")
@pytest.mark.parametrize("isolated", [pytest.param(True, marks=needs_isolation), False])
def test_a_daemon_dies_with_its_program(isolated: bool) -> None:
    outcome = attack(DAEMON, isolated)
    # A user who runs other processes has none left under limits alone: there it may not even fork.
    assert outcome == Outcome("", "", "done\n") or (not isolated and os.getuid() and outcome.kind == "crash")


KILLER = """
import os, signal
for pid in (os.getppid(), 1, -1):
    for number in (signal.SIGKILL, signal.SIGINT, signal.SIGTERM, signal.SIGSTOP, signal.SIGCHLD):
        if pid == -1 and number == signal.SIGSTOP: continue
        try: os.kill(pid, number)
        except OSError: pass
print("alive", os.getppid())
"""


@needs_isolation
@pytest.mark.usefixtures("token")
def test_its_keepers_cannot_be_hurt() -> None:
    assert attack(KILLER) == Outcome("", "", "alive 1\n")


@pytest.mark.usefixtures("token")
@pytest.mark.parametrize("isolated", [pytest.param(True, marks=needs_isolation), False])
def test_it_inherits_neither_environment_nor_descriptors(isolated: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET_KEY", "abc")
    inherited = os.open(os.devnull, os.O_RDONLY)
    os.set_inheritable(inherited, True)
    program = """
import os
for fd in range(3, 64):
    try: os.fstat(fd)
    except OSError: continue
    print("open", fd)
print(sorted(os.environ), sorted(os.listdir(".")), "abc" in repr(os.environ))
"""
    try:
        assert attack(program, isolated).output == (
            "['HOME', 'LC_CTYPE', 'PYTHONHASHSEED', 'PYTHONHOME', 'TMPDIR'] ['program.py'] False\n"
        )
    finally:
        os.close(inherited)


@needs_isolation
@pytest.mark.usefixtures("token")
def test_it_sees_neither_our_files_nor_our_ports(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("abc")
    secret.chmod(0o644)
    assert attack(f"print(open({str(secret)!r}).read())").detail.startswith("crash: FileNotFoundError")
    with socket.create_server(("127.0.0.1", 0)) as server:
        program = f"import socket; socket.create_connection(('127.0.0.1', {server.getsockname()[1]}), 1)"
        assert attack(program).detail.startswith("crash: OSError: [Errno 101]")


@pytest.mark.usefixtures("token")
@pytest.mark.parametrize("isolated", [pytest.param(True, marks=needs_isolation), False])
def test_an_ordinary_program_runs(isolated: bool, tmp_path: Path) -> None:
    program = """
import sys, math, collections, itertools, heapq, bisect, decimal, re, json, random
open("note", "w").write("kept")
a, b = map(int, sys.stdin.read().split())
print(a + b, open("note").read(), "é", len({"b", "a"}))
"""
    before = set(Path("/dev/shm").iterdir()) if Path("/dev/shm").exists() else set()
    outcomes = {attack(program, isolated, "3 4\n") for _ in range(2)}
    assert outcomes == {Outcome("", "", "7 kept é 2\n")}
    assert not Path("/dev/shm").exists() or set(Path("/dev/shm").iterdir()) <= before


def test_two_runs_of_one_program_print_sets_in_one_order() -> None:
    program = "print({chr(97 + i) * 3 for i in range(20)})"
    assert attack(program, False).output == attack(program, False).output


@needs_isolation
def test_an_ordinary_user_can_isolate_and_a_kernel_that_forbids_it_is_named() -> None:
    program = f"""
import os, sys
from farside.rl.reward import sandbox_child as child
from farside.rl.reward.sandbox import Sandbox
uid, gid = os.getuid(), os.getgid()
child.call("unshare", child.CLONE_NEWUSER)
for name, text in (("setgroups", "deny"), ("uid_map", f"1000 {{uid}} 1"), ("gid_map", f"1000 {{gid}} 1")):
    open(f"/proc/self/{{name}}", "w").write(text)
assert os.getuid() == 1000
print(Sandbox(True).check() or Sandbox(True, 10.0).run({KILLER!r}).output.strip())
open("/proc/sys/user/max_user_namespaces", "w").write("0")
print(Sandbox(True).check())
print(Sandbox(False).check() or "works")
"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    first, second, third = done.stdout.splitlines()
    assert (first, third) == ("alive 1", "works"), done.stderr
    assert second.startswith("the sandbox failed: ")
    assert "unshare" in second
