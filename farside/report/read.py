"""Reads whatever a run directory holds so far. Nothing but an empty directory is an error.

A file that is missing belongs to a phase that has not run; one that cannot be read is left out and named in
``Run.problems``, which the page shows: a report must work most of all for the run that broke.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from farside.configs.errors import UserError
from farside.report.numbers import is_number
from farside.train.eval.heatmap import check_result

PHASES = ("pretrain", "sft", "reward", "rl", "rl_reward_alone")
Row = dict[str, Any]


@dataclass(frozen=True)
class Run:
    """Contents of a run directory; what is missing is empty."""

    directory: Path
    config: str
    command: str
    status: Row
    machine: Row
    data: Row
    drawn: list[Row]
    contamination: list[Row]
    """Pretraining's stages: what each draws from its sources."""
    phases: list[Row]
    metrics: dict[str, list[Row]]
    """Phase -> one object a step."""
    summaries: dict[str, Row]
    samples: list[Row]
    answers: list[Row]
    """Greedy answers of RL to the first held-out problems, one a problem and evaluation."""
    grids: list[Row]
    """Needle grids in the order of their key ``order``."""
    maths: list[Row]
    """Results of farside eval math by name; ``png`` is each one's picture, empty where there is none."""
    problems: list[str]
    """One line for each file, or line of one, that could not be read."""

    def seconds(self, phase: str) -> Any:
        """Time of a phase: its summary's, else that of phases.json, else the sum over steps, else None."""
        entries = [self.summary(phase), *(entry for entry in self.phases if entry.get("name") == phase)]
        for entry in entries:
            if is_number(entry.get("seconds")):
                return entry["seconds"]
        steps = [row["seconds"] for row in self.rows(phase) if is_number(row.get("seconds"))]
        return sum(steps) if steps else None

    def rows(self, phase: str) -> list[Row]:
        return self.metrics.get(phase, [])

    def summary(self, phase: str) -> Row:
        return self.summaries.get(phase, {})

    def ran(self, phase: str) -> bool:
        return bool(self.rows(phase) or self.summary(phase))


@dataclass(frozen=True)
class Stage:
    """Consecutive steps of one stage of training."""

    name: str
    seq_len: Any
    rows: list[Row]


def read_run(run_dir: Path) -> Run:
    """Read a run directory. Raises UserError when there is nothing of a run in it."""
    reader = _Reader(run_dir)
    metrics = {phase: reader.lines(f"{phase}/metrics.jsonl") for phase in PHASES}
    summaries = {phase: reader.object(f"{phase}/summary.json") for phase in PHASES}
    status = reader.object("status.json")
    alone = reader.lines("metrics.jsonl")
    if alone:  # one phase started by itself (farside train, farside rl) keeps its metrics at the top
        phase = _phase_of(status, alone)
        metrics[phase] = metrics[phase] or alone
        summaries[phase] = summaries[phase] or reader.object("summary.json")
    run = Run(
        directory=run_dir,
        config=reader.text("config.yaml"),
        command=reader.text("command.txt").strip(),
        status=status,
        machine=reader.object("machine.json"),
        data=reader.object("data.json"),
        drawn=reader.objects("pretrain/data_drawn.json") or reader.objects("data_drawn.json"),
        contamination=reader.objects("pretrain/contamination.json") or reader.objects("contamination.json"),
        phases=reader.objects("phases.json"),
        metrics={phase: rows for phase, rows in metrics.items() if rows},
        summaries={phase: summary for phase, summary in summaries.items() if summary},
        samples=reader.lines("rl/samples.jsonl") or reader.lines("samples.jsonl"),
        answers=reader.lines("rl/held_out.jsonl") or reader.lines("held_out.jsonl"),
        grids=reader.grids(),
        maths=reader.maths(),
        problems=reader.problems,
    )
    found = (run.config, status, run.data, run.phases, run.metrics, run.summaries, run.samples, run.grids, run.maths)
    if not any(found):
        raise UserError(
            f"{run_dir}: holds nothing of a run; "
            "give the directory of one (run.dir=...) or start one with farside run experiment=demo"
        )
    return run


def numbers_of(rows: list[Row], key: str) -> list[float]:
    """The finite values of ``key``, in order."""
    return [float(row[key]) for row in rows if is_number(row.get(key))]


def mean(values: list[float]) -> float | None:
    return sum(values) / len(values) if values else None


def median(values: list[float]) -> float | None:
    return sorted(values)[len(values) // 2] if values else None


def mapping(parent: Mapping[str, Any], key: str) -> Row:
    """The object under ``key``; empty where there is none."""
    value = parent.get(key)
    return value if isinstance(value, dict) else {}


def stages_of(rows: list[Row]) -> list[Stage]:
    """Rows cut where the stage or its length changes."""
    stages: list[Stage] = []
    for row in rows:
        name, seq_len = str(row.get("stage", "")), row.get("seq_len")
        if not stages or (stages[-1].name, stages[-1].seq_len) != (name, seq_len):
            stages.append(Stage(name, seq_len, []))
        stages[-1].rows.append(row)
    return stages


def _phase_of(status: Row, rows: list[Row]) -> str:
    """Which phase top-level metrics belong to: as the status says, else by what a step records."""
    if status.get("phase") in PHASES:
        return str(status["phase"])
    if "reward" in rows[0]:
        return "rl"
    return str(rows[0]["stage"]) if rows[0].get("stage") in PHASES else "pretrain"


class _Reader:
    """Reads files below one directory and collects what could not be read."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.problems: list[str] = []

    def text(self, name: str) -> str:
        path = self.directory / name
        if not path.is_file():
            return ""
        # A write cut short can end inside a character: replace it rather than refuse the file.
        return path.read_text(encoding="utf-8", errors="replace")

    def object(self, name: str) -> Row:
        value = self._json(name)
        if value is not None and not isinstance(value, dict):
            self.problems.append(f"{name} is not a JSON object: left out")
        return value if isinstance(value, dict) else {}

    def objects(self, name: str) -> list[Row]:
        value = self._json(name)
        if value is not None and not isinstance(value, list):
            self.problems.append(f"{name} is not a JSON list: left out")
        return [entry for entry in value if isinstance(entry, dict)] if isinstance(value, list) else []

    def lines(self, name: str) -> list[Row]:
        """Objects of a JSON-lines file. A torn last line is what a kill leaves: dropped without a word."""
        # Not splitlines(): a completion may hold U+2028 and the like, which are no ends of lines in JSON.
        lines = self.text(name).split("\n")
        rows = []
        for index, line in enumerate(lines):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except (ValueError, RecursionError):
                row = None
            if isinstance(row, dict):
                rows.append(row)
            elif index < len(lines) - 1:
                self.problems.append(f"{name}, line {index + 1} is not a JSON object: left out")
        return rows

    def grids(self) -> list[Row]:
        results = []
        for path in sorted(self.directory.glob("eval/*/niah.json")):
            name = path.relative_to(self.directory).as_posix()
            result = self._json(name)
            if result is None:
                continue
            try:
                check_result(result)
            except ValueError as error:
                self.problems.append(f"{name}: {error}: left out")
                continue
            results.append(result)
        return sorted(results, key=lambda r: (r["order"] if is_number(r.get("order")) else 0, r["name"]))

    def maths(self) -> list[Row]:
        found = []
        for path in sorted(self.directory.glob("eval/*/math.json")):
            picture = path.with_suffix(".png")
            result = self.object(path.relative_to(self.directory).as_posix())
            if result:
                found.append({**result, "png": picture.read_bytes() if picture.is_file() else b""})
        return found

    def _json(self, name: str) -> Any:
        text = self.text(name)
        if not text:
            return None
        try:
            return json.loads(text)
        except (ValueError, RecursionError) as error:
            self.problems.append(f"{name} is not JSON ({error}): left out")
            return None
