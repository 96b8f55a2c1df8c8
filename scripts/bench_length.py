"""Time and memory of one optimizer step against length: cp ranks of one thread each on this machine.

python scripts/bench_length.py curve [--lengths 4096 ...] [--cp 1 2 4] [--results FILE]
                                     # 2 layers, width 64: plot and table, cp = 1 and 2 (4: memory only)
python scripts/bench_length.py memory                            # 4 layers, no recomputation: cp = 2 over cp = 1
python scripts/bench_length.py recompute [--lengths 8192 16384]  # 4 layers, one rank: every way to keep less
python scripts/bench_length.py longest [--mlp-chunk 4096]        # 131,072 tokens on 2 ranks, full recomputation

Memory is the increase of a rank's peak resident set over the process that has imported everything, in MiB; the busiest
rank counts. A rank is a process of this script under torchrun. A curve is kept in FILE, point by point: what is there
is not measured again, so that it can be made in parts; table and plot are made when all of it is there.
"""

import argparse
import itertools
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from farside.configs.schema import (
    Config,
    ContextConfig,
    ModelConfig,
    OptimConfig,
    ParallelConfig,
    Recompute,
    TrainConfig,
)
from farside.data.batch import Batch
from farside.parallel import comm
from farside.parallel.mesh import ParallelDims
from farside.train.engine.native import NativeEngine
from farside.train.loss import lm_loss

MIB = 2**20


def model_of(layers: int, width: int) -> ModelConfig:
    return ModelConfig(
        vocab_size=3072,
        hidden_size=width,
        intermediate_size=3 * width,
        num_hidden_layers=layers,
        num_attention_heads=width // 64,
        num_key_value_heads=width // 64,
        head_dim=64,
    )


def peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def processor_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def worker(job: dict) -> None:
    """One step in this layout; rank 0 writes seconds and MiB."""
    torch.set_num_threads(job["threads"])
    size = int(os.environ.get("WORLD_SIZE", "1"))
    kind = Recompute[job["recompute"]]
    train = TrainConfig(activation_checkpointing=kind, loss_chunk=1024, mlp_chunk=job["mlp_chunk"])
    config = Config(
        model=model_of(job["layers"], job["width"]),
        parallel=ParallelConfig(cp=size, context=ContextConfig()),
        train=train,
        optim=OptimConfig(),
    )
    mesh = ParallelDims.resolve(config.parallel, size).build("cpu")
    before = peak_bytes()
    engine = NativeEngine(config, mesh, torch.device("cpu"))
    length = job["length"]
    tokens = torch.randint(3072, (1, length + 1), generator=torch.Generator().manual_seed(0))
    ones = torch.ones(1, length)
    batch = Batch(tokens[:, :-1], tokens[:, 1:], ones, torch.arange(length)[None], torch.zeros(1, length).long())
    started, used = time.perf_counter(), processor_seconds()
    loss = engine.forward_backward([batch], lm_loss, float(length)).loss.item()
    engine.step(1e-3)
    seconds = time.perf_counter() - started
    mine = torch.tensor([float(peak_bytes() - before), processor_seconds() - used])
    grown, worked = comm.max_(mine, mesh.world).tolist()
    if int(os.environ.get("RANK", "0")) == 0:
        result = {"seconds": seconds, "processor": worked, "mib": grown / MIB, "loss": loss}
        Path(job["result"]).write_text(json.dumps(result))
    comm.barrier(mesh.world)
    os._exit(0)  # gloo's threads now and again abort the interpreter's teardown


def run(
    cp: int, length: int, layers: int, recompute: str, mlp_chunk: int = 0, threads: int = 1, width: int = 256
) -> dict:
    with tempfile.TemporaryDirectory() as folder:
        job: dict = {"length": length, "layers": layers, "recompute": recompute, "threads": threads}
        job |= {"mlp_chunk": mlp_chunk, "width": width}
        job["result"] = str(Path(folder) / "result.json")
        launcher = [sys.executable]
        if cp > 1:
            launcher += ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={cp}"]
        # large tensors straight from the kernel and back: else the peak is that of glibc's fragmented heap, which is
        # less at 131,072 tokens than at 65,536, because tensors above 32 MiB never go there
        malloc = {"MALLOC_MMAP_THRESHOLD_": str(MIB)}
        environment = {**os.environ, **malloc, "OMP_NUM_THREADS": str(threads)}
        subprocess.run([*launcher, __file__, "worker", json.dumps(job)], check=True, env=environment)
        result = json.loads(Path(job["result"]).read_text())
    way = recompute + (f", MLP in chunks of {mlp_chunk:,}" if mlp_chunk else "")
    print(
        f"cp={cp} {length:>7,} tokens, {way}: {result['seconds']:.1f} s by the clock, "
        f"{result['processor']:.1f} s of the busiest rank's processor, {result['mib']:,.0f} MiB",
        flush=True,
    )
    return result


def recompute(lengths: list[int], mlp_chunk: int) -> None:
    ways = [
        ("none", 0),
        ("none", mlp_chunk),
        ("selective", 0),
        ("selective", mlp_chunk),
        ("full", 0),
        ("full", mlp_chunk),
    ]
    print(
        "\n| recomputation | MLP | "
        + " | ".join(f"{length:,}: s, MiB" for length in lengths)
        + " | MiB per 1,024 more |"
    )
    print("|---|---|" + "---|" * (len(lengths) + 1))
    for kind, chunk in ways:
        found = [run(1, length, 4, kind, chunk) for length in lengths]
        slope = (found[-1]["mib"] - found[0]["mib"]) / (lengths[-1] - lengths[0]) * 1024
        cells = " | ".join(f"{row['seconds']:.1f}, {row['mib']:,.0f}" for row in found)
        print(f"| {kind} | {f'chunks of {chunk:,}' if chunk else 'whole'} | {cells} | {slope:.1f} |", flush=True)


def curve(lengths: list[int], ranks: list[int], kept: Path, image: Path, mlp_chunk: int) -> None:
    found: dict[str, dict] = json.loads(kept.read_text()) if kept.is_file() else {}
    for length, cp in itertools.product(lengths, ranks):
        if f"{cp} {length}" not in found:
            found[f"{cp} {length}"] = run(cp, length, 2, "full", mlp_chunk, width=64)
            kept.write_text(json.dumps(found))
    if any(f"{cp} {length}" not in found for cp in (1, 2, 4) for length in lengths):
        return
    rows = {cp: [found[f"{cp} {length}"] for length in lengths] for cp in (1, 2, 4)}
    print("\n| tokens | cp 1: processor s | cp 2: processor s | cp 1: MiB | cp 2: MiB | cp 4: MiB |")
    print("|---|---|---|---|---|---|")
    for number, length in enumerate(lengths):
        one, two, four = (rows[cp][number] for cp in (1, 2, 4))
        print(
            f"| {length:,} | {one['processor']:.1f} | {two['processor']:.1f} | {one['mib']:,.0f} | {two['mib']:,.0f} "
            f"| {four['mib']:,.0f} |"
        )
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    for cp in (1, 2, 4):
        if cp < 4:  # four ranks share two cores: their time says nothing
            left.plot(lengths, [row["processor"] for row in rows[cp]], marker="o", label=f"cp = {cp}")
        right.plot(lengths, [row["mib"] for row in rows[cp]], marker="o", label=f"cp = {cp}")
    for axes, what in (
        (left, "seconds a step, of the busiest rank's processor"),
        (right, "MiB a rank over the imported process"),
    ):
        axes.set_xscale("log", base=2)
        axes.set_yscale("log", base=2)
        axes.set_xticks(lengths, labels=[f"{length // 1024}k" for length in lengths])
        axes.yaxis.set_major_formatter("{x:g}")
        axes.set_xlabel("tokens")
        axes.set_title(what, loc="left", fontsize=10)
        axes.legend(frameon=False)
        axes.grid(alpha=0.3)
    figure.savefig(image, metadata={"Software": None})


def main() -> None:
    if sys.argv[1:2] == ["worker"]:
        worker(json.loads(sys.argv[2]))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["curve", "memory", "recompute", "longest"])
    parser.add_argument("--lengths", type=int, nargs="+")
    parser.add_argument("--mlp-chunk", type=int, default=0, help="train.mlp_chunk; recompute takes 1,024 unless told")
    parser.add_argument("--cp", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--results", type=Path, default=Path(tempfile.gettempdir()) / "bench_length_curve.json")
    parser.add_argument("--image", type=Path, default=Path("docs/images/length.png"))
    arguments = parser.parse_args()
    if arguments.what == "curve":
        lengths = arguments.lengths or [4096 << power for power in range(6)]
        curve(lengths, arguments.cp, arguments.results, arguments.image, arguments.mlp_chunk)
    elif arguments.what == "recompute":
        recompute(arguments.lengths or [8192, 16384], arguments.mlp_chunk or 1024)
    elif arguments.what == "memory":
        for length in (8192, 16384):
            one, two = (run(cp, length, 4, "none") for cp in (1, 2))
            print(f"{length:,} tokens: memory of cp = 2 over cp = 1: {two['mib'] / one['mib']:.2f}")
    else:
        run(2, 131072, 2, "full", arguments.mlp_chunk)


if __name__ == "__main__":
    main()
