"""Types and patterns that several sections share."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import Field

Share = Annotated[float, Field(ge=0.0, le=1.0)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]
# No array has more entries, and no machine more room: a larger number is a slip of the pen.
Count = Annotated[int, Field(ge=1, lt=2**31)]
CountOrZero = Annotated[int, Field(ge=0, lt=2**31)]
# Each is a thread, or a request that somebody waits for.
Few = Annotated[int, Field(ge=1, le=1024)]
Seconds = Annotated[float, Field(gt=0.0, le=86_400.0)]
NAME_PATTERN = re.compile(r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}\Z")
