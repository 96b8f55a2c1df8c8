"""The sections about the run as a whole: header, headline numbers, data, lineage, configuration."""

from typing import Any

from farside.report import lineage, prose
from farside.report.drawn import drawn
from farside.report.markup import Markup, join, pill, quiet, section, table, tag
from farside.report.numbers import NONE, change, count, duration, is_number, number, percent, short_hash, size
from farside.report.read import PHASES, Run, mapping, mean, numbers_of, stages_of
from farside.report.story import findings, green_of, held_out_change

_NOT_YET = "not run yet"
KINDS = {"finished": "good", "running": "plain", "stopped": "warn", "failed": "bad", _NOT_YET: "plain"}
_WHAT = {
    "prepare": "trains the tokenizer, cuts the text into splits",
    "pretrain": "learns language and retrieval, short texts first",
    "eval": "needle grids: can it find facts in long texts?",
    "sft": "supervised warm start on written-out reasoning",
    "reward": "learns to tell good answers from bad ones",
    "rl_reward_alone": "the same start, taught by the reward model alone",
    "rl": "learns to reason from verified rewards",
    "report": "writes this page",
}
CONTENTS = {
    "summary": "Summary",
    "data": "Data",
    "pretraining": "Pretraining",
    "needles": "Needle grids",
    "sft": "Warm start",
    "reward": "Reward model",
    "rl": "RL",
    "samples": "Completions",
    "lineage": "Lineage",
    "config": "Configuration",
}


def header(run: Run) -> Markup:
    status = str(run.status.get("status", "status unknown"))
    facts: list[object] = [pill(status, KINDS.get(status, "plain"))]
    if status != "finished" and "phase" in run.status:
        facts.append(f"in phase {run.status['phase']}, step {number(run.status.get('step'))}")
    seconds = total_seconds(run)
    if seconds is not None:
        facts.append(f"total time {duration(seconds)}")
    facts += _machine_facts(run.machine)
    parts: list[object] = [
        tag("h1", f"farside run: {run.directory.resolve().name}"),
        tag("p", *(tag("span", fact) for fact in facts), class_="facts"),
    ]
    if run.status.get("cause"):
        parts.append(tag("p", "Cause: ", run.status["cause"], class_="cause"))
    if run.command:
        parts.append(tag("pre", run.command, class_="command"))
    if run.problems:
        parts.append(tag("p", "Not shown, because it could not be read:", class_="quiet"))
        parts.append(tag("ul", *(tag("li", problem) for problem in run.problems), class_="quiet"))
    parts.append(tag("nav", *(tag("a", title, href=f"#{name}") for name, title in CONTENTS.items())))
    return tag("header", *parts)


def total_seconds(run: Run) -> Any:
    if is_number(run.status.get("seconds")):
        return run.status["seconds"]
    known = [seconds for seconds in map(run.seconds, PHASES) if seconds is not None]
    return sum(known) if known else None


def _machine_facts(machine: dict[str, Any]) -> list[str]:
    facts = [str(machine["cpu"])] if "cpu" in machine else []
    for key, unit in (("cores", "core"), ("ranks", "rank")):
        if is_number(machine.get(key)):
            facts.append(f"{number(machine[key])} {unit}{'' if machine[key] == 1 else 's'}")
    if "memory_bytes" in machine:
        facts.append(f"{size(machine['memory_bytes'])} memory")
    return facts + [f"{name} {machine[key]}" for name, key in _VERSIONS if key in machine]


_VERSIONS = (("PyTorch", "torch"), ("Python", "python"))


def summary(run: Run) -> Markup:
    cards = [_card(*card) for card in _headlines(run)]
    parts: list[object] = [tag("p", prose.SUMMARY)]
    if cards:
        parts.append(tag("div", *cards, class_="cards"))
    found = findings(run)
    if found:
        parts.append(tag("ul", *(tag("li", tag("b", word), f" {text}") for word, text in found)))
    parts.append(table(("phase", "key number", "time", "status"), _phase_rows(run), numeric=(2,)))
    return section("summary", CONTENTS["summary"], *parts)


def _card(value: str, label: str) -> Markup:
    return tag("div", tag("b", value), tag("span", label), class_="card")


def _headlines(run: Run) -> list[tuple[str, str]]:
    cards = []
    if run.grids:
        cards.append(_needle_card(run.grids))
    before, after = held_out_change(run)
    if after != NONE:
        cards.append((change(before, after), "held-out problems solved, before → after RL"))
    elif before != NONE:
        cards.append((before, "held-out problems solved after the warm start"))
    reward = run.summary("reward")
    if "held_out_accuracy" in reward:
        cards.append(
            (
                percent(reward["held_out_accuracy"]),
                "of held-out pairs ordered rightly by the reward model; from length and format alone: "
                + percent(reward.get("format_baseline_accuracy")),
            )
        )
    seconds = total_seconds(run)
    if seconds is not None:
        cards.append((duration(seconds), "in all" if run.status.get("status") == "finished" else "so far"))
    return cards


def _needle_card(grids: list[dict[str, Any]]) -> tuple[str, str]:
    """Green cells of every grid, or of the first and the last of many: never the best, which hides a loss."""
    shown = grids if len(grids) <= 3 else [grids[0], grids[-1]]
    counts = [green_of(result) for result in shown]
    if len({cells for _, cells in counts}) == 1:
        value = " → ".join(number(green) for green, _ in counts) + f" of {number(counts[0][1])}"
    else:
        value = " → ".join(f"{number(green)}/{number(cells)}" for green, cells in counts)
    titles = " → ".join(str(result.get("title", result["name"])) for result in shown)
    return value, f"needle cells green, {titles}"


def _phase_rows(run: Run) -> list[tuple[object, ...]]:
    """Phases in the order they ran; those still missing follow."""
    named = [str(entry.get("name", "?")) for entry in run.phases]
    rows: list[tuple[object, ...]] = []
    for name in [*named, *(phase for phase in PHASES if phase not in named)]:
        entry = next((e for e in run.phases if e.get("name") == name), {})
        status = str(entry.get("status", _phase_status(run, name)))
        kind = KINDS.get(status, "plain")
        label: object = pill(status, kind) if status != _NOT_YET else tag("span", status, class_="quiet")
        family = next((known for known in _WHAT if name.startswith(known)), None)
        title = tag("div", tag("b", name), tag("div", _WHAT[family] if family else "", class_="soft"))
        seconds = entry["seconds"] if is_number(entry.get("seconds")) else run.seconds(name)
        rows.append((title, _key_number(run, name), duration(seconds), label))
    return rows


def _phase_status(run: Run, name: str) -> str:
    """Status of a phase that phases.json does not list."""
    if run.status.get("phase") == name and "status" in run.status:
        return str(run.status["status"])
    if run.summary(name):
        return "finished"
    return "begun" if run.ran(name) else _NOT_YET


def _key_number(run: Run, name: str) -> str:
    if name == "prepare" and run.data:
        tokens = [s.get("train_tokens") for s in mapping(run.data, "sources").values() if isinstance(s, dict)]
        return f"{count(sum(t for t in tokens if is_number(t)))} training tokens"
    if name == "pretrain" and run.ran(name):
        return f"loss {loss_change(run.rows(name))}" + _length_change(run)
    if name.startswith("eval") and run.grids:
        return f"{len(run.grids)} grid{'s' if len(run.grids) > 1 else ''}"
    if name == "sft" and run.ran(name):
        accuracy = percent(run.summary(name).get("held_out_accuracy"))
        known = f"held-out accuracy {accuracy}" if accuracy != NONE else ""
        return known or f"loss {loss_change(run.rows(name))}"
    if name == "reward" and run.summary(name):
        if run.summary(name).get("kind") == "process":
            return f"step accuracy {percent(run.summary(name).get('step_accuracy'))}"
        own = percent(run.summary(name).get("held_out_accuracy"))
        return f"pair accuracy {own}, format only {percent(run.summary(name).get('format_baseline_accuracy'))}"
    if name == "rl" and run.ran(name):
        return f"held-out accuracy {change(*held_out_change(run))}"
    if name == "rl_reward_alone" and run.summary(name):
        ends = (percent(run.summary(name).get(f"held_out_accuracy_{when}")) for when in ("before", "after"))
        return f"held-out accuracy {change(*ends)}"
    return ""


def loss_change(rows: list[dict[str, Any]]) -> str:
    """Loss of the first step -> mean of the last twenty: one step alone is noise."""
    losses = numbers_of(rows, "loss")
    return change(number(losses[0] if losses else None), number(mean(losses[-20:])))


def _length_change(run: Run) -> str:
    lengths = [stage.seq_len for stage in stages_of(run.rows("pretrain")) if is_number(stage.seq_len)]
    return f", length {change(number(lengths[0]), number(lengths[-1]))}" if len(set(lengths)) > 1 else ""


def data(run: Run) -> Markup:
    if not run.data:
        return section("data", "Data and tokenizer", quiet("Not run yet."))
    rows = []
    for name, source in mapping(run.data, "sources").items():
        source = source if isinstance(source, dict) else {}
        tokens, total = source.get("train_tokens"), source.get("train_bytes")
        ratio = total / tokens if is_number(total) and is_number(tokens) and tokens else None
        splits = [number(source.get(f"{split}_tokens")) for split in ("train", "validation", "haystack")]
        rows.append((name, *splits, size(total), number(ratio)))
    columns = (
        "source",
        "training tokens",
        "validation tokens",
        "haystack tokens",
        "training text",
        "bytes a token",
    )
    return section(
        "data",
        "Data and tokenizer",
        tag("p", prose.DATA.format(entries=number(run.data.get("vocab_size")))),
        table(columns, rows, numeric=range(1, 6)),
        *drawn(run),
        tag(
            "p",
            tag("span", "tokenizer ", tag("code", short_hash(run.data.get("tokenizer_hash")))),
            tag("span", "data fingerprint ", tag("code", short_hash(run.data.get("fingerprint")))),
            class_="facts",
        ),
    )


def lineage_table(run: Run) -> Markup:
    links = lineage.links_of(run)
    if not links:
        return section("lineage", CONTENTS["lineage"], quiet("No checkpoint recorded yet."))
    broken = lineage.break_in(links)
    if broken:
        verdict = join([pill("chain broken", "bad"), f" {broken}."])
    elif len(links) == 1:
        verdict = join([pill("one phase", "plain"), " No chain to check yet."])
    else:
        verdict = join([pill("chain intact", "good"), " Each phase names the hash of the phase it started from."])
    rows = []
    for link in links:
        origin = link.source or ("another run" if link.parent else "nothing")
        if not link.intact:
            origin = "unknown"
        rows.append(
            (
                link.phase,
                tag("code", link.path or NONE),
                number(link.step),
                tag("code", short_hash(link.hash)),
                tag("code", short_hash(link.parent)),
                origin if link.intact else pill(origin, "bad"),
            )
        )
    columns = ("phase", "checkpoint", "step", "hash", "parent's hash", "started from")
    return section("lineage", CONTENTS["lineage"], tag("p", verdict), table(columns, rows, numeric=(2,)))


def configuration(run: Run) -> Markup:
    if not run.config:
        return section("config", CONTENTS["config"], quiet("No config.yaml."))
    details = tag("details", tag("summary", "The resolved config of this run"), tag("pre", run.config))
    return section("config", CONTENTS["config"], details)
