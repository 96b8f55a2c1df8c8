"""Language modelling on packed documents: every row is whole documents, or cuts of those longer than a row.

A row holds S + 1 tokens, the last as a label only. A document longer than that is cut into pieces of S + 1 that
overlap by one token, which the next piece reads but does not predict again. So every token of a document but
its first is predicted exactly once an epoch; a cut costs the context before it and one token read twice.
"""

from collections.abc import Mapping

import numpy as np

from farside.configs.errors import UserError
from farside.configs.schema import Packing
from farside.data.batch import Sample, document_sample
from farside.data.binpack import best_fit, length_bucketed
from farside.data.lengths import weigh
from farside.data.order import fold, rng, shuffled_item
from farside.data.plan import Plan, PlanStore


class PackedSource:
    """Rows of one packing of one source; plans are made when a length is first asked for.

    tokens [T]: the flat documents; offsets [N + 1]: where they begin, and T.
    """

    def __init__(
        self,
        name: str,
        tokens: np.ndarray,
        offsets: np.ndarray,
        padding: int,
        packing: Packing,
        lengths: Mapping[int, float],
        seed: int,
        store: PlanStore,
    ) -> None:
        # plain views: slicing np.memmap itself is slow
        self.name, self.tokens, self.offsets, self.padding = name, np.asarray(tokens), np.asarray(offsets), padding
        self.packing, self.lengths, self.seed, self.store = packing, dict(lengths), seed, store
        self._plans: dict[int, Plan] = {}
        self._seeds: dict[int, int] = {}

    def plan(self, seq_len: int) -> Plan:
        """The plan of rows of ``seq_len``. Raises UserError for a source without a token to predict."""
        if seq_len not in self._plans:
            described = {
                "source": self.name,
                "seq_len": seq_len,
                "packing": self.packing.value,
                "lengths": sorted(self.lengths.items()),
                "seed": self.seed,
            }
            plan = self.store.open(described, lambda: self.make_plan(seq_len))
            if not plan.rows:
                raise UserError(f"source {self.name!r} has no row of {seq_len} + 1 tokens to train on; give more text")
            self._plans[seq_len] = plan
        return self._plans[seq_len]

    def make_plan(self, seq_len: int) -> Plan:
        generator = rng(self.seed, "plan", self.name, seq_len, self.packing.value)
        reading = weigh(np.diff(self.offsets), self.lengths, generator, self.name)
        documents = generator.permutation(np.repeat(np.arange(len(reading.times)), reading.times))
        if self.packing is Packing.concatenate:
            rows_P, starts_P, lengths_P = concatenate(self.offsets, documents, seq_len)
        else:
            starts_P, lengths_P = cut(self.offsets, documents, seq_len)
            longest_first = np.argsort(-lengths_P, kind="stable")
            starts_P, lengths_P = starts_P[longest_first], lengths_P[longest_first]
            place = best_fit if self.packing is Packing.best_fit else length_bucketed
            rows_P = place(lengths_P, seq_len + 1)
        rows = int(rows_P.max()) + 1 if len(rows_P) else 0
        facts = {
            "documents": len(reading.times),
            "readings": len(documents),
            "epochs": reading.epochs,
            "predicted": int((lengths_P - 1).sum()),
            "padding_share": 1 - float(lengths_P.sum()) / max(1, rows * (seq_len + 1)),
            "shares": {str(bound): share for bound, share in reading.shares.items()},
        }
        return Plan.of_rows(rows_P, starts_P, lengths_P, facts)

    @property
    def size(self) -> int:
        return len(self.tokens)

    def rows(self, seq_len: int) -> int:
        """Rows after which every document had its turn."""
        return self.plan(seq_len).rows

    def epochs(self, seq_len: int) -> float:
        """How often they read the source's tokens."""
        return self.plan(seq_len).facts["epochs"]

    def predicted(self, seq_len: int) -> float:
        """Mean tokens a row predicts."""
        plan = self.plan(seq_len)
        return plan.facts["predicted"] / plan.rows

    def sample(self, index: int, seq_len: int) -> Sample:
        if seq_len not in self._seeds:
            self._seeds[seq_len] = fold(self.seed, self.name, seq_len, self.packing.value)
        return self.row(shuffled_item(index, self.plan(seq_len).rows, self._seeds[seq_len]), seq_len)

    def row(self, number: int, seq_len: int) -> Sample:
        """Row ``number`` of the plan."""
        plan = self.plan(seq_len)
        low, high = plan.row_starts[number : number + 2].tolist()
        tokens = np.full(seq_len + 1, self.padding, dtype=np.int64)
        weights = np.ones(seq_len + 1, dtype=np.float32)
        starts = np.zeros(seq_len + 1, dtype=bool)
        end = 0
        for start, length in zip(plan.starts[low:high].tolist(), plan.lengths[low:high].tolist()):
            tokens[end : end + length] = self.tokens[start : start + length]
            starts[end] = True
            end += length
        if end <= seq_len:  # padding is a document of its own, without weight
            starts[end] = True
            weights[end:] = 0.0
        return document_sample(tokens, weights, starts)


def cut(offsets_N: np.ndarray, documents: np.ndarray, seq_len: int) -> tuple[np.ndarray, np.ndarray]:
    """(start, length) of every piece, [P] each: as many predictions as a document's tokens but the first, at most
    seq_len a piece. A document of one token predicts nothing and gives no piece."""
    predicted_N = np.maximum(np.diff(offsets_N)[documents] - 1, 0)
    pieces_N = -(-predicted_N // seq_len)
    document_P = np.repeat(np.arange(len(documents)), pieces_N)
    before_P = (np.arange(len(document_P)) - np.repeat(np.cumsum(pieces_N) - pieces_N, pieces_N)) * seq_len
    lengths_P = np.minimum(predicted_N[document_P] - before_P, seq_len) + 1
    return offsets_N[documents][document_P] + before_P, lengths_P


def concatenate(
    offsets_N: np.ndarray, documents: np.ndarray, seq_len: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(row, start, length) of every piece, [P] each: documents one after the other, cut into windows of seq_len + 1
    that overlap by one; a rest shorter than a window is left out."""
    sizes_N = np.diff(offsets_N)[documents]
    documents, sizes_N = documents[sizes_N > 0], sizes_N[sizes_N > 0]
    ends_N = np.cumsum(sizes_N)
    begins_N = ends_N - sizes_N
    windows_R = np.arange(max(0, (int(sizes_N.sum()) - 1) // seq_len)) * seq_len
    first_R = np.searchsorted(ends_N, windows_R, side="right")
    pieces_R = np.searchsorted(begins_N, windows_R + seq_len + 1, side="left") - first_R
    rows_P = np.repeat(np.arange(len(windows_R)), pieces_R)
    number_P = first_R[rows_P] + np.arange(len(rows_P)) - np.repeat(np.cumsum(pieces_R) - pieces_R, pieces_R)
    low_P = np.maximum(begins_N[number_P], windows_R[rows_P])
    high_P = np.minimum(ends_N[number_P], windows_R[rows_P] + seq_len + 1)
    return rows_P, offsets_N[documents][number_P] + low_P - begins_N[number_P], high_P - low_P
