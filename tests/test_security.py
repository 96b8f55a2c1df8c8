"""Hostile files against every reader: none runs code, each is refused in one line or plainly left out.

The payload is a pickle that makes a file when it is loaded; the tests of the source itself are in test_imports.py.
"""

import json
import os
import pickle
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from farside.configs import compose
from farside.configs.errors import UserError
from farside.data.indexed import IndexedTokens
from farside.data.prepare import Prepared
from farside.data.tokenizer import Tokenizer
from farside.report.read import read_run
from farside.train.metrics import MetricsWriter, read_metrics
from farside.train.runtime import write_status
from tests.ranks import Rank
from tests.train.looping import Ran, config_of, train

ALONE = Rank(0, 1)


class Payload:
    """Runs a command where it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (f"touch {self.marker}",)


def attacks(marker: Path) -> dict[str, bytes]:
    """Pickles of several shapes; the last two hide from scanners."""
    payload = Payload(marker)
    shape = b"{'descr': '|O', 'fortran_order': False, 'shape': (1,), }"
    header = b"\x93NUMPY\x01\x00v\x00" + shape.ljust(117) + b"\n"
    nested = f"cos\nsystem\n(S'touch {marker}'\ntR".encode()
    return {
        "reduce": pickle.dumps(payload),
        "protocol 0": pickle.dumps(payload, protocol=0),
        "eval": f'cbuiltins\neval\n(S\'__import__("os").system("touch {marker}")\'\ntR.'.encode(),
        "npy": header + pickle.dumps(np.array([payload], dtype=object)),
        "first payload, then garbage": nested + b"0garbage" * 50,
        "in a dictionary": pickle.dumps({"state": {"step": 1, "rng_state": payload}}),
    }


@pytest.fixture
def marker(tmp_path: Path) -> Iterator[Path]:
    """Must not be there at the end; the payload works, or this proves nothing."""
    path = tmp_path / "marker"
    pickle.loads(pickle.dumps(Payload(path)))  # noqa: S301
    assert path.exists()
    path.unlink()
    yield path
    assert not path.exists(), "hostile bytes were run"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run directory with checkpoints."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    train(ALONE, folder, config_of(4), {})
    return folder


FOREIGN = (".metadata", "__0_0.distcp", "rng_state.pth", "optimizer.pt", "extra_state", "tokenizer.pkl", "cached.npy")


def resume(run: Path) -> Ran:
    return train(ALONE, run, config_of(6), {})


def attempt(run: Path) -> list[UserError]:
    """Resumes; the refusal, if it is one."""
    try:
        resume(run)
    except UserError as refused:
        return [refused]
    return []


@pytest.mark.timeout(60)
def test_pickles_beside_a_checkpoints_files(tmp_path: Path, trained: Path, marker: Path) -> None:
    """What DCP, transformers and others would unpickle, with every payload: refused or left alone, never run."""
    for name in FOREIGN:
        for number, content in enumerate(attacks(marker).values()):
            run = tmp_path / f"{name}-{number}"
            shutil.copytree(trained, run)
            (next(run.glob("checkpoints/step_*")) / name).write_bytes(content)
            refusals = [str(error) for error in attempt(run)]
            assert all(name in text and "\n" not in text for text in refusals)
            shutil.rmtree(run)


@pytest.mark.timeout(60)
def test_pickles_in_place_of_a_checkpoints_files(tmp_path: Path, trained: Path, marker: Path) -> None:
    """Each file of a checkpoint becomes a pickle, and the manifest agrees: the attacker wrote that too."""
    import hashlib

    newest = next(trained.glob("checkpoints/step_*"))
    for file in sorted(path for path in newest.iterdir() if path.name != "manifest.json"):
        for content in attacks(marker).values():
            run = tmp_path / "run"
            shutil.copytree(trained, run)
            folder = run / "checkpoints" / newest.name
            (folder / file.name).write_bytes(content)
            manifest = json.loads((folder / "manifest.json").read_text())
            digest = hashlib.sha256(content).hexdigest()
            manifest["files"][file.name] |= {"size": len(content), "sha256": digest}
            (folder / "manifest.json").write_text(json.dumps(manifest, indent=1))
            with pytest.raises((UserError, ValueError)):
                resume(run)
            shutil.rmtree(run)
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    (run / "checkpoints" / newest.name / "manifest.json").write_bytes(attacks(marker)["reduce"])
    with pytest.raises(UserError, match="manifest"):
        resume(run)


def test_folder_of_dcp_is_no_checkpoint(tmp_path: Path, marker: Path) -> None:
    from farside.train.checkpoint.format import read

    folder = tmp_path / "step_00000007"
    folder.mkdir()
    for name in FOREIGN:
        (folder / name).write_bytes(attacks(marker)["reduce"])
    with pytest.raises(UserError, match="not a checkpoint"):
        read(folder)


READERS: dict[str, Callable[[Path], object]] = {
    "token index": lambda path: IndexedTokens.open(path.with_suffix("")),
    "tokenizer": Tokenizer.load,
    "configuration": compose.load,
}
SUFFIXES = {"token index": ".idx"}


@pytest.mark.parametrize("reader", READERS)
def test_pickles_are_no_input(tmp_path: Path, marker: Path, reader: str) -> None:
    path = (tmp_path / "file").with_suffix(SUFFIXES.get(reader, ".x"))
    path.with_suffix(".bin").write_bytes(b"\0" * 64)
    for content in attacks(marker).values():
        path.write_bytes(content)
        with pytest.raises(UserError) as caught:
            READERS[reader](path)
        assert "\n" not in str(caught.value)


def test_prepared_folder_of_pickles(tmp_path: Path, marker: Path) -> None:
    for content in attacks(marker).values():
        (tmp_path / "data.json").write_bytes(content)
        with pytest.raises(UserError, match=r"data\.json"):
            Prepared(tmp_path)


LAUGHS = "\n".join(
    ["a0: &a0 [x,x,x,x,x,x,x,x,x]"] + [f"a{n}: &a{n} [{','.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 10)]
)
YAMLS = {
    "apply": "train: !!python/object/apply:os.system ['touch {marker}']",
    "new": "train: !!python/object/new:os.system ['touch {marker}']",
    "name": "train: !!python/name:os.system",
    "module": "train: !!python/module:os",
    "laughs": LAUGHS,
    "depth": "a: " + "[" * 100_000,
    "wrong": "train: [",
}


@pytest.mark.timeout(20)
@pytest.mark.parametrize("kind", YAMLS)
def test_hostile_yaml(tmp_path: Path, marker: Path, kind: str) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(YAMLS[kind].replace("{marker}", str(marker)))
    with pytest.raises(UserError) as caught:
        compose.load(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.timeout(20)
def test_hostile_json(tmp_path: Path, trained: Path, marker: Path) -> None:
    """Deep, with NaN, or pickled: a report leaves it out and says so; a resume does not choke on numbers."""
    deep = '{"a":' * 100_000 + "1" + "}" * 100_000
    pretrain = tmp_path / "pretrain"
    pretrain.mkdir()
    (tmp_path / "command.txt").write_text("farside run\n")
    lines = ['{"step": 1, "loss": NaN}', '{"step": 2, "loss": Infinity}', deep, '{"step": 4, "loss": 1.5}']
    (pretrain / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    (tmp_path / "status.json").write_text(deep)
    run = read_run(tmp_path)
    assert [row["step"] for row in run.rows("pretrain")] == [1, 2, 4]
    assert len(run.problems) == 2
    for content in attacks(marker).values():
        (pretrain / "metrics.jsonl").write_bytes(content + b"\n{}\n")
        read_run(tmp_path)
    copy = tmp_path / "copy"
    shutil.copytree(trained, copy)
    with (copy / "metrics.jsonl").open("a") as stream:
        stream.write('{"step": 5, "loss": NaN}\n')
    MetricsWriter(copy, 4).close()
    assert [line["step"] for line in read_metrics(copy / "metrics.jsonl")] == [1, 2, 3, 4]
    (copy / "metrics.jsonl").write_text(deep + "\n")
    with pytest.raises(UserError, match=r"metrics\.jsonl"):
        MetricsWriter(copy, 4)
    (copy / "status.json").write_text(deep)
    write_status(copy, "running")  # it is replaced, whatever it was
    assert json.loads((copy / "status.json").read_text())["status"] == "running"


def test_json_that_we_write_has_no_nan(tmp_path: Path) -> None:
    writer = MetricsWriter(tmp_path, 0)
    writer.write({"step": 1, "loss": float("nan"), "grad_norm": float("-inf"), "lr": 0.1})
    writer.close()
    (line,) = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert json.loads(line, parse_constant=pytest.fail) == {"step": 1, "loss": None, "grad_norm": None, "lr": 0.1}
