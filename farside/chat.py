"""``farside chat``: questions to a checkpoint, answered token by token. One process, no ranks.

A checkpoint of warm start or RL is asked in the chat format, any other continues text. Every line stands alone: the
models are trained on single questions, so that earlier ones would only be noise. Answers go to stdout, all else to
stderr, so that it works in a pipe.
"""

import contextlib
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console

from farside.configs import compose
from farside.configs.errors import UserError
from farside.configs.schema import ChatConfig, CheckpointConfig, Config, ParallelConfig
from farside.data.chat import END_THINK, THINK
from farside.data.prepare import Prepared
from farside.data.tokenizer import Tokenizer
from farside.parallel.mesh import ParallelDims
from farside.settings import parse as parse_settings
from farside.train.checkpoint import format as checkpoint_format
from farside.train.checkpoint.format import MANIFEST, Checkpoint
from farside.train.checkpoint.retention import newest
from farside.train.checkpoint.store import CheckpointStore
from farside.train.console import fold
from farside.train.engine.native import NativeEngine
from farside.train.inference.generate import stream
from farside.train.model.transformer import Transformer
from farside.train.phase import identity_of, load_foreign

PHASES = ("rl", "sft", "pretrain")
"""Of a whole job, the last first; the reward model gives no text."""
TALKING = ("sft", "rl")
"""Stages after which a checkpoint knows the chat format."""
TOKENIZER = "tokenizer.json"
"""In an imported model's directory."""
PICTURES = {code: 0x2400 + code for code in range(32) if chr(code) not in "\n\t"} | {127: 0x2421}
"""Control characters that a model may write, shown instead of obeyed by the terminal."""


@dataclass(frozen=True)
class Talker:
    """A loaded model; chat: whether it is asked in the chat format."""

    model: Transformer
    tokenizer: Tokenizer
    checkpoint: Checkpoint
    chat: bool

    def tokens(self, text: str, settings: ChatConfig) -> Iterator[int]:
        """The answer to a question, or the continuation of a text. Each call draws the same numbers."""
        prompt = self.tokenizer.encode_prompt(text) if self.chat else self.tokenizer.encode(text)
        trained = self.checkpoint.state["trained_length"]
        if len(prompt) + settings.max_new_tokens > trained and len(prompt) > trained // 2:
            note(f"{len(prompt):,} tokens asked; the model was trained on up to {trained:,}")
        stop = self.tokenizer.end if self.chat else self.tokenizer.end_of_text
        generator = torch.Generator().manual_seed(settings.seed) if settings.temperature > 0 else None
        return stream(self.model, prompt, settings.max_new_tokens, stop, generator, settings.temperature or 1.0)


def chat(words: list[str]) -> int:
    """Runs the conversation; returns the exit code. Raises UserError for a wrong path or setting."""
    path, settings = parse(words)
    talker = load(find(path), settings.plain)
    checkpoint = talker.checkpoint
    note(f"{checkpoint.path} (step {checkpoint.step:,}, hash {checkpoint.hash[:12]})")
    out = Console(file=sys.stdout, highlight=False, soft_wrap=True, markup=False, emoji=False)
    if not sys.stdin.isatty():
        for line in sys.stdin:
            if line.strip():
                answer(talker, line.rstrip("\n"), settings, out)
        return 0
    how = "a line is a question of its own" if talker.chat else "the model continues each line"
    note(f"{how}; Ctrl-C stops an answer, Ctrl-D ends")
    return converse(lambda text: answer(talker, text, settings, out))


def converse(reply: Callable[[str], None]) -> int:
    """Reads lines from the terminal until Ctrl-D, or Ctrl-C at the prompt."""
    import readline  # noqa: F401  gives input() a history and editing

    while True:
        try:
            text = input("> ")
        except (EOFError, KeyboardInterrupt):
            print()
            return 0
        try:
            if text.strip():
                reply(text)
        except KeyboardInterrupt:
            print()
            note("stopped")


def answer(talker: Talker, text: str, settings: ChatConfig, out: Console) -> None:
    """Prints the answer as it comes; on a terminal thoughts are dim and without their marks."""
    shown = Shown(talker.tokenizer, out)
    count = 0
    for token in talker.tokens(text, settings):
        shown.add(token)
        count += 1
    shown.end()
    if count == settings.max_new_tokens:
        note(f"cut at max_new_tokens={count}")


class Shown:
    """Text of tokens that come one by one: a character whose bytes are spread over tokens waits for the last."""

    def __init__(self, tokenizer: Tokenizer, out: Console) -> None:
        self.tokenizer, self.out = tokenizer, out
        self.marks = {tokenizer.id(THINK): True, tokenizer.id(END_THINK): False}
        self.tokens: list[int] = []
        self.printed = ""
        self.thinking = False

    def add(self, token: int) -> None:
        if token in self.marks and self.out.is_terminal:
            self._print(last=True)
            if self.thinking and self.printed and not self.marks[token]:
                self.out.print()
            self.tokens, self.printed, self.thinking = [], "", self.marks[token]
            return
        self.tokens.append(token)
        self._print(last=False)

    def end(self) -> None:
        self._print(last=True)
        self.out.print()

    def _print(self, last: bool) -> None:
        text = self.tokenizer.decode(self.tokens)
        if text.endswith("\ufffd") and not last:
            return
        new, self.printed = text[len(self.printed) :], text
        if new:
            plain = new.translate(PICTURES) if self.out.is_terminal else new
            self.out.print(plain, end="", style="dim" if self.thinking else None)
            self.out.file.flush()


def parse(words: list[str]) -> tuple[Path, ChatConfig]:
    """The path and settings of a command line. Raises UserError."""
    words = ["plain=true" if word == "--plain" else word for word in words]
    (path,), config = parse_settings("chat", words, ChatConfig, "RUN_DIR_OR_CHECKPOINT")
    if config.max_new_tokens < 1 or config.temperature < 0:
        raise UserError("farside chat: max_new_tokens is at least 1 and temperature at least 0")
    return path, config


def find(path: Path) -> Path:
    """The checkpoint that a path means: itself, the newest of a run, or of the last phase of a whole job."""
    if not path.exists():
        raise UserError(f"{path}: no such directory; name a run directory or a checkpoint, such as runs/demo")
    if (path / MANIFEST).is_file():
        return path
    for run in (path, *(path / phase for phase in PHASES)):
        if (checkpoint := newest(run)) is not None:
            return checkpoint
    points = sorted(point.parent for point in path.glob("*/point.json"))
    hint = "train first, or name another"
    if points:
        hint = f"it is a sweep: name one of its runs, such as {points[0]}"
    elif checkpoint_format.is_hugging_face(path):
        hint = "it is a Hugging Face folder: `farside import hf` makes one of it (docs/exchange.md)"
    raise UserError(f"{path}: no checkpoint there; {hint}")


def load(path: Path, plain: bool) -> Talker:
    """The verified checkpoint on this machine's device. Raises UserError if it cannot talk or its data is gone."""
    checkpoint = checkpoint_format.load(path)
    stage = checkpoint.state["stage"]
    if stage == "reward":
        raise UserError(f"{path}: a reward model, which scores texts and writes none; name a checkpoint of sft or rl")
    run_dir = path.resolve().parent.parent
    config = compose.load(run_dir / "config.yaml")
    tokenizer = find_tokenizer(config, run_dir, checkpoint.state["identity"]["tokenizer"])
    torch.set_num_threads(config.launch.threads_per_rank)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    mesh = ParallelDims.resolve(ParallelConfig(), 1).build(device.type)
    engine = NativeEngine(config, mesh, device)
    store = CheckpointStore(run_dir, CheckpointConfig(), mesh.dp, identity_of(config.model, tokenizer))
    load_foreign(store.start_from(path), engine)
    return Talker(engine.replica(), tokenizer, checkpoint, stage in TALKING and not plain)


def find_tokenizer(config: Config, run_dir: Path, digest: str) -> Tokenizer:
    """The checkpoint's tokenizer: beside an imported model, else in prepared data."""
    if (run_dir / TOKENIZER).is_file():
        tokenizer = Tokenizer.load(run_dir / TOKENIZER)
        if tokenizer.hash == digest:
            return tokenizer
    return find_data(config, run_dir, digest).tokenizer


def find_data(config: Config, run_dir: Path, digest: str) -> Prepared:
    """Prepared data with the checkpoint's tokenizer, in data.dir as seen from here or from above the run."""
    roots = [root / config.data.dir for root in (Path.cwd(), *run_dir.parents)]
    for root in roots:
        for summary in sorted(root.glob("*/data.json")):
            with contextlib.suppress(UserError):  # damaged, or of an earlier format: not what is looked for
                data = Prepared(summary.parent)
                if data.tokenizer.hash == digest:
                    return data
    raise UserError(
        f"{run_dir}: no prepared data with its tokenizer ({digest[:12]}) in {config.data.dir}; "
        "run `farside data prepare` with this run's overrides"
    )


def note(text: str) -> None:
    """To stderr: what is not the model's."""
    print(fold(text, 2), file=sys.stderr, flush=True)
