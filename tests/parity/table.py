"""docs/parity.md from a run of the whole matrix: ``python -m tests.parity.table > docs/parity.md``."""

import time

from tests.parity.cells import Cell, Errors, errors, train
from tests.parity.matrix import cover, low_precision
from tests.ranks import RankPool

HEAD = """# The parity matrix

Every cell trains a small model (4 layers, width 12, 8 heads over 4 key/value heads, QK-norm, vocabulary 37, 12 rows of
48 tokens) for three steps in its layout and in one process, with clipping active, and compares loss, gradient norm,
every parameter's gradient and every weight: `||found - one process|| / ||one process||`, the largest over parameters,
steps and ranks. Initial weights are compared bit for bit. Names: documents (one a row; many of odd lengths; some rows
mostly padding, so that ranks see nothing), weights (all tokens, or half of the rows, and so whole ranks, count
nothing), tied or untied embeddings, micro-batches a step, optimizer.

Every two choices meet in at least one cell (a covering design: tests/parity/matrix.py). Gates, held by
`./scripts/test.sh --all tests/parity`: loss 1e-12, gradients 1e-10, weights 1e-9 in fp64. This page is written by
`./scripts/experiments.sh parity`.
"""


def measure(pool: RankPool, cells: list[Cell]) -> list[tuple[Cell, Errors]]:
    ordered = sorted(cells, key=lambda cell: (cell.ranks, cell.name))
    return [(cell, errors(cell, pool.run(train, cell.ranks, cell, deadline=120.0))) for cell in ordered]


def rows(found: list[tuple[Cell, Errors]]) -> str:
    lines = ["| ranks | cell | loss | gradient norm | gradients | weights |", "|---|---|---|---|---|---|"]
    for cell, error in found:
        numbers = (error.loss, error.grad_norm, error.gradient, error.weight)
        lines.append(f"| {cell.ranks} | {cell.name} | " + " | ".join(f"{number:.0e}" for number in numbers) + " |")
    return "\n".join(lines)


def main() -> None:
    pool, started = RankPool(8), time.monotonic()
    try:
        exact, low = measure(pool, cover()), measure(pool, low_precision())
    finally:
        pool.close()
    worst = {name: max(getattr(error, name) for _, error in exact) for name in ("loss", "gradient", "weight")}
    print(HEAD)
    print(
        f"{len(exact)} cells in fp64, {time.monotonic() - started:.0f} s with those below: "
        f"worst loss {worst['loss']:.0e}, gradient {worst['gradient']:.0e}, weight {worst['weight']:.0e}.\n"
    )
    print(rows(exact))
    print(
        "\n## Low precision\n\nThe same against one process in fp64; the first row of each type is one process too.\n"
    )
    print(rows(low))


if __name__ == "__main__":
    main()
