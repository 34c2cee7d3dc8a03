"""The command line ``fuseline``."""

from __future__ import annotations

import sys

import typer

from flows.command_line.cache_commands import cache
from flows.command_line.fusion_commands import plan, report, run
from flows.command_line.mt_bench_commands import data, mt_bench
from flows.command_line.place_commands import doctor
from flows.command_line.registry_commands import lineage, promote, reproduce, rollback
from flows.command_line.source_commands import add_source, receiver, refusion, sources
from flows.command_line.stack_commands import down, status, up
from flows.command_line.stage_commands import evaluate, extract, fuse, merge, prepare, train
from flows.command_line.sweep_commands import ablate
from fusion_core.errors import FusionError, TrainingInterruptedError, first_line
from tasks.environment import configure_libraries, home_folder
from tasks.store.local_files import is_full_disk

USER_ERROR = 2
INTERRUPTED = 130
# EX_TEMPFAIL of sysexits: the machine was taken away, and the same command goes on elsewhere or later.
PREEMPTED = 75

application = typer.Typer(
    name="fuseline",
    help="Fuse several chat LLMs of any architecture, size and tokenizer into one (FuseChat, arXiv 2402.16107).",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
for command in (
    plan,
    run,
    add_source,
    sources,
    refusion,
    prepare,
    extract,
    fuse,
    train,
    merge,
    evaluate,
    promote,
    rollback,
    lineage,
    reproduce,
    report,
    ablate,
    doctor,
    up,
    down,
    status,
    receiver,
):
    application.command()(command)
application.add_typer(cache, name="cache")
application.add_typer(data, name="data")
application.add_typer(mt_bench, name="mt-bench")


def main() -> None:
    """Run the command line; a user's mistake is one sentence on standard error and exit status 2.

    A training that was asked to stop by SIGTERM, and can be resumed, ends with status 75.
    """
    try:
        configure_libraries(home_folder())
        application()
    except TrainingInterruptedError as error:
        print(f"fuseline: {error}", file=sys.stderr)
        sys.exit(PREEMPTED)
    except FusionError as error:
        print(f"fuseline: {error}", file=sys.stderr)
        sys.exit(USER_ERROR)
    except Exception as error:
        sentence = _plain_sentence(error)
        if sentence is None:
            raise
        print(f"fuseline: {sentence}.", file=sys.stderr)
        sys.exit(USER_ERROR)
    except SystemExit as stopped:
        # Typer turns Ctrl-C into this status and says nothing.
        if stopped.code == INTERRUPTED:
            print("fuseline: interrupted; run the same command again to go on from here.", file=sys.stderr)
        raise


def _plain_sentence(error: Exception) -> str | None:
    """Say what to do about an error of the machine or of a server, which any library may raise; None for others."""
    from tasks.servers import is_server_away

    again = "and run the same command again, which goes on from here"
    if isinstance(error, RuntimeError) and "home directory" in str(error):
        # What Python says of a path such as ~nobody/x, wherever it is first used.
        return "a path begins with ~ and a user this machine does not have; correct it"
    if is_server_away(error):
        return f"a server stopped answering ({first_line(error)}); see that Prefect and MLflow run, {again}"
    # A full disk or a missing permission can end any stage; without a file's name it is no such thing.
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror}; free the disk, correct the path or its permissions, {again}"
    return f"the disk is full; free some space, {again}" if is_full_disk(error) else None
