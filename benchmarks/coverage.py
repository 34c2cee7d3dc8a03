"""How many positions learn from what a source really knows, for pairs of real tokenizers on real dialogues.

    python -m benchmarks.coverage
    python -m benchmarks.coverage --pivots openchat_like demo_8k --sources qwen2_5 --per-domain 20
    python -m benchmarks.coverage --cache DIR        keep the sources' distributions for the next run

Sources are lab sources (benchmarks.lab_sources: SmolLM2's body behind each tokenizer; ``smollm2`` is the model itself);
dialogues are the demo's, of three domains. Tokenizers beside the checkout are used where they are, else the demo's
three. All figures are shares of the pivot's response positions, at k = 10:

boundary      supervised by ``positions: bytes`` where both models have a token boundary
conditioned   supervised inside a source token, whose distribution is conditioned on the bytes read
fall back     not supervised, at k = 10 and at k = 20; by domain at k = 10
dtw           supervised by ``positions: dtw`` with ``vocabulary: statistics`` (the paper's), counted on these dialogues
kept          of the source's stored mass, what the projected rows hold
gold          geometric mean of the probability that the projected source gives to a gold token

The second table says what the positions are that fall back, by what the pivot's gold token holds. There none of the
stored entries begins with the bytes read and goes on. ``odds``: the median probability that the source gave its own
gold token. ``shorter``: the mean mass of stored entries that lie on the text but end before the position: what the
source would say after those was not asked.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.lab_sources import OWN, SHARED_TOKENIZERS, load_tokenizer, read_dialogues, read_distributions
from fusion_core.alignment import (
    BytePositions,
    Projection,
    SharedText,
    Spans,
    join_responses,
    place_tokens,
    project_with_coverage,
)
from fusion_core.alignment.matching import match_one_to_one
from fusion_core.alignment.positions import align_spans
from fusion_core.alignment.projection import BOUNDARY, CONDITIONED
from fusion_core.alignment.statistics import count_aligned_pairs
from fusion_core.config import AlignmentConfig
from fusion_core.dialogues import Dialogue
from fusion_core.distributions import TopK
from fusion_core.encoding.encoder import Encoder
from fusion_core.encoding.token_bytes import TokenBytes, token_bytes
from fusion_core.errors import DialogueRefusedError
from fusion_core.pairing import pair_vocabulary

TOP_K, MORE = 10, 20
CLASSES = ("end of turn", "digits", "spaces", "punctuation", "word start", "inside a word", "other script")
PIVOTS = ("openchat_like", "demo_8k", "qwen2_5", "gpt2")


@dataclass(frozen=True)
class Reader:
    """A tokenizer and where its tokens stand in the dialogues."""

    name: str
    encoder: Encoder
    known: TokenBytes
    spans: Spans


def read(name: str, dialogues: Sequence[Dialogue], max_length_tokens: int) -> Reader:
    """Encode the dialogues with a tokenizer."""
    tokenizer = load_tokenizer(name)
    encoder = Encoder(tokenizer, max_length_tokens, name)
    encoded = [None if isinstance(item, DialogueRefusedError) else item for item in encoder.encode_all(dialogues)]
    return Reader(name, encoder, token_bytes(tokenizer), place_tokens(encoded, join_responses(dialogues)[1]))


def first_entries(rows: TopK, top_k: int) -> TopK:
    """Keep the most probable entries."""
    return TopK(rows.token_ids[:, :top_k], rows.log_probs[:, :top_k], rows.label_log_probs, rows.row_splits)


def project_bytes(pivot: Reader, source: Reader, rows: TopK, text: np.ndarray) -> Projection:
    """Project by bytes as a recipe does."""
    spans, own = pivot.spans, source.spans
    source_rows, bytes_read = align_spans(spans.starts, spans.ends, own.starts, own.ends)
    positions = BytePositions(source_rows, bytes_read, spans.row_splits)
    vocabulary = pair_vocabulary(pivot.encoder, source.encoder, AlignmentConfig())
    shared = SharedText(text, spans, own, pivot.known, source.known)
    return project_with_coverage(rows, positions, vocabulary, text=shared)


def share_of_time_warping(pivot: Reader, source: Reader, dialogues: Sequence[Dialogue]) -> float:
    """Share of positions that the paper's alignment supervises."""
    counts = count_aligned_pairs(dialogues, pivot.encoder, source.encoder, "dtw")
    paper = AlignmentConfig(positions="dtw", vocabulary="statistics")
    vocabulary = pair_vocabulary(pivot.encoder, source.encoder, paper, counts=counts)
    return float(np.mean(match_one_to_one(pivot.spans, source.spans, pivot.known, source.known, vocabulary) >= 0))


def classes_of(reader: Reader) -> np.ndarray:
    """Say of each gold token what it holds: an index into CLASSES, int [N]."""
    return np.array(
        [
            0 if end else _class_of(reader.known.values[label])
            for label, end in zip(reader.spans.labels.tolist(), reader.spans.is_end_of_turn.tolist(), strict=True)
        ]
    )


def _class_of(value: bytes) -> int:
    bare = value.strip()
    if not bare:
        return 2
    if any(byte >= 128 for byte in bare):
        return 6
    text = bare.decode()
    if text.isdigit():
        return 1
    if not any(letter.isalnum() for letter in text):
        return 3
    return 4 if value[:1].isspace() else 5


def measure(
    pivot: Reader, source: Reader, rows: TopK, text: np.ndarray, dialogues: Sequence[Dialogue]
) -> dict[str, float]:
    """Return a pair's figures, and what falls back as ``class:<name>`` and ``odds``."""
    found = {k: project_bytes(pivot, source, first_entries(rows, k), text) for k in (TOP_K, MORE)}
    kinds = found[TOP_K].kinds
    silent = kinds > CONDITIONED
    figures = {
        "boundary": float(np.mean(kinds == BOUNDARY)),
        "conditioned": float(np.mean(kinds == CONDITIONED)),
        "fall back": float(np.mean(silent)),
        "k = 20": float(np.mean(found[MORE].kinds > CONDITIONED)),
        "dtw": share_of_time_warping(pivot, source, dialogues),
        "kept": float(found[TOP_K].kept[~silent].sum() / found[TOP_K].stored[~silent].sum()),
        "gold": float(np.exp(np.mean(found[TOP_K].top_k.label_log_probs))),
    }
    domains = np.repeat([dialogue.domain for dialogue in dialogues], np.diff(pivot.spans.row_splits))
    for domain in dict.fromkeys(domains.tolist()):
        figures[domain] = float(np.mean(silent[domains == domain]))
    kinds_of_text = classes_of(pivot)
    for index, name in enumerate(CLASSES):
        figures[f"class:{name}"] = float(np.mean(silent & (kinds_of_text == index)))
    inside = np.flatnonzero(silent & (found[TOP_K].source_rows >= 0))
    row = found[TOP_K].source_rows[inside]
    figures["odds"] = float(np.median(np.exp(rows.label_log_probs[row]))) if len(row) else float("nan")
    figures["shorter"] = shorter_mass(source, first_entries(rows, TOP_K), row, pivot.spans.starts[inside], text)
    return figures


def shorter_mass(source: Reader, rows: TopK, at: np.ndarray, until: np.ndarray, text: np.ndarray) -> float:
    """Mean mass of the entries of some rows that lie on the text and end before some bytes."""
    masses = []
    for row, stop in zip(at.tolist(), until.tolist(), strict=True):
        lead = source.known.values[source.spans.labels[row]][: source.spans.leads[row]]
        read = lead + text[source.spans.starts[row] : stop].tobytes()
        entries = zip(rows.token_ids[row].tolist(), np.exp(rows.log_probs[row]).tolist(), strict=True)
        masses.append(
            sum(mass for token, mass in entries if token >= 0 and read.startswith(source.known.values[token]))
        )
    return float(np.mean(masses)) if masses else float("nan")


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    real = [folder.name for folder in sorted(SHARED_TOKENIZERS.glob("*"))] if SHARED_TOKENIZERS.is_dir() else []
    here = list(dict.fromkeys([*OWN, *real]))
    parser.add_argument("--pivots", nargs="+", default=[name for name in PIVOTS if name in here])
    parser.add_argument("--sources", nargs="+", default=[name for name in here if name != "demo_8k"])
    parser.add_argument("--per-domain", type=int, default=60, help="dialogues of each domain")
    parser.add_argument("--max-length-tokens", type=int, default=1024)
    parser.add_argument("--cache", type=Path, help="folder that keeps the sources' distributions")
    arguments = parser.parse_args()
    dialogues = read_dialogues(arguments.per_domain)
    text, _ = join_responses(dialogues)
    readers: dict[str, Reader] = {}
    for name in dict.fromkeys([*arguments.pivots, *arguments.sources]):
        readers[name] = read(name, dialogues, arguments.max_length_tokens)
    table: dict[tuple[str, str], dict[str, float]] = {}
    for source in arguments.sources:
        rows = read_distributions(source, dialogues, MORE, arguments.max_length_tokens, arguments.cache)
        for pivot in arguments.pivots:
            if readers[pivot].known.digest != readers[source].known.digest:
                table[pivot, source] = measure(readers[pivot], readers[source], rows, text, dialogues)
    print(f"{len(dialogues)} dialogues, {len(text):,} bytes of responses\n")
    second = [*(f"class:{name}" for name in CLASSES), "odds", "shorter"]
    print_table(table, [name for name in next(iter(table.values())) if name not in second])
    print("\nWhat falls back at k = 10, share of all positions; and of the source's rows there\n")
    print_table(table, second)


def print_table(table: dict[tuple[str, str], dict[str, float]], columns: list[str]) -> None:
    """Print some figures of every pair."""
    titles = [column.removeprefix("class:") for column in columns]
    print(f"{'pivot':<14}{'source':<14}" + "".join(f"{title:>{max(9, len(title) + 2)}}" for title in titles))
    for pivot, source in sorted(table):
        figures = table[pivot, source]
        cells = [
            f"{figures[column]:>{max(9, len(title) + 2)}.4f}" for column, title in zip(columns, titles, strict=True)
        ]
        print(f"{pivot:<14}{source:<14}" + "".join(cells))


if __name__ == "__main__":
    main()
