"""The argument that most commands take."""

from pathlib import Path
from typing import Annotated

import typer

Recipe = Annotated[Path, typer.Argument(help="Recipe in YAML.", metavar="CONFIG", show_default=False)]
