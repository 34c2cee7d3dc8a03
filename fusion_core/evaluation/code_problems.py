"""Small programming problems: MBPP's and HumanEval's rows, and finding the program in an answer.

MBPP: Austin et al., arXiv 2108.07732. HumanEval: Chen et al., arXiv 2107.03374.
"""

from __future__ import annotations

import ast
import builtins
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fusion_core.errors import EvaluationError
from fusion_core.evaluation.benchmark import read_benchmark_rows, text_field

FENCE = re.compile(r"```[ \t]*([\w+-]*)[^\n]*\n(.*?)(?:```|\Z)", re.DOTALL)
PYTHON_FENCES = ("", "py", "python", "python3")
START_OF_CODE = re.compile(r"^(?:from|import|def|class|async def|@)\b", re.MULTILINE)


@dataclass(frozen=True)
class CodeProblem:
    """A problem, its tests, and the function that is asked for.

    Parameters
    ----------
    id : str
    prompt : str
        What the model is asked.
    function : str or None
        Name the tests call; None where it cannot be told.
    set_up : str
        Code that runs between answer and tests; MBPP's uses classes that the answer defines.
    stub : str
        Signature and imports that an answer may leave out, being given (HumanEval).
    tests : str
        Code that raises unless the answer is right.
    """

    id: str
    prompt: str
    function: str | None
    set_up: str
    stub: str
    tests: str

    def program(self, answer: str) -> str:
        """Return answer and tests as one program; the answer may be prose with code in it."""
        code = find_code(answer, self.function)
        if self.stub and self.function and not _defines(code, self.function):
            # The body alone, or what follows the signature.
            code = f"{self.stub}{code}"
        elif self.stub:
            # An answer with the function whole often leaves out the imports that it was shown.
            code = f"{_imports(self.stub)}\n{code}"
        return f"{code}\n\n{self.set_up}\n{self.tests}\n"


def read_problems(path: Path, *, skip: int = 0, limit: int | None = None) -> list[CodeProblem]:
    """Read rows of MBPP (``text``, ``test_list``) or HumanEval (``prompt``, ``entry_point``, ``test``).

    Raises
    ------
    EvaluationError
        If the file or a row is of neither format; names the row.
    """
    problems = []
    for number, row in read_benchmark_rows(path, skip=skip, limit=limit):
        where = f"{path}, row {number}"
        if "test_list" in row:
            problems.append(_mbpp(row, where))
        elif "entry_point" in row:
            problems.append(_humaneval(row, where))
        else:
            raise EvaluationError(
                f"{where}: it has neither `test_list` (MBPP) nor `entry_point` (HumanEval), so there is no test."
            )
    return problems


def find_code(answer: str, function: str | None) -> str:
    """Return the code of an answer: the fenced block that defines the function, else the last one, else the text."""
    blocks = [body for language, body in FENCE.findall(answer) if language.lower() in PYTHON_FENCES]
    for block in blocks:
        if function is None or _defines(block, function):
            return str(block)
    if blocks:
        return str(blocks[-1])
    start = START_OF_CODE.search(answer)
    # Without a fence, prose before the first statement is left out; an indented body begins at once.
    return answer[start.start() :] if start and not answer.startswith((" ", "\t")) else answer


def _mbpp(row: dict[str, Any], where: str) -> CodeProblem:
    task = text_field(row, "text" if "text" in row else "prompt", where)
    tests = row["test_list"]
    if not isinstance(tests, list) or not tests or not all(isinstance(test, str) for test in tests):
        raise EvaluationError(f"{where}: `test_list` must be a list of Python assertions.")
    imports = row.get("test_imports")
    set_up = row.get("test_setup_code") or "\n".join(map(str, imports if isinstance(imports, list) else ()))
    listed = "\n".join(tests)
    return CodeProblem(
        id=str(row.get("task_id", where.rpartition(" ")[2])),
        prompt=f"Write a Python program for this task: {task}\nIt has to pass these tests:\n\n```python\n{listed}\n"
        "```\n\nAnswer with one Python code block.",
        function=_called_function(tests[0]),
        set_up=set_up if isinstance(set_up, str) else "",
        stub="",
        tests=listed,
    )


def _humaneval(row: dict[str, Any], where: str) -> CodeProblem:
    stub, function = text_field(row, "prompt", where), text_field(row, "entry_point", where)
    return CodeProblem(
        id=str(row.get("task_id", where.rpartition(" ")[2])),
        prompt=f"Complete this Python function. Answer with the whole function in one Python code block.\n\n```python\n"
        f"{stub.rstrip()}\n```",
        function=function,
        set_up="",
        stub=stub,
        tests=f"{text_field(row, 'test', where)}\ncheck({function})",
    )


def _called_function(test: str) -> str | None:
    try:
        tree = ast.parse(test)
    except (SyntaxError, ValueError, RecursionError, MemoryError):  # a NUL character, brackets without end
        return None
    calls = [node.func.id for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)]
    # In `assert set(f(x)) == set(y)` or `math.isclose(f(x), y)` the functions around it are Python's own.
    return next((name for name in calls if not hasattr(builtins, name)), None)


def _defines(code: str, function: str) -> bool:
    return (
        re.search(rf"^(?:async )?def {re.escape(function)}\b|^{re.escape(function)}\s*=", code, re.MULTILINE)
        is not None
    )


def _imports(stub: str) -> str:
    return "\n".join(line for line in stub.splitlines() if line.startswith(("import ", "from ")))
