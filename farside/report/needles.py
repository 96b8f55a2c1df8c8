"""The section of the needle grids: the picture, the counts, and the same questions put to each model."""

from farside.report import lineage, plots, prose
from farside.report.markup import Markup, image, join, pill, quiet, section, table, tag
from farside.report.numbers import NONE, duration, number, short_hash
from farside.report.read import Row, Run, mapping
from farside.report.story import green_of
from farside.train.eval.heatmap import count_green, language_name

MOST_GRIDS = 6
MOST_EXAMPLES = 6


def needles(run: Run) -> Markup:
    title = "Needle grids: does it find facts in long texts?"
    if not run.grids:
        return section("needles", title, quiet("Not run yet."))
    grids = run.grids
    if len(grids) > MOST_GRIDS:  # evenly spread, with the first and the last
        last = len(grids) - 1
        grids = [grids[round(i * last / (MOST_GRIDS - 1))] for i in range(MOST_GRIDS)]
    first = grids[0]
    asked = number(first.get("needles_per_cell"))
    parts: list[object] = [
        tag("p", prose.NEEDLES.format(needles=asked)),
        tag("p", tag("b", _story(grids))),
        image(plots.grids(grids), "needle grids: " + "; ".join(title_of(result) for result in grids)),
        _grid_table(run, grids),
    ]
    if len(grids) < len(run.grids):
        parts.append(quiet(f"{len(grids)} of {len(run.grids)} grids are shown."))
    parts += _examples(grids)
    return section("needles", title, *parts)


def title_of(result: Row) -> str:
    return str(result.get("title", result["name"]))


def _story(grids: list[Row]) -> str:
    counts = [(title_of(result), *green_of(result)) for result in grids]
    return "Green cells: " + ", ".join(f"{g:,} of {cells:,} {title}" for title, g, cells in counts) + "."


def _grid_table(run: Run, grids: list[Row]) -> Markup:
    links = lineage.links_of(run)
    languages = list(dict.fromkeys(language for result in grids for language in result["grids"]))
    rows = []
    for result in grids:
        checkpoint = mapping(result, "checkpoint")
        phase = lineage.phase_with_hash(links, checkpoint.get("hash"))
        source = join([f"step {number(checkpoint.get('step'))} ", tag("code", short_hash(checkpoint.get("hash")))])
        greens = []
        for language in languages:
            grid = result["grids"].get(language, None)
            greens.append("{:,} of {:,}".format(*count_green(grid)) if grid else NONE)
        rows.append(
            (
                title_of(result),
                number(result.get("trained_length")),
                *greens,
                duration(result.get("seconds")),
                join([source, f" ({phase})" if phase else ""]),
            )
        )
    columns = (
        "grid",
        "trained length",
        *(f"{language_name(x)}, green" for x in languages),
        "time",
        "checkpoint",
    )
    return table(columns, rows, numeric=range(1, 3 + len(languages)))


def _examples(grids: list[Row]) -> list[object]:
    """The same questions put to each model, as far as they were: one row a question, one column a grid."""
    asked: dict[tuple[str, ...], dict[int, Row]] = {}
    for index, result in enumerate(grids):
        stored = result.get("examples")
        for example in stored if isinstance(stored, list) else []:
            if isinstance(example, dict):
                key = tuple(str(example.get(k)) for k in ("language", "length", "depth", "question", "expected"))
                asked.setdefault(key, {})[index] = example
    if not asked:
        return []
    most = max(len(answers) for answers in asked.values())
    common = [answers for answers in asked.values() if len(answers) == most]
    spread = max(1, (len(common) - 1) // (MOST_EXAMPLES - 1)) if len(common) > MOST_EXAMPLES else 1
    shown = common[::spread][:MOST_EXAMPLES]
    rows = []
    for answers in shown:
        any_answer = next(iter(answers.values()))
        place = f"{number(any_answer.get('length'))} tokens, depth {any_answer.get('depth', NONE)}%"
        rows.append(
            (
                any_answer.get("question", NONE),
                tag("span", place, class_="soft"),
                any_answer.get("expected", NONE),
                *(_answer(answers[i]) if i in answers else NONE for i in range(len(grids))),
            )
        )
    columns = ("question", "where it was hidden", "expected", *(title_of(result) for result in grids))
    return [
        tag("h3", "Some questions and answers"),
        quiet(f"{len(shown)} of {len(asked)} stored questions, spread evenly, not picked by outcome."),
        table(columns, rows),
    ]


def _answer(example: Row) -> Markup:
    mark = pill("right", "good") if example.get("correct") is True else pill("wrong", "bad")
    return join([example.get("answer", NONE), " ", mark])
