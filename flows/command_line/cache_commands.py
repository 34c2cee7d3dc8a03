"""Commands on the object store: ls, du, verify, gc."""

from __future__ import annotations

import typer

cache = typer.Typer(help="Look after what the store holds.", no_args_is_help=True)
