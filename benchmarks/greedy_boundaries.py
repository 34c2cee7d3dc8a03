"""How far projected distributions are from the true ones where token boundaries themselves carry information.

    python -m benchmarks.greedy_boundaries

Text comes from a known Markov chain over three letters; both vocabularies are byte-pair encodings trained on samples of
it, so a text has many spellings and the tokenizer picks one. An ideal source gives the true probability of its next
token given its tokens so far; the truth for the pivot is found the same way, by enumerating what may follow. Distances
are total variation, 0 to 1, of the row's normalised entries; a position without a row counts as the label alone.

Three things remain, and no method that sees bytes alone can remove them:

- That a source token ended at a shared boundary says that the text did not go on in a way the source's tokenizer would
  have joined: its distribution knows part of the text's future, which the pivot's may not know. This is most of what
  remains where the pivot's tokens are the shorter ones.
- That a pivot token ends here says that the text does not go on in a way that the tokenizer would have joined. The
  source's tokens do not end here, so its distribution does not know this; it gives mass to such continuations.
- An entry that deviates from the text is known only to its own end. Which pivot token it begins depends on what
  follows it; the longest prefix is a guess that is too short wherever a longer pivot token would have been completed.
"""

from __future__ import annotations

import argparse
from functools import lru_cache
from itertools import product

import numpy as np
from tokenizers import Tokenizer, models, trainers

from fusion_core.alignment import BytePositions, SharedText, Spans, project_with_coverage
from fusion_core.alignment.positions import align_spans
from fusion_core.alignment.projection import BOUNDARY, CONDITIONED
from fusion_core.alignment.trie import build_trie, longest_prefixes
from fusion_core.distributions import TopK
from fusion_core.encoding.token_bytes import TokenBytes

LETTERS = "abc"
# Letters enumerated after a boundary; tokens have at most LONGEST.
AHEAD, LONGEST = 8, 4


class Chain:
    """A first-order Markov chain over letters."""

    def __init__(self, seed: int) -> None:
        self.random = np.random.default_rng(seed)
        self.transitions = self.random.dirichlet(np.full(len(LETTERS), 0.8), len(LETTERS))
        self.futures = ["".join(letters) for letters in product(LETTERS, repeat=AHEAD)]
        index = np.array([[LETTERS.index(letter) for letter in future] for future in self.futures])
        inner = np.prod([self.transitions[index[:, i], index[:, i + 1]] for i in range(AHEAD - 1)], axis=0)
        # The probability of every future after each letter.
        self.future_masses = [self.transitions[letter, index[:, 0]] * inner for letter in range(len(LETTERS))]

    def sample(self, length: int) -> str:
        """Draw a text."""
        letters = [0]
        for _ in range(length):
            letters.append(int(self.random.choice(len(LETTERS), p=self.transitions[letters[-1]])))
        return "".join(LETTERS[letter] for letter in letters[1:])


class IdealModel:
    """Knows the true distribution of its next token given its tokens so far."""

    def __init__(self, chain: Chain, vocabulary_size: int) -> None:
        self.chain = chain
        self.tokenizer = Tokenizer(models.BPE())
        trainer = trainers.BpeTrainer(vocab_size=vocabulary_size, max_token_length=LONGEST, show_progress=False)
        self.tokenizer.train_from_iterator([chain.sample(4000)], trainer)
        size = self.tokenizer.get_vocab_size()
        values = [(self.tokenizer.id_to_token(index) or "").encode() for index in range(size)]
        digest = f"{vocabulary_size} of {values}"
        self.bytes = TokenBytes(values, np.zeros(size, bool), np.zeros(size, bool), digest)
        self.next_tokens = lru_cache(maxsize=None)(self._next_tokens)

    def _next_tokens(self, context: tuple[int, ...]) -> np.ndarray:
        # Cutting a text at a boundary changes no token after it, so a few tokens of context are enough.
        before = "".join(self.bytes.values[token].decode() for token in context)
        encodings = self.tokenizer.encode_batch_fast([before + future for future in self.chain.futures])
        masses = self.chain.future_masses[LETTERS.index(before[-1])]
        row = np.zeros(len(self.bytes))
        for encoding, mass in zip(encodings, masses, strict=True):
            if tuple(encoding.ids[: len(context)]) == context:
                row[encoding.ids[len(context)]] += mass
        return row / row.sum()

    def read(self, text: str, skip: int) -> tuple[Spans, np.ndarray]:
        """Return spans and true rows of the tokens that begin in the text, but not near its ends."""
        ids = self.tokenizer.encode(text).ids
        ends = np.cumsum([len(self.bytes.values[token]) for token in ids])
        starts = np.concatenate([[0], ends[:-1]])
        inner = np.flatnonzero((starts >= skip) & (ends <= len(text) - skip))
        rows = np.array([self.next_tokens(tuple(ids[i - 3 : i])) for i in inner])
        zeros = np.zeros(len(inner), np.int32)
        labels = np.array(ids, np.int32)[inner]
        splits = np.array([0, len(inner)], np.int64)
        return Spans(starts[inner], ends[inner], zeros, labels, zeros.astype(bool), splits), rows


def to_top_k(rows: np.ndarray, labels: np.ndarray, row_splits: np.ndarray, room: int) -> TopK:
    """Keep every entry."""
    ids = np.argsort(-rows, axis=1, kind="stable").astype(np.int32)
    with np.errstate(divide="ignore"):
        log_probs = np.log(np.take_along_axis(rows, ids, 1)).astype(np.float32)
        label_log_probs = np.log(rows[np.arange(len(labels)), labels]).astype(np.float32)
    ids = np.where(np.isfinite(log_probs), ids, -1).astype(np.int32)
    room = max(0, room - ids.shape[1])
    return TopK(
        np.pad(ids, ((0, 0), (0, room)), constant_values=-1),
        np.pad(log_probs, ((0, 0), (0, room)), constant_values=-np.inf),
        label_log_probs,
        row_splits,
    )


def measure(seed: int, pivot_size: int, source_size: int, length: int) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Return distances and kinds of positions for each setting."""
    chain = Chain(seed)
    pivot_model, source_model = IdealModel(chain, pivot_size), IdealModel(chain, source_size)
    text = chain.sample(length)
    pivot, truth = pivot_model.read(text, 16)
    source, source_rows = source_model.read(text, 8)
    buffer = np.frombuffer(text.encode() + b"\xff", np.uint8)
    shared = SharedText(buffer, pivot, source, pivot_model.bytes, source_model.bytes)
    rows, bytes_read = align_spans(pivot.starts, pivot.ends, source.starts, source.ends)
    positions = BytePositions(rows, bytes_read, pivot.row_splits)
    vocabulary = longest_prefixes(build_trie(pivot_model.bytes), *source_model.bytes.flat)
    distributions = to_top_k(source_rows, source.labels, source.row_splits, len(pivot_model.bytes))
    outcomes = {}
    for name, conditioned, consistent in (
        ("boundaries only", False, False),
        ("+ conditioning", True, False),
        ("+ chain rule (default)", True, True),
    ):
        found = project_with_coverage(
            distributions,
            positions,
            vocabulary,
            text=shared,
            condition_inside_tokens=conditioned,
            gold_consistent=consistent,
        )
        projected = np.zeros_like(truth)
        for position in range(len(truth)):
            stored = found.top_k.token_ids[position] >= 0
            if not stored.any():
                projected[position, pivot.labels[position]] = 1.0
                continue
            masses = np.exp(found.top_k.log_probs[position][stored].astype(np.float64))
            projected[position, found.top_k.token_ids[position][stored]] = masses / masses.sum()
        outcomes[name] = (np.abs(projected - truth).sum(axis=1) / 2, found.kinds)
    return outcomes


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--length", type=int, default=300, help="letters of text for each chain")
    parser.add_argument("--chains", type=int, default=2, help="random chains, averaged")
    arguments = parser.parse_args()
    print(f"{'pivot':>6}{'source':>7}  {'setting':<24}{'all':>8}{'boundary':>10}{'inside':>8}   share inside")
    for pivot_size, source_size in [(3, 24), (8, 24), (24, 24), (24, 8), (24, 3)]:
        runs = [measure(seed, pivot_size, source_size, arguments.length) for seed in range(arguments.chains)]
        inside = np.concatenate([run["+ conditioning"][1] == CONDITIONED for run in runs])
        boundary = np.concatenate([run["+ conditioning"][1] == BOUNDARY for run in runs])
        for name in runs[0]:
            distances = np.concatenate([run[name][0] for run in runs])
            parts = [distances.mean(), distances[boundary].mean(), distances[inside].mean() if inside.any() else np.nan]
            print(
                f"{pivot_size:>6}{source_size:>7}  {name:<24}{parts[0]:>8.4f}{parts[1]:>10.4f}{parts[2]:>8.4f}"
                f"   {inside.mean():.3f}"
            )


if __name__ == "__main__":
    main()
