"""How much of what is learned came from a source: counts that add up over shards.

Legend: N pivot positions, D dialogues.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any


@dataclass(frozen=True)
class Counts:
    """One source on one domain.

    Parameters
    ----------
    dialogues, positions : int
        Dialogues, and pivot positions in them.
    boundary : int
        Positions where the source has a token boundary too.
    conditioned : int
        Positions inside a source token, where its distribution was conditioned on the bytes read.
    no_entry : int
        Positions where no stored entry of the source fits.
    not_covered : int
        Positions whose text the source has not read, or whose tokens match none of the source's one to one.
    stored_mass, kept_mass : float
        Over the supervised positions: mass of the source's entries, and of the projected rows.
    dialogues_won, positions_won : int
        Where the source had the lowest cross-entropy of all models.
    """

    dialogues: int = 0
    positions: int = 0
    boundary: int = 0
    conditioned: int = 0
    no_entry: int = 0
    not_covered: int = 0
    stored_mass: float = 0.0
    kept_mass: float = 0.0
    dialogues_won: int = 0
    positions_won: int = 0

    def __add__(self, other: Counts) -> Counts:
        return Counts(*(getattr(self, part.name) + getattr(other, part.name) for part in fields(Counts)))

    @property
    def fallen_back(self) -> int:
        """Positions without a source distribution."""
        return self.no_entry + self.not_covered

    @property
    def fallen_back_share(self) -> float:
        """Share of the positions without a source distribution."""
        return self.fallen_back / self.positions if self.positions else 0.0

    @property
    def mass_kept(self) -> float:
        """Share of the source's stored mass that the projected rows hold."""
        return self.kept_mass / self.stored_mass if self.stored_mass else 0.0

    @property
    def won_share(self) -> float:
        """Share of the positions at which the source had the lowest cross-entropy."""
        return self.positions_won / self.positions if self.positions else 0.0


@dataclass(frozen=True)
class Coverage:
    """Counts of every source on every domain.

    Parameters
    ----------
    sources : mapping of source name to mapping of domain to Counts
    """

    sources: Mapping[str, Mapping[str, Counts]] = field(default_factory=dict)

    def __add__(self, other: Coverage) -> Coverage:
        merged = {name: dict(domains) for name, domains in self.sources.items()}
        for name, domains in other.sources.items():
            mine = merged.setdefault(name, {})
            for domain, counts in domains.items():
                mine[domain] = mine.get(domain, Counts()) + counts
        return Coverage(merged)

    def overall(self, source: str) -> Counts:
        """Return one source's counts over all domains."""
        return sum(self.sources[source].values(), Counts())

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values: ``{source: {domain: {count: number}}}``."""
        return {
            name: {domain: asdict(counts) for domain, counts in sorted(domains.items())}
            for name, domains in self.sources.items()
        }

    @staticmethod
    def from_json(values: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> Coverage:
        """Read what :meth:`to_json` wrote."""
        return Coverage(
            {name: {domain: Counts(**counts) for domain, counts in domains.items()} for name, domains in values.items()}
        )
