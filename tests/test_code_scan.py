"""Nothing from outside is unpickled, evaluated, extracted or given to a shell, but where a reason stands below."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests.code_scan import unsafe_places

REPOSITORY = Path(__file__).resolve().parents[1]
FOLDERS = ("fusion_core", "tasks", "flows", "deployments", "docker", "benchmarks", "experiments")
EXCEPTIONS = {
    ("fusion_core/evaluation/sandbox_child.py", "exec"): "runs what a model wrote, in a process that can reach nothing",
    ("fusion_core/evaluation/sandbox_child.py", "compile"): "the same",
}


def test_the_packages_do_nothing_of_it() -> None:
    found, used = [], set()
    paths = [path for folder in FOLDERS for path in sorted((REPOSITORY / folder).rglob("*.py"))]
    assert len(paths) > 250
    for path in paths:
        name = path.relative_to(REPOSITORY).as_posix()
        for line, what in unsafe_places(path.read_text(encoding="utf-8")):
            if (name, what) in EXCEPTIONS:
                used.add((name, what))
            else:
                found.append(f"{name}:{line} {what}")
    assert found == []
    assert used == set(EXCEPTIONS), "an exception that nothing needs any more"


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from pickle import loads",
        "import cloudpickle as c",
        "def f():\n    from marshal import loads",
        "import torch\ntorch.load('x')",
        "from torch import load as get\nget('x', weights_only=True)",
        "import torch.jit\ntorch.jit.load('x')",
        "import numpy as np\nnp.load('x', allow_pickle=True)",
        "eval('1')",
        "import builtins\nbuiltins.exec('1')",
        "import yaml\nyaml.load('x', yaml.SafeLoader)",
        "from yaml import unsafe_load\nunsafe_load('x')",
        "from ruamel.yaml import YAML\nYAML(typ='unsafe')",
        "import subprocess\nsubprocess.run('ls', shell=True)",
        "import subprocess as s\ns.getoutput('ls')",
        "import os\nos.system('ls')",
        "import tarfile\ntarfile.open('x')",
        "archive.extractall('x')",
        "from shutil import unpack_archive as u\nu('x')",
        "AutoModel.from_pretrained('x', trust_remote_code=True)",
        "options = {'trust_remote_code': True}",
        "class Config:\n    trust_remote_code: bool = True",
        "class Config:\n    trust_remote_code: bool = Field(True, description='x')",
        "settings.trust_remote_code = True",
        "import httpx\nhttpx.get('x', verify=False)",
    ],
)
def test_each_is_found(source: str) -> None:
    assert list(unsafe_places(source))


@pytest.mark.parametrize(
    "source",
    [
        "import yaml\nyaml.safe_load('x')",
        "import re\nre.compile('x')",
        "model.eval()",
        "f(trust_remote_code=config.trust_remote_code, shell=False)",
        "trust_remote_code: bool = Field(False, description='x')",
        "from safetensors.torch import load_file\nload_file('x')",
    ],
)
def test_what_only_looks_like_it_is_not(source: str) -> None:
    assert list(unsafe_places(source)) == []


def test_ruffs_security_rules_hold() -> None:
    program = shutil.which("ruff", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    if program is None:
        pytest.skip("needs ruff: pip install ruff")
    # Which of them do not concern us stands in pyproject.toml, with reasons and dates.
    command = [program, "check", "--no-cache", "--output-format", "json", "."]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    found = [item for item in json.loads(done.stdout) if re.fullmatch(r"S\d+", str(item["code"]))]
    assert [f"{item['filename']}:{item['location']['row']} {item['message']}" for item in found] == []
    chosen = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["ruff"]["lint"]
    assert "S" in chosen["select"]
