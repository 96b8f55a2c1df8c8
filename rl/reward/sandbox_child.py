"""Runs one program in the sandbox; started by sandbox.py as a script of its own, so it imports nothing of farside.

Argument: a JSON object with the fields of ``Settings``. The program's standard input and output are this process's.
How it ended goes to ``status_fd`` as one JSON object, which the program cannot reach: {"exit": code}, {"signal":
number}, {"timeout": true}, or {"failed": text} if it could not be started as asked.

Isolated, the process tree is: this one, which makes the namespaces; the first process of the new pid namespace, which
waits for the program and with whose end the kernel kills whatever the program left behind; the program.
"""

import contextlib
import ctypes
import json
import os
import resource
import signal
import sys
import time

CLONE_NEWNS, CLONE_NEWUTS, CLONE_NEWIPC = 0x00020000, 0x04000000, 0x08000000
CLONE_NEWUSER, CLONE_NEWPID, CLONE_NEWNET = 0x10000000, 0x20000000, 0x40000000
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_REMOUNT = 1, 2, 4, 8, 32
MS_BIND, MS_REC, MS_PRIVATE, MNT_DETACH = 4096, 16384, 1 << 18, 2
PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_CHILD_SUBREAPER, PR_SET_NO_NEW_PRIVS = 1, 4, 36, 38
NOBODY = 1 << 30
"""Root becomes this plus its pid: a user who owns nothing and runs nothing else."""
PROCESSES = 6
"""The most processes and threads, our own two among them."""
SYSTEM = ("/lib", "/lib64", "/usr/lib", "/usr/lib64", "/etc/ld.so.cache")
DEVICES = ("null", "zero", "random", "urandom")
WORK = "/work"

libc = ctypes.CDLL(None, use_errno=True)


class Settings:
    """A plain class: importing dataclasses would double the time it takes to start."""

    isolated: bool
    folder: str
    """The working directory if not isolated."""
    files_fd: int
    """A JSON object of names and texts for the working directory."""
    status_fd: int
    command: list[str]
    readable: list[str]
    """Folders that the interpreter needs."""
    environment: dict[str, str]
    seconds: float
    memory_bytes: int
    file_bytes: int

    def __init__(self, **fields: object) -> None:
        vars(self).update(fields)


def call(name: str, *arguments: object) -> None:
    """A function of the C library that returns 0. Raises OSError naming it."""
    if getattr(libc, name)(*arguments) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")


def make_namespaces() -> None:
    """Own users, mounts, processes, network without an interface, and shared memory; root needs no own users."""
    uid, gid = os.geteuid(), os.getegid()
    spaces = CLONE_NEWNS | CLONE_NEWPID | CLONE_NEWNET | CLONE_NEWIPC | CLONE_NEWUTS
    call("unshare", spaces | (CLONE_NEWUSER if uid else 0))
    if uid:
        for name, text in (("setgroups", "deny"), ("uid_map", f"{uid} {uid} 1"), ("gid_map", f"{gid} {gid} 1")):
            with open(f"/proc/self/{name}", "w") as file:
                file.write(text)


def mount(source: str | None, target: str, kind: str | None, flags: int, options: str | None = None) -> None:
    words = [word.encode() if word else None for word in (source, target, kind)]
    call("mount", *words, ctypes.c_ulong(flags), options.encode() if options else None)


def make_root(readable: list[str], file_bytes: int) -> None:
    """A root of its own in memory: the interpreter and the system's libraries, read-only, and an empty ``WORK``."""
    root = "/proc"  # any folder that is there and holds nothing to be shown: only we see what is mounted over it
    mount(None, "/", None, MS_REC | MS_PRIVATE)
    mount("tmpfs", root, "tmpfs", MS_NOSUID | MS_NODEV, f"size={4 * file_bytes},nr_inodes=1024,mode=755")
    for path in sorted({*SYSTEM, *readable}):
        inside = root + path
        if not os.path.lexists(path) or os.path.lexists(inside):
            continue
        os.makedirs(os.path.dirname(inside), mode=0o755, exist_ok=True)
        if os.path.islink(path):
            os.symlink(os.readlink(path), inside)
        else:
            show(path, inside, MS_RDONLY | MS_NOSUID | MS_NODEV)
    os.mkdir(root + "/dev")
    for name in DEVICES:
        show(f"/dev/{name}", f"{root}/dev/{name}", 0)
    os.mkdir(root + WORK, mode=0o700)
    os.chdir(root)
    call("pivot_root", b".", b".")  # the old root now lies over the new one
    call("umount2", b".", MNT_DETACH)
    os.chdir(WORK)


def show(path: str, inside: str, flags: int) -> None:
    """Binds a file or folder."""
    if os.path.isdir(path):
        os.mkdir(inside)
    else:
        os.close(os.open(inside, os.O_CREAT | os.O_WRONLY))
    mount(path, inside, None, MS_BIND)
    if flags:  # which a bind takes on being mounted again only; what it has it must keep
        kept = MS_NOEXEC if os.statvfs(inside).f_flag & os.ST_NOEXEC else 0
        mount(None, inside, None, MS_REMOUNT | MS_BIND | flags | kept)


def limit(settings: Settings) -> None:
    """Of each process: CPU seconds, address space, file size, open files; of all of them: their number."""
    seconds = int(settings.seconds) + 1
    for what, most in (
        (resource.RLIMIT_CPU, seconds),
        (resource.RLIMIT_AS, settings.memory_bytes),
        (resource.RLIMIT_FSIZE, settings.file_bytes),
        (resource.RLIMIT_NOFILE, 64),
        (resource.RLIMIT_NPROC, PROCESSES),
        (resource.RLIMIT_CORE, 0),
    ):
        hard = resource.getrlimit(what)[1]
        most = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(what, (most, most))


def become_program(settings: Settings, uid: int) -> None:
    """Replaces this process by the program."""
    os.setsid()
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGCHLD])
    if uid:
        os.setgroups([])
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, uid)
    libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    limit(settings)
    os.execve(settings.command[0], settings.command, settings.environment)


def run(settings: Settings, uid: int) -> dict[str, object]:
    """Starts the program and waits for its end or the deadline; also reaps whatever is handed to us."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # the first process of a namespace gets no signal without a handler
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGCHLD])
    ready, started = os.pipe()  # closed by exec, or filled with the reason why not
    program = os.fork()
    if program == 0:
        try:
            become_program(settings, uid)
        except BaseException as error:
            os.write(started, f"{type(error).__name__}: {error}".encode()[:300])
        os._exit(1)
    os.close(started)
    deadline = time.monotonic() + settings.seconds
    while True:
        pid, status = os.waitpid(-1, os.WNOHANG)
        left = deadline - time.monotonic()
        if pid == program:
            if reason := os.read(ready, 300):
                return {"failed": reason.decode(errors="replace")}
            code = os.waitstatus_to_exitcode(status)
            return {"exit": code} if code >= 0 else {"signal": -code}
        if left <= 0:
            return {"timeout": True}
        if pid == 0:
            signal.sigtimedwait([signal.SIGCHLD], left)


def kill_offspring() -> None:
    """Without namespaces: kills what the program left, which the kernel hands to us, for a second at most."""
    deadline = time.monotonic() + 1
    while time.monotonic() < deadline:
        for name in filter(str.isdigit, os.listdir("/proc")):
            with contextlib.suppress(OSError, IndexError), open(f"/proc/{name}/stat") as file:
                if int(file.read().rpartition(")")[2].split()[1]) == os.getpid():
                    os.kill(int(name), signal.SIGKILL)
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            return


def supervise(settings: Settings, uid: int) -> None:
    libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    libc.prctl(PR_SET_DUMPABLE, 0)  # the program, the same user, may not trace us
    try:
        report = run(settings, uid)
    except OSError as error:
        report = {"failed": str(error)}
    os.write(settings.status_fd, json.dumps(report).encode())


def main(settings: Settings) -> None:
    """The whole life of this process."""
    libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    for fd in (settings.files_fd, settings.status_fd):
        os.set_inheritable(fd, False)
    with open(settings.files_fd, "rb") as file:
        files = json.load(file)
    uid = NOBODY + os.getpid() if settings.isolated and os.geteuid() == 0 else 0
    if settings.isolated:
        try:
            make_namespaces()
            make_root(settings.readable, settings.file_bytes)
        except OSError as error:
            os.write(settings.status_fd, json.dumps({"failed": str(error)}).encode())
            return
    else:
        os.chdir(settings.folder)
    for name, text in files.items():
        with open(name, "w", encoding="utf-8", errors="surrogatepass") as file:
            file.write(text)
    if not settings.isolated:
        libc.prctl(PR_SET_CHILD_SUBREAPER, 1)
        supervise(settings, uid)
        kill_offspring()
        return
    if uid:
        os.chown(".", uid, uid)
        for name in files:
            os.chown(name, uid, uid)
    first = os.fork()
    if first == 0:
        supervise(settings, uid)
        os._exit(0)
    os.waitpid(first, 0)


if __name__ == "__main__":
    main(Settings(**json.loads(sys.argv[1])))
