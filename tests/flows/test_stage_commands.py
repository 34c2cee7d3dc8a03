"""Each stage alone from the command line, without Prefect, on what the stage before it published."""

from __future__ import annotations

from pathlib import Path

import pytest

from flows.command_line import main

STAGES = ["prepare", "extract", "fuse", "train", "merge", "evaluate", "report"]


@pytest.fixture(scope="module")
def walked(recipe_file: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Run every stage in a home of its own and return what each printed."""
    home = tmp_path_factory.mktemp("stages")
    printed: dict[str, str] = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FUSELINE_HOME", str(home))
        patch.setenv("PREFECT_API_URL", "http://127.0.0.1:9/api")
        for stage in [*STAGES, "extract"]:
            patch.setattr("sys.argv", ["fuseline", stage, str(recipe_file)])
            lines: list[str] = []
            patch.setattr("builtins.print", lambda *parts, into=lines, **_: into.append(" ".join(map(str, parts))))
            patch.setattr("rich.console.Console.print", lambda self, *parts, into=lines, **_: into.append(str(parts)))
            with pytest.raises(SystemExit) as stopped:
                main()
            assert not stopped.value.code, (stage, lines)
            printed[stage if stage not in printed else f"{stage} again"] = "\n".join(lines)
    printed["home"] = str(home)
    return printed


def test_every_stage_publishes_for_the_next(walked: dict[str, str]) -> None:
    assert walked["extract"].count("computed in") == 3
    assert walked["fuse"].count("computed in") == 2
    assert walked["train"].count("computed in") == 3
    assert walked["merge"].count("computed in") == 1
    report = Path(walked["report"].removeprefix("report: ").strip())
    assert report.is_file()


def test_a_stage_run_twice_finds_its_result(walked: dict[str, str]) -> None:
    assert walked["extract again"].count("found") == 3
    assert "computed" not in walked["extract again"]


def test_neither_prefect_nor_an_mlflow_run_was_needed(walked: dict[str, str]) -> None:
    home = Path(walked["home"])
    assert not (home / "prefect").exists()
    assert not (home / "mlflow.db").exists()
