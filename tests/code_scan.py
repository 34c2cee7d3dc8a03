"""Finds, in Python source, what runs or unpacks things from outside: pickles, evaluated text, shells, archives."""

from __future__ import annotations

import ast
from collections.abc import Iterator

# Modules whose purpose is to turn bytes into objects with code of their own choosing.
UNSAFE_MODULES = {"pickle", "_pickle", "cloudpickle", "dill", "jsonpickle", "joblib", "marshal", "shelve"}
UNSAFE_CALLS = {
    *("eval", "exec", "compile", "__import__"),
    *("torch.load", "torch.jit.load", "torch.hub.load", "torch.package.PackageImporter"),
    *("pandas.read_pickle", "numpy.fromregex"),
    *("yaml.load", "yaml.load_all", "yaml.unsafe_load", "yaml.unsafe_load_all", "yaml.full_load", "yaml.full_load_all"),
    *("os.system", "os.popen", "subprocess.getoutput", "subprocess.getstatusoutput", "tempfile.mktemp"),
    *("tarfile.open", "tarfile.TarFile", "zipfile.ZipFile", "shutil.unpack_archive"),
    *("ssl._create_unverified_context",),
}
UNSAFE_METHODS = {"extractall", "extract_all", "unpack_archive"}
# Keyword arguments, and the values with which each is harmless.
HARMLESS_VALUES = {
    "shell": (False,),
    "allow_pickle": (False,),
    "trust_remote_code": (False,),
    "verify": (True,),
    "weights_only": (True,),
    "typ": ("safe", "rt"),
}


def unsafe_places(source: str) -> Iterator[tuple[int, str]]:
    """Yield line and name of everything in a module that its rules forbid.

    Keyword arguments that only pass a name on (``trust_remote_code=config.trust_remote_code``) are no findings;
    constants are, in calls and in dictionaries alike.
    """
    tree = ast.parse(source)
    aliases = _aliases(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split(".")[0] in UNSAFE_MODULES:
                    yield node.lineno, f"import {alias.name}"
        elif isinstance(node, ast.ImportFrom) and not node.level:
            if str(node.module).split(".")[0] in UNSAFE_MODULES:
                yield node.lineno, f"import {node.module}"
        elif isinstance(node, ast.Call):
            name = _dotted(node.func, aliases)
            if name in UNSAFE_CALLS or name.rpartition(".")[2] in UNSAFE_METHODS:
                yield node.lineno, name
            for keyword in node.keywords:
                yield from _harmful(keyword.arg, keyword.value)
        elif isinstance(node, ast.Dict):
            for key, value in zip(node.keys, node.values, strict=True):
                if isinstance(key, ast.Constant) and key.value != "typ":
                    yield from _harmful(key.value, value)
        elif isinstance(node, ast.AnnAssign | ast.Assign) and node.value is not None:
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            for target in targets:
                if getattr(target, "id", getattr(target, "attr", None)) == "trust_remote_code":
                    yield from _harmful("trust_remote_code", node.value)


def _harmful(name: object, value: ast.expr) -> Iterator[tuple[int, str]]:
    # A field's default stands in a call: Field(True, ...).
    if isinstance(value, ast.Call) and value.args:
        value = value.args[0]
    if name in HARMLESS_VALUES and isinstance(value, ast.Constant) and value.value not in HARMLESS_VALUES[str(name)]:
        yield value.lineno, f"{name}={value.value!r}"


def _aliases(tree: ast.AST) -> dict[str, str]:
    """Return what each imported name stands for: ``from torch import load as get`` makes get torch.load."""
    found = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.asname: alias.name for alias in node.names if alias.asname}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
    return found


def _dotted(node: ast.expr, aliases: dict[str, str]) -> str:
    parts = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    if not isinstance(node, ast.Name):
        return ".".join(["?", *reversed(parts)])
    return ".".join([aliases.get(node.id, node.id), *reversed(parts)]).removeprefix("builtins.")
