"""``farside chat``: which checkpoint, which format, in a pipe and on a terminal, and how it ends."""

import io
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from farside.chat import Shown, find, load, parse
from farside.configs.errors import UserError
from farside.configs.schema import ChatConfig
from farside.data.tokenizer import Tokenizer
from farside.train.checkpoint import format as checkpoint_format
from farside.train.inference.generate import generate
from tests.cli.terminal import Terminal
from tests.faults.driver import environment, farside


@pytest.fixture(scope="module")
def job(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole job's directory: its pretraining, and the same weights as if a warm start had left them."""
    root = tmp_path_factory.mktemp("chat") / "job"
    shutil.copytree(finished, root / "pretrain")
    shutil.copytree(finished, root / "sft")
    pretrained = checkpoint_format.read(finished / "checkpoints" / "step_00000004")
    tensors = {name: pretrained.tensors(name) for name in ("model", "optimizer")}
    for name, stage in (("sft", "sft"), ("reward", "reward")):
        folder = root / name / "checkpoints"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        checkpoint_format.write(folder / "step_00000009", 9, tensors, {**pretrained.state, "stage": stage})
    return root


def pipe(words: list[str], text: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "farside.cli", "chat", *words]
    return subprocess.run(command, cwd=cwd, env=environment(), input=text, capture_output=True, text=True, timeout=60)


@pytest.mark.timeout(60)
def test_pipe_gives_an_answer_a_line(job: Path, finished: Path) -> None:
    done = pipe([str(job), "max_new_tokens=8"], "What now?\n\nThe king\n", job)
    assert done.returncode == 0, done.stderr
    talker = load(find(job), plain=False)
    assert talker.chat
    prompts = [talker.tokenizer.encode_prompt(text) for text in ("What now?", "The king")]
    wanted = [talker.tokenizer.decode(item.tokens) for item in generate(talker.model, prompts, 8, talker.tokenizer.end)]
    assert done.stdout == "".join(text.removesuffix("<|end|>") + "\n" for text in wanted)
    path = job / "sft" / "checkpoints" / "step_00000009"
    assert done.stderr.splitlines()[0] == f"{path} (step 9, hash {checkpoint_format.read(path).hash[:12]})"


@pytest.mark.timeout(60)
def test_the_same_prompt_continues_as_plain_text(job: Path) -> None:
    """--plain and a pretraining checkpoint leave the chat format out."""
    talkers = [load(find(job), plain=True), load(find(job / "pretrain"), plain=False), load(find(job), plain=False)]
    assert [talker.chat for talker in talkers] == [False, False, True]
    texts = [list(talker.tokens("The king", ChatConfig(max_new_tokens=12))) for talker in talkers]
    assert texts[0] == texts[1]
    plain = talkers[0]
    expected = generate(plain.model, [plain.tokenizer.encode("The king")], 12, plain.tokenizer.end_of_text)[0].tokens
    assert texts[0] == [token for token in expected if token != plain.tokenizer.end_of_text]
    drawn = [list(plain.tokens("The king", ChatConfig(1.0, 12, seed))) for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]


@pytest.mark.slow
@pytest.mark.timeout(60)
def test_terminal(job: Path) -> None:
    with Terminal(["chat", str(job / "pretrain"), "max_new_tokens=4"], job, columns=40) as terminal:
        terminal.until("> ")
        terminal.type("The king\n")
        terminal.until("cut at max_new_tokens=4\n> ")
        terminal.type("\x03")  # Ctrl-C at the prompt
        assert terminal.wait(10) == 0, terminal.text
    assert "Traceback" not in terminal.text
    long = [line for line in terminal.lines if len(line) > 40]
    assert [line for line in long if "/" not in line] == [], "only a path may be cut by the terminal"


@pytest.mark.slow
@pytest.mark.timeout(60)
def test_interrupt_stops_an_answer_and_end_of_file_the_conversation(job: Path) -> None:
    with Terminal(["chat", str(job / "pretrain"), "max_new_tokens=100000", "temperature=1"], job) as terminal:
        terminal.until("> ")
        terminal.type("The king\n")
        terminal.until("The king\n")
        terminal.type("\x03")
        terminal.until("stopped\n> ")
        terminal.type("\x04")
        assert terminal.wait(10) == 0, terminal.text
    assert "Traceback" not in terminal.text


def shown(tokens: list[int], tokenizer: Tokenizer, terminal: bool) -> str:
    file = io.StringIO()
    out = Console(
        file=file,
        force_terminal=terminal,
        highlight=False,
        soft_wrap=True,
        markup=False,
        emoji=False,
        color_system="standard" if terminal else None,
    )
    view = Shown(tokenizer, out)
    for token in tokens:
        view.add(token)
    view.end()
    return file.getvalue()


@pytest.mark.timeout(60)
def test_thoughts_are_dim_and_characters_whole(job: Path) -> None:
    tokenizer = load(find(job), plain=False).tokenizer
    tokens = tokenizer.encode("<think>七+八</think>十五 \x1b[2J[b]")
    assert len(tokenizer.encode("七")) > 1, "its bytes are spread over tokens"
    assert shown(tokens, tokenizer, terminal=False) == "<think>七+八</think>十五 \x1b[2J[b]\n"
    seen = shown(tokens, tokenizer, terminal=True)
    assert "\x1b[2m七\x1b[0m" in seen
    assert "十五" in seen.replace("\x1b[0m", "")
    assert "\ufffd" not in seen
    assert "think" not in seen
    assert "\x1b[2J" not in seen, "the model must not drive the terminal"
    assert shown(tokens[:2], tokenizer, terminal=False).startswith("<think>"), "a torn character is shown at the end"


def test_settings_and_paths(job: Path, tmp_path: Path) -> None:
    assert parse(["runs/demo", "temperature=0.5", "--plain"]) == (Path("runs/demo"), ChatConfig(0.5, plain=True))
    odd = tmp_path / "optim.lr=0.1"
    odd.mkdir()
    assert parse([str(odd)]) == (odd, ChatConfig())
    for words in ([], ["a", "b"], ["--help"], ["a", "temp=1"], ["a", "temperature=hot"], ["a", "max_new_tokens=0"]):
        with pytest.raises(UserError) as caught:
            parse(words)
        assert "farside chat" in str(caught.value)
    assert find(job) == job / "sft" / "checkpoints" / "step_00000009"
    assert find(job / "pretrain").name == "step_00000004"
    with pytest.raises(UserError, match="a reward model"):
        load(job / "reward" / "checkpoints" / "step_00000009", plain=False)
    (tmp_path / "sweep" / "a=1").mkdir(parents=True)
    (tmp_path / "sweep" / "a=1" / "point.json").touch()
    with pytest.raises(UserError, match="it is a sweep: name one of its runs"):
        find(tmp_path / "sweep")


@pytest.mark.slow
@pytest.mark.timeout(60)
def test_data_that_is_gone_is_named(job: Path, tmp_path: Path) -> None:
    shutil.copytree(job / "sft", tmp_path / "run")
    path = tmp_path / "run" / "config.yaml"
    path.write_text(
        "\n".join(
            f"  dir: {tmp_path}/none" if "/data" in line and line.startswith("  dir:") else line
            for line in path.read_text().splitlines()
        )
    )
    done = farside(["chat", str(tmp_path / "run")], tmp_path)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert "no prepared data with its tokenizer" in done.stderr
    assert "farside data prepare" in done.stderr
