"""Completion as its user installs it: into a home folder of its own, then asked for in a new shell."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[2]
# As the shell calls it on TAB: the command, the words so far, and which of them is being written.
PRESS_TAB = """
source ~/.bashrc
COMP_WORDS=({words}) COMP_CWORD={position} COMP_LINE='{words}' COMP_POINT=${{#COMP_LINE}}
function=$(complete -p fuseline | sed 's/.*-F \\([^ ]*\\).*/\\1/')
$function fuseline
printf '%s\\n' "${{COMPREPLY[@]}}"
"""


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_installed_completion_completes_in_a_new_bash(tmp_path: Path) -> None:
    program = tmp_path / "bin" / "fuseline"
    program.parent.mkdir()
    # What pip makes of the project's script.
    program.write_text(f"#!{sys.executable}\nfrom flows.command_line import main\n\nmain()\n")
    program.chmod(0o755)
    home = tmp_path / "home"
    home.mkdir()
    environment = {
        "HOME": str(home),
        "PATH": f"{program.parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(PROJECT),
        "LANG": "C.UTF-8",
    }

    def bash(script: str) -> str:
        # The installer looks at its parent process to see which shell it is for.
        done = subprocess.run(
            ["bash", "--norc", "-c", f"{script}\ntrue"], env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert "bash completion installed" in bash("fuseline --install-completion")

    def completed(words: str, position: int) -> list[str]:
        return bash(PRESS_TAB.format(words=words, position=position)).split()

    assert completed("fuseline ru", 1) == ["run"]
    assert completed("fuseline cache v", 2) == ["verify"]
    assert completed("fuseline status --js", 2) == ["--json"]
    assert not (home / ".fuseline").exists()
