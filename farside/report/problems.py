"""The section of ``farside eval math``: held-out problems solved, with the picture that the evaluation drew."""

from typing import Any

from farside.report import prose
from farside.report.markup import Markup, image, join, section, table, tag
from farside.report.numbers import number, percent, short_hash
from farside.report.read import Row, Run, mapping


def problems(run: Run) -> Markup:
    """Nothing where no such evaluation was made: it is no phase of a job."""
    if not run.maths:
        return join([])
    pictures = [
        image(result["png"], f"problems solved: {result.get('name')}", str(result.get("name")))
        for result in run.maths
        if result["png"]
    ]
    heads = ("evaluation", "checkpoint", "problems", "greedy", "pass@k", "maj@k", "verifier errors")
    rows = [_row(result) for result in run.maths]
    return section("problems", "Problems solved", tag("p", prose.MATH), table(heads, rows, numeric=(2, 3)), *pictures)


def _row(result: Row) -> tuple[Any, ...]:
    checkpoint = mapping(result, "checkpoint")
    source = join([f"step {number(checkpoint.get('step'))} ", tag("code", short_hash(checkpoint.get("hash")))])
    at_k = [
        ", ".join(f"{k}: {percent(value)}" for k, value in mapping(result, key).items())
        for key in ("pass_at_k", "maj_at_k")
    ]
    counted = (number(result.get("prompts")), percent(result.get("greedy")))
    return (str(result.get("name")), source, *counted, *at_k, percent(result.get("error_share")))
