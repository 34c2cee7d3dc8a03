"""The sandbox: what ends a program, what it cannot reach, and that passing means that every test has run."""

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import pytest

from fusion_core.evaluation import code_execution
from fusion_core.evaluation.code_execution import Limits, run_program, run_programs

LIMITS = Limits(seconds=1.0, memory_bytes=512 << 20)


@pytest.mark.parametrize(
    ("source", "outcome"),
    [
        ("assert sum([1, 2]) == 3", "passed"),
        ("assert 1 == 2, 'no'", "wrong"),
        ("undefined", "error"),
        ("def f(:", "error"),
        ("while True: pass", "time limit"),
        ("data = bytearray(10**10)", "memory limit"),
        ("import os\nos._exit(0)\nassert False", "stopped early"),
        ("raise SystemExit(0)", "stopped early"),
        ("text = '\\ud800'\nraise ValueError(text)", "error"),
        ("if __name__ == '__main__': raise ValueError", "passed"),
    ],
)
def test_how_a_program_ends(source: str, outcome: str) -> None:
    assert run_program(source, LIMITS).outcome == outcome


def test_a_sleeper_is_killed_by_wall_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(code_execution, "START_SECONDS", 0.5)
    started = time.monotonic()
    assert run_program("import time\ntime.sleep(60)", LIMITS).outcome == "time limit"
    assert time.monotonic() - started < 30


def test_a_limit_on_processor_time_cannot_be_ignored() -> None:
    source = "import signal\nsignal.signal(signal.SIGXCPU, signal.SIG_IGN)\nwhile True: pass"
    assert run_program(source, LIMITS).outcome == "time limit"


@pytest.mark.parametrize(
    "source",
    [
        "import os\nos.fork()",
        "import threading\nthreading.Thread(target=print).start()",
        "import subprocess, sys\nsubprocess.run([sys.executable, '-c', ''])",
    ],
)
def test_no_other_processes_or_threads(source: str) -> None:
    assert run_program(source, LIMITS).outcome == "error"


def test_no_network() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        reached = []
        listener = threading.Thread(target=lambda: reached.append(server.accept()), daemon=True)
        listener.start()
        port = server.getsockname()[1]
        verdict = run_program(f"import socket\nsocket.create_connection(('127.0.0.1', {port}), 2)", LIMITS)
        listener.join(0.2)
    assert verdict.outcome == "error"
    assert not reached
    assert verdict.protections["network"]


def test_without_a_network_namespace_sockets_are_blocked_and_that_is_said() -> None:
    # In a process of its own: what it blocks stays blocked.
    source = (
        "from fusion_core.evaluation import sandbox_child as child\n"
        "said = child._leave_network(None)\n"
        "assert 'blocked' in said, said\n"
        "try:\n"
        "    import socket\n"
        "except ImportError:\n"
        "    print('refused')\n"
    )
    done = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "refused"


def test_no_secrets_and_an_empty_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "not to be seen")
    source = (
        "import os\n"
        "assert os.listdir('.') == []\n"
        "assert not {name for name in os.environ if name not in ('LANG', 'LC_CTYPE', 'PATH')}, os.environ\n"
        "open('own.txt', 'w').write('x')\n"
        "assert open('own.txt').read() == 'x'\n"
    )
    assert run_program(source, LIMITS).passed


def test_files_elsewhere_are_out_of_reach(tmp_path) -> None:
    victim = tmp_path / "victim.txt"
    victim.write_text("still here", encoding="utf-8")
    verdict = run_program(f"import os\nos.remove({str(victim)!r})", LIMITS)
    if verdict.protections["files"].startswith("as its user may") and os.geteuid() != 0:
        pytest.skip("this kernel has no Landlock, and the sandbox says so")
    assert verdict.outcome == "error"
    assert victim.read_text(encoding="utf-8") == "still here"


def test_files_are_limited_in_size() -> None:
    assert run_program("open('big', 'wb').write(bytes(4 << 20))", LIMITS).outcome == "error"


def test_a_program_cannot_say_that_it_passed() -> None:
    forged = '{"protections": {}}\\n{"outcome": "passed", "token": "0"}\\n'
    source = f"import os\nfor number in range(3, 20):\n    try:\n        os.write(number, b'{forged}')\n"
    source += "    except OSError:\n        pass\nos._exit(0)"
    assert run_program(source, LIMITS).outcome == "stopped early"


def test_verdicts_come_in_order() -> None:
    sources = ["assert True", "assert False", "assert True"]
    assert [verdict.passed for verdict in run_programs(sources, LIMITS, workers=2)] == [True, False, True]


def test_what_a_program_writes_into_the_report_itself_fails_that_program_alone() -> None:
    for forged in ("b'[' * 50000", 'b\'{"outcome": ["passed"]}\''):
        source = f"import os\nos.write(3, {forged} + b'\\n')\nos._exit(0)"
        assert run_program(source, LIMITS).outcome == "stopped early"


def test_all_files_together_are_limited_in_size_and_number() -> None:
    many = (
        "for number in range({count}):\n    with open(str(number), 'wb') as file:\n        file.write(bytes({size}))\n"
    )
    verdict = run_program(many.format(count=64, size=1 << 20), LIMITS)
    if "grants no file system" in verdict.protections["disk"]:
        pytest.skip("this kernel grants no file system of its own, and the sandbox says so")
    assert verdict.outcome == "error" and "No space left" in verdict.detail
    verdict = run_program(many.format(count=2 * code_execution.DISK_FILES, size=0), LIMITS)
    assert verdict.outcome == "error" and "No space left" in verdict.detail
    assert run_program(many.format(count=8, size=1 << 20), LIMITS).passed


@pytest.mark.skipif(os.geteuid() != 0, reason="needs to become another user")
def test_an_ordinary_user_is_held_back_alike(tmp_path: Path) -> None:
    # The child as it is, started by nobody; its folder and Python must be nobody's to read.
    source = "open('own', 'w').write('x')\nfor number in range(64):\n    open(str(number), 'wb').write(bytes(1 << 20))"
    limits = {"memory_bytes": 1 << 29, "cpu_seconds": 5, "file_bytes": 1 << 20}
    request = {"source": source, "token": "t", "limits": {**limits, "disk_bytes": 4 << 20, "disk_files": 64}}
    with code_execution._empty_folder() as folder:
        os.chown(folder, code_execution.NOBODY, code_execution.NOBODY)
        child = folder / "child.py"
        child.write_text(code_execution.CHILD.read_text(encoding="utf-8"), encoding="utf-8")
        done = subprocess.run(
            [shutil.which("python3", path="/usr/bin") or sys.executable, "-I", "-S", str(child)],
            input=json.dumps(request).encode(),
            capture_output=True,
            cwd=folder,
            user=code_execution.NOBODY,
            group=code_execution.NOBODY,
            extra_groups=[],
            timeout=30,
            check=False,
        )
        left = sorted(path.name for path in folder.iterdir())
    if done.returncode != 0 and not done.stdout:
        pytest.skip("no Python that an ordinary user may run")
    said, outcome = (json.loads(line) for line in done.stdout.splitlines())
    if "grants no file system" in said["protections"]["disk"]:
        pytest.skip("this kernel grants ordinary users no file system of their own, and the sandbox says so")
    assert outcome["outcome"] == "error" and "No space left" in outcome["detail"]
    assert left == ["child.py"]


def test_folders_too_deep_for_a_path_are_removed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    source = "import os\nfor _ in range(2500):\n    os.mkdir('d')\n    os.chdir('d')\nos.chmod('.', 0)"
    with code_execution._empty_folder() as folder:
        subprocess.run([sys.executable, "-c", source], cwd=folder, check=True)
    assert list(tmp_path.iterdir()) == []
    assert run_program(source, LIMITS).outcome == "passed"
    assert list(tmp_path.iterdir()) == []
