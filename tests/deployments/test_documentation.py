"""README and docs: links lead somewhere, quoted messages exist, tables are what the planner computes."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from deployments.scaling import tables
from flows.command_line import application

REPOSITORY = Path(__file__).resolve().parents[2]
DOCS = REPOSITORY / "docs"
PAGES = [REPOSITORY / "README.md", *sorted(DOCS.glob("*.md"))]
FENCE = re.compile(r"^```.*?^```", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)")
# What a repository path looks like in the text: a package's folder and at least one more part.
PATH = re.compile(r"`((?:fusion_core|tasks|flows|deployments|docker|tests)/[\w./-]+)`")


def anchors(page: Path) -> set[str]:
    """Return the anchors that a page's headings get, on GitHub and in the built site alike."""
    headings = re.findall(r"^#+ (.+)$", FENCE.sub("", page.read_text(encoding="utf-8")), re.MULTILINE)
    plain = (re.sub(r"[^\w\- ]", "", heading.strip().lower()) for heading in headings)
    return {text.replace(" ", "-") for text in plain}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_relative_links_and_anchors_lead_somewhere(page: Path) -> None:
    dead = []
    for link in LINK.findall(FENCE.sub("", page.read_text(encoding="utf-8"))):
        if "://" in link:
            continue
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            dead.append(link)
    assert dead == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_paths_of_the_repository_exist(page: Path) -> None:
    paths = set(PATH.findall(page.read_text(encoding="utf-8"))) - {"fusion_core/merging/mine.py"}
    assert [path for path in paths if not (REPOSITORY / path).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_and_options_are_those_of_the_command_line(page: Path) -> None:
    known = commands()
    text = page.read_text(encoding="utf-8")
    shell = "\n".join(re.findall(r"^```sh\n(.*?)^```", text, re.DOTALL | re.MULTILINE))
    calls = re.findall(r"`fuseline ([a-z][^`\n]*)`", text) + re.findall(r"\.venv/bin/fuseline ([a-z][^\n#|]*)", shell)
    for call in calls:
        words = call.split()
        name = " ".join(words[:2]) if words[0] in ("cache", "data", "mt-bench") else words[0]
        assert name in known, f"{page.name}: fuseline {call}"
        wrong = {word for word in words if word.startswith("--")} - known[name] - {"--help"}
        assert not wrong, f"{page.name}: fuseline {call}"


def commands() -> dict[str, set[str]]:
    """Return the options of every command, groups' commands under both words."""
    import typer

    root = typer.main.get_command(application)
    found = {}
    for name, command in root.commands.items():  # type: ignore[attr-defined]
        inner = getattr(command, "commands", None)
        for key, one in {f"{name} {below}": it for below, it in inner.items()}.items() if inner else [(name, command)]:
            found[key] = {option for parameter in one.params for option in parameter.opts}
    return found


def test_every_quoted_message_is_in_the_source() -> None:
    source = "\n".join(texts())
    page = (DOCS / "troubleshooting.md").read_text(encoding="utf-8")
    cells = re.findall(r"^\| (`.+?) \| ", page, re.MULTILINE)
    assert len(cells) > 25
    fragments = [fragment for cell in cells for fragment in re.findall(r"`` (.+?) ``|`([^`]+)`", cell)]
    missing = [text for pair in fragments if (text := "".join(pair)) not in source]
    assert missing == []


def texts() -> list[str]:
    """Return every text of the source as it is after Python has joined what stands side by side."""
    return [
        node.value
        for package in ("fusion_core", "tasks", "flows")
        for path in (REPOSITORY / package).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    ]


def test_every_page_is_in_the_sites_navigation() -> None:
    navigation = set(
        re.findall(r": ([\w-]+\.md)$", (REPOSITORY / "mkdocs.yml").read_text(encoding="utf-8"), re.MULTILINE)
    )
    assert navigation == {page.name for page in DOCS.glob("*.md")}


def test_every_deployment_is_explained() -> None:
    deployments = YAML(typ="safe").load(REPOSITORY / "prefect.yaml")["deployments"]
    listed = set(re.findall(r"^\| `[\w-]+/([\w-]+)` \|", (DOCS / "stack.md").read_text(encoding="utf-8"), re.MULTILINE))
    assert listed == {one["name"] for one in deployments}


def test_tables_of_scaling_are_what_the_planner_gives() -> None:
    page = tables.PAGE.read_text(encoding="utf-8")
    assert set(re.findall(r"<!-- table (\w+) -->", page)) == set(tables.TABLES)
    assert tables.with_tables(page) == page, "run `python -m deployments.scaling.tables`"


def test_the_tables_agree_with_arithmetic_by_hand() -> None:
    plan = tables.plan_for(tables.recipe("seven"), 100_000)
    rows = {(row.stage, row.subject): row for row in plan.rows}
    tokens = 98_000 * 1024
    assert rows["extract", "mixtral"].flops == 2 * 12_900_000_000 * tokens
    assert rows["train", "solar"].flops == 3 * 4 * 2 * 7_240_000_000 * tokens
    assert rows["extract", "solar"].bytes == 40 * tokens
    assert rows["train", "solar"].seconds == pytest.approx(rows["train", "solar"].flops / (989e12 * 0.4))
    # A shard of 2,048 dialogues is 84 MB: one request to ask and one to put, 1 + 10 to read.
    assert tables.shard_requests(tables.recipe("seven"), 100_000, 40) == (48, 98, 528)


def test_the_output_of_plan_that_is_shown_agrees_with_the_tables() -> None:
    from fusion_core.report.formats import format_bytes, format_count

    page = tables.PAGE.read_text(encoding="utf-8")
    shown = page.split("$ fuseline plan", 1)[1].split("```", 1)[0]
    lines = [line.split("  ") for line in shown.splitlines()]
    cells = {parts[0].strip(): {part.strip() for part in parts[1:]} for parts in lines}
    for row in tables.plan_for(tables.recipe("seven"), 100_000).rows:
        if row.stage in ("extract", "train"):
            assert {format_count(row.flops), format_bytes(row.bytes)} <= cells[f"{row.stage} {row.subject}"]
