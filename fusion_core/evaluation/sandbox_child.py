"""The program that runs a code sample: shuts itself in, runs the source, reports whether its end was reached.

Started by ``code_execution`` in an interpreter without site packages, so it imports the standard library alone. It
reads one JSON object from standard input (``source``, ``token`` and ``limits``), and writes JSON lines to standard
output: the protections in force, then an outcome. It holds back what code does by accident or out of habit (files,
network, processes, memory, time); it is no barrier against code written to break out of it.
"""

import ctypes
import json
import os
import resource
import signal
import sys
from ctypes import c_int, c_uint32, c_uint64
from typing import Any

NOBODY = 65534
CLONE_NEWNS, CLONE_NEWUSER, CLONE_NEWNET = 0x00020000, 0x10000000, 0x40000000
MS_NOSUID, MS_NODEV, MS_REC, MS_PRIVATE = 1 << 1, 1 << 2, 1 << 14, 1 << 18
PR_SET_PDEATHSIG, PR_SET_KEEPCAPS, PR_SET_NO_NEW_PRIVS = 1, 8, 38
CAPABILITY_VERSION, CAP_DAC_READ_SEARCH = 0x20080522, 1 << 2
LANDLOCK_CREATE_RULESET, LANDLOCK_ADD_RULE, LANDLOCK_RESTRICT_SELF = 444, 445, 446
# Rights over files that each version of Landlock knows: 13 in the first, then REFER, TRUNCATE and (fifth) IOCTL_DEV.
FILE_RIGHTS = {1: (1 << 13) - 1, 2: (1 << 14) - 1, 3: (1 << 15) - 1, 4: (1 << 15) - 1, 5: (1 << 16) - 1}
READ_FILE, READ_DIR, WRITE_FILE = 1 << 2, 1 << 3, 1 << 1
TCP_BIND_AND_CONNECT = 0b11
SCOPE_ABSTRACT_SOCKETS_AND_SIGNALS = 0b11
READABLE = ("/usr", "/lib", "/lib64", "/etc/localtime", "/dev/urandom", "/dev/zero")


class _Ruleset(ctypes.Structure):
    _fields_ = (("files", c_uint64), ("network", c_uint64), ("scoped", c_uint64))


class _PathBeneath(ctypes.Structure):
    _pack_ = 1
    _fields_ = (("allowed", c_uint64), ("parent", c_int))


def main() -> None:
    """Shut the process in, run the source it was given, and report."""
    request = json.load(sys.stdin)
    report = os.dup(1)
    nowhere = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1, 2):
        os.dup2(nowhere, standard)
    protections = shut_in(request["limits"])
    _say(report, {"protections": protections})
    try:
        # Under another name than __main__, so that a sample's own `if __name__ == "__main__"` does not run.
        exec(compile(request["source"], "<answer>", "exec"), {"__name__": "answer"})  # noqa: S102 (2026-11-20: its purpose)
    except SystemExit as stop:
        _say(report, {"outcome": "stopped early", "detail": f"exit status {_short(stop)}"})
    except MemoryError:
        _say(report, {"outcome": "memory limit", "detail": ""})
    except AssertionError as error:
        _say(report, {"outcome": "wrong", "detail": _short(error)})
    except BaseException as error:
        _say(report, {"outcome": "error", "detail": f"{type(error).__name__}: {_short(error)}"})
    else:
        # Only here has every test been run: a source that exits before them never says the token.
        _say(report, {"outcome": "passed", "token": request["token"]})
    # Whatever the source registered to run at the end stays unrun.
    os._exit(0)


def shut_in(limits: dict[str, int]) -> dict[str, str]:
    """Give up network, identity, files and resources as far as this kernel allows, and say what was achieved."""
    kernel = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None
    owner = (NOBODY, NOBODY) if os.geteuid() == 0 else (os.geteuid(), os.getegid())
    protections = {
        "network": _leave_network(kernel),
        "disk": _own_disk(kernel, owner, limits["disk_bytes"], limits["disk_files"]),
        "user": _become_nobody(kernel),
    }
    if kernel is not None:
        kernel.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
        # When Fuseline is killed, so is this.
        kernel.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    protections["files"] = _confine_files(kernel)
    unknown = []
    for name, value in (
        ("RLIMIT_AS", limits["memory_bytes"]),
        ("RLIMIT_CPU", limits["cpu_seconds"]),
        ("RLIMIT_FSIZE", limits["file_bytes"]),
        ("RLIMIT_NOFILE", 64),
        ("RLIMIT_CORE", 0),
        # Neither processes nor threads.
        ("RLIMIT_NPROC", 0),
    ):
        try:
            resource.setrlimit(getattr(resource, name), (value, value))
        except (AttributeError, OSError, ValueError):
            unknown.append(name)
    protections["limits"] = f"all but {', '.join(unknown)}, which this system refuses" if unknown else "all"
    return protections


def _leave_network(kernel: Any) -> str:
    flags = CLONE_NEWNET if os.geteuid() == 0 else CLONE_NEWUSER | CLONE_NEWNET
    if kernel is not None and kernel.unshare(flags) == 0:
        return "a network of its own with nothing in it"
    for module in ("_socket", "socket", "ssl", "_ssl"):
        # None makes Python refuse the import.
        sys.modules[module] = None  # type: ignore[assignment]
    return "Python's sockets are blocked; this kernel grants no network namespace"


def _own_disk(kernel: Any, owner: tuple[int, int], size: int, files: int) -> str:
    """Put a small file system in memory over the working folder, which goes when the process does."""
    refused = "each file is limited, their number is not; this kernel grants no file system of its own"
    if kernel is None or kernel.unshare(CLONE_NEWNS) != 0:
        return refused
    user, group = owner
    folder = os.getcwd().encode()
    try:
        if os.geteuid() != 0:
            # In a user namespace of its own the process has no name yet under which it could own files.
            for name, text in (
                ("setgroups", "deny"),
                ("uid_map", f"{user} {user} 1"),
                ("gid_map", f"{group} {group} 1"),
            ):
                with open(f"/proc/self/{name}", "w") as file:
                    file.write(text)
    except OSError:
        return refused
    options = f"size={size},nr_inodes={files},mode=0700,uid={user},gid={group}".encode()
    private = kernel.mount(b"none", b"/", None, MS_REC | MS_PRIVATE, None)
    if private != 0 or kernel.mount(b"tmpfs", folder, b"tmpfs", MS_NOSUID | MS_NODEV, options) != 0:
        return refused
    os.chdir(folder)
    return f"{size:,} bytes and {files:,} files in all"


def _become_nobody(kernel: Any) -> str:
    if os.getresuid()[0] != 0:
        _drop_capabilities(kernel, 0)
        return "the user who runs Fuseline"
    try:
        os.setgroups([])
        keep_reading = kernel is not None and not _nobody_reads(os.path.dirname(os.__file__))
        if keep_reading:
            kernel.prctl(PR_SET_KEEPCAPS, 1, 0, 0, 0)
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)
    except OSError:
        return "root, because this container cannot change users"
    if keep_reading:
        # A Python in root's home: of root's rights only that of reading stays, which Landlock then confines.
        _drop_capabilities(kernel, CAP_DAC_READ_SEARCH)
    return "nobody"


def _drop_capabilities(kernel: Any, kept: int) -> None:
    if kernel is not None:
        header = (c_uint32 * 2)(CAPABILITY_VERSION, 0)
        kernel.capset(header, (c_uint32 * 6)(kept, kept, 0, 0, 0, 0))


def _nobody_reads(folder: str) -> bool:
    try:
        os.seteuid(NOBODY)
        os.listdir(folder)
    except OSError:
        return False
    finally:
        os.seteuid(0)
    return True


def _confine_files(kernel: Any) -> str:
    version = kernel.syscall(LANDLOCK_CREATE_RULESET, None, 0, 1) if kernel is not None else -1
    if version < 1:
        return "as its user may; this kernel has no Landlock"
    rights = FILE_RIGHTS[min(version, 5)]
    rules = _Ruleset(
        rights, TCP_BIND_AND_CONNECT if version >= 4 else 0, SCOPE_ABSTRACT_SOCKETS_AND_SIGNALS if version >= 6 else 0
    )
    # Older kernels refuse a structure longer than the one they know.
    size = 8 if version < 4 else 16 if version < 6 else 24
    ruleset = kernel.syscall(LANDLOCK_CREATE_RULESET, ctypes.byref(rules), size, 0)
    if ruleset < 0:
        return "as its user may; Landlock refused"
    allowed = {sys.base_prefix: READ_FILE | READ_DIR, os.devnull: READ_FILE | WRITE_FILE, os.getcwd(): rights & ~1}
    for path in READABLE:
        allowed.setdefault(path, READ_FILE | READ_DIR)
    for path, access in allowed.items():
        if not os.path.exists(path):
            continue
        folder = os.open(path, os.O_PATH)
        beneath = _PathBeneath(access if os.path.isdir(path) else access & ~READ_DIR, folder)
        kernel.syscall(LANDLOCK_ADD_RULE, ruleset, 1, ctypes.byref(beneath), 0)
        os.close(folder)
    if kernel.syscall(LANDLOCK_RESTRICT_SELF, ruleset, 0) != 0:
        return "as its user may; Landlock refused"
    os.close(ruleset)
    return "writes in its empty folder alone, reads Python and the system libraries"


def _short(error: BaseException) -> str:
    return str(error).strip()[:300].encode("utf-8", "replace").decode()


def _say(report: int, message: dict[str, Any]) -> None:
    os.write(report, json.dumps(message).encode() + b"\n")


if __name__ == "__main__":
    main()
