"""metrics.jsonl: floats to the last bit, torn lines left out, a resume goes on without a seam."""

import json
import math
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from farside.train.metrics import Follower, MetricsWriter, Table, columns_of, read_metrics, write_json


def write(folder: Path, steps: range, resumed_at: int) -> None:
    writer = MetricsWriter(folder, resumed_at)
    for step in steps:
        writer.write({"step": step, "loss": 1 / step})
    writer.close()


def test_a_resume_drops_what_comes_again(tmp_path: Path) -> None:
    write(tmp_path, range(1, 8), 0)
    whole = (tmp_path / "metrics.jsonl").read_bytes()
    write(tmp_path, range(5, 8), 4)
    assert (tmp_path / "metrics.jsonl").read_bytes() == whole
    write(tmp_path, range(0), 2)
    assert [line["step"] for line in read_metrics(tmp_path / "metrics.jsonl")] == [1, 2]
    write(tmp_path, range(1, 3), 0)
    assert [line["step"] for line in read_metrics(tmp_path / "metrics.jsonl")] == [1, 2]


def test_a_torn_last_line_is_left_out_and_overwritten(tmp_path: Path) -> None:
    write(tmp_path, range(1, 6), 0)
    path = tmp_path / "metrics.jsonl"
    whole = path.read_text()
    for cut in range(1, len(whole.splitlines()[-1]) + 1):
        path.write_text(whole[:-cut])
        assert [line["step"] for line in read_metrics(path)] == [1, 2, 3, 4]
    write(tmp_path, range(5, 6), 4)
    assert path.read_text() == whole


def test_lines_are_on_disk_before_the_next_step(tmp_path: Path) -> None:
    writer = MetricsWriter(tmp_path, 0)
    writer.write({"step": 1})
    assert read_metrics(tmp_path / "metrics.jsonl") == [{"step": 1}]
    writer.close()


def test_no_file_means_no_lines(tmp_path: Path) -> None:
    assert read_metrics(tmp_path / "metrics.jsonl") == []


@given(st.floats(allow_nan=False), st.integers(0, 2**60))
def test_numbers_round_trip_exactly(tmp_path_factory: object, value: float, tokens: int) -> None:
    record = {"step": 1, "loss": value, "tokens": tokens}
    found = json.loads(json.dumps(record))
    assert found == record
    assert math.copysign(1, found["loss"]) == math.copysign(1, value)


def test_floats_survive_writing_and_resuming(tmp_path: Path) -> None:
    values = [0.1 + 0.2, 1 / 3, 5e-324, 1.7976931348623157e308, -0.0, 2.0**-1074, 123456789.123456789]
    writer = MetricsWriter(tmp_path, 0)
    for step, value in enumerate(values):
        writer.write({"step": step, "loss": value})
    writer.close()
    MetricsWriter(tmp_path, len(values)).close()
    found = [line["loss"] for line in read_metrics(tmp_path / "metrics.jsonl")]
    assert [value.hex() for value in found] == [value.hex() for value in values]


def test_json_is_replaced_at_once(tmp_path: Path) -> None:
    path = tmp_path / "summary.json"
    write_json(path, {"a": 1})
    with path.open() as reader:
        write_json(path, {"a": 2})
        assert json.load(reader) == {"a": 1}
    assert json.loads(path.read_text()) == {"a": 2}
    assert [file.name for file in tmp_path.iterdir()] == ["summary.json"]


def test_tables_follow_the_steps_that_were_logged(tmp_path: Path) -> None:
    """Samples wait for their step's line of metrics, and are shown once though a resume writes them again."""
    table = Table(Follower(tmp_path / "samples.jsonl"))
    assert table.take(0) == []
    writer = MetricsWriter(tmp_path, 0, "samples.jsonl")
    for step in (1, 1, 2, 3):
        writer.write({"step": step, "text": f"{step}"})
    assert [row["step"] for row in table.take(1)] == [1, 1]
    assert [row["step"] for row in table.take(3)] == [2, 3]
    writer.close()
    writer = MetricsWriter(tmp_path, 2, "samples.jsonl")
    assert table.take(3) == []
    for step in (3, 4):
        writer.write({"step": step, "text": f"{step}"})
    assert [row["step"] for row in table.take(4)] == [4]
    writer.close()


def test_a_torn_line_is_left_until_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    follower = Follower(path)
    path.write_text('{"step": 1}\n{"st')
    assert list(follower.new()) == [{"step": 1}]
    path.write_text('{"step": 1}\n{"step": 2}\n')
    assert list(follower.new()) == [{"step": 2}]


def test_columns_of_rows_that_differ() -> None:
    rows = [{"step": 0, "text": "a"}, {"step": 1, "reward": None, "text": "b"}]
    assert columns_of(rows) == (["step", "text", "reward"], [[0, "a", None], [1, "b", None]])
