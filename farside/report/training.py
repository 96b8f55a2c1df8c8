"""The sections of supervised phases: pretraining, warm start, reward model."""

import itertools

from farside.report import plots, prose
from farside.report.judge import choosing
from farside.report.markup import Markup, image, quiet, section, table, tag
from farside.report.numbers import NONE, change, count, is_number, number, percent, size
from farside.report.overview import CONTENTS, loss_change
from farside.report.read import Row, Run, Stage, mapping, mean, median, numbers_of, stages_of
from farside.train.eval.heatmap import language_name

_NOT_YET = quiet("Not run yet.")


def pretraining(run: Run) -> Markup:
    title = "Pretraining and context extension"
    if not run.ran("pretrain"):
        return section("pretraining", title, _NOT_YET)
    rows = run.rows("pretrain")
    parts: list[object] = [tag("p", prose.PRETRAINING)]
    if rows:
        stages = stages_of(rows)
        parts += [
            image(plots.loss_by_stage(stages), "training loss over steps, by stage"),
            table(
                (
                    "stage",
                    "length",
                    "steps",
                    "tokens",
                    "loss at its end",
                    "tokens a second",
                    "MFU",
                    "peak memory",
                ),
                _stage_rows(stages),
                numeric=range(1, 8),
            ),
            image(
                plots.throughput(stages),
                "tokens a second and MFU over steps",
                prose.SPEED,
            ),
            *_slowest(rows),
        ]
    parts += _validation(run.summary("pretrain"))
    return section("pretraining", title, *parts)


def _slowest(rows: list[Row]) -> list[object]:
    """The rank that others waited for most, if ranks were compared."""
    compared = [row for row in rows if is_number(row.get("slowest_score"))]
    if not compared:
        return []
    worst = min(compared, key=lambda row: row["slowest_score"])
    text = (
        f"Own time of the ranks, compared {len(compared):,} times; slowest: rank {number(worst['slowest_rank'])}, "
        f"up to step {number(worst['step'])}; the fastest took {percent(worst['slowest_score'])} of its time."
    )
    return [quiet(text)]


def _stage_rows(stages: list[Stage]) -> list[tuple[object, ...]]:
    # Cumulative counts rise at every step, counts of a step repeat: both are read rightly.
    every = [value for stage in stages for value in numbers_of(stage.rows, "tokens")]
    cumulative = all(a < b for a, b in itertools.pairwise(every))
    table_rows: list[tuple[object, ...]] = []
    seen = 0.0
    for stage in stages:
        tokens = numbers_of(stage.rows, "tokens")
        total = (tokens[-1] - seen if cumulative else sum(tokens)) if tokens else None
        seen = tokens[-1] if tokens else seen
        peak = max(numbers_of(stage.rows, "peak_memory_bytes"), default=None)
        table_rows.append(
            (
                stage.name or NONE,
                number(stage.seq_len),
                number(len(stage.rows)),
                count(total),
                number(mean(numbers_of(stage.rows, "loss")[-20:])),
                number(median(numbers_of(stage.rows, "tokens_per_second"))),
                percent(median(numbers_of(stage.rows, "mfu"))),
                size(peak),
            )
        )
    return table_rows


def _validation(summary: Row) -> list[object]:
    losses = mapping(summary, "validation_loss")
    if not losses:
        return []
    text = ", ".join(f"{language_name(name)} {number(value)}" for name, value in losses.items())
    return [tag("p", f"Loss on text never trained on, nats a token: {text}.")]


def warm_start(run: Run) -> Markup:
    title = "Supervised warm start"
    if not run.ran("sft"):
        return section("sft", title, _NOT_YET)
    rows, summary = run.rows("sft"), run.summary("sft")
    parts: list[object] = [tag("p", prose.WARM_START)]
    if "held_out_accuracy" in summary:
        prompts = number(summary.get("held_out_prompts"))
        asked = f"On {prompts} problems it has never seen, greedy answers are right "
        parts.append(tag("p", asked, tag("b", percent(summary["held_out_accuracy"])), " of the time."))
    if rows:
        parts.append(image(plots.loss(rows), "warm-start loss over steps", f"Loss {loss_change(rows)}.", narrow=True))
    return section("sft", title, *parts, *_validation(summary))


def reward_model(run: Run) -> Markup:
    if not run.ran("reward"):
        return section("reward", CONTENTS["reward"], _NOT_YET)
    summary = run.summary("reward")
    if summary.get("kind") == "process":
        return section("reward", CONTENTS["reward"], *_process_model(run, summary), *choosing(summary))
    model, baseline = summary.get("held_out_accuracy"), summary.get("format_baseline_accuracy")
    parts: list[object] = [tag("p", prose.REWARD)]
    if is_number(model):
        if is_number(baseline):
            verdict = "ahead of" if model > baseline else "no better than"
            beside = f": {verdict} the {percent(baseline)} that length and format alone reach"
        else:
            beside = ""
        pairs = f"{number(summary.get('held_out_pairs'))} held-out pairs"
        parts.append(tag("p", f"On {pairs} it is right ", tag("b", percent(model)), f" of the time{beside}."))
        parts.append(
            image(plots.reward_accuracy(model, baseline), "reward model beside length and format", narrow=True)
        )
    calibrated = mapping(summary, "calibration")
    if "error" in calibrated:
        parts.append(quiet(f"Its probability for a pair is off by {percent(calibrated['error'])} (calibration error)."))
    parts += choosing(summary)
    rows = run.rows("reward")
    trained = f"Trained on {number(summary.get('train_pairs'))} pairs" if "train_pairs" in summary else "Training"
    accuracy = numbers_of(rows, "accuracy")
    if rows:
        over = change(percent(mean(accuracy[:5])), percent(mean(accuracy[-20:])))
        trained += f": {len(rows):,} steps, loss {loss_change(rows)}, accuracy on training pairs {over}"
    return section("reward", CONTENTS["reward"], *parts, quiet(trained + "."))


def _process_model(run: Run, summary: Row) -> list[object]:
    """A model of steps: its accuracy up to a planted mistake, beside always saying what is commoner."""
    planted, own = (mapping(mapping(summary, "steps"), kind) for kind in ("corrupted", "samples"))
    rows = [
        (name, number(found.get("count")), percent(found.get("accuracy")), percent(found.get("commoner")))
        for name, found in (("up to a planted mistake", planted), ("of the policy's own answers", own))
        if found
    ]
    trained = f"Trained on {number(summary.get('train_steps'))} steps of answers"
    if losses := run.rows("reward"):
        trained += f": {len(losses):,} updates, loss {loss_change(losses)}"
    return [
        tag("p", prose.PROCESS),
        table(("held-out steps", "steps", "judged rightly", "always saying the commoner"), rows, numeric=(1, 2, 3)),
        tag("p", "First wrong step found in ", tag("b", percent(planted.get("located"))), " of those answers."),
        quiet(trained + "."),
    ]
