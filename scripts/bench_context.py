"""Context-parallel attention, forward and backward, on 2 ranks of one thread against one process of two threads.

Run on an idle machine:  python scripts/bench_context.py --tokens 16384 --heads 4 --repeats 3

All variants alternate within one run, so that a slow minute slows all of them; medians are compared. Prints one line
per variant with its ratios first: over the contiguous ring, and over torch's SDPA in one process with two threads.
First by the clock, then by the processor time of the busiest rank (half of the process's for SDPA), gloo's threads
included: that is what the clock would show if nothing else ran and nobody waited.
"""

import argparse
import multiprocessing
import os
import statistics
import time
from multiprocessing.connection import Connection

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.nn import functional as F

from farside.parallel import comm
from farside.parallel.context.build import build
from farside.parallel.context.documents import Documents

SDPA, NAIVE = "one process, torch SDPA", "ring contiguous"
VARIANTS = {
    NAIVE: ("ring", "contiguous"),
    "ring zigzag": ("ring", "zigzag"),
    "ring balanced": ("ring", "balanced"),
    "allgather zigzag": ("allgather", "zigzag"),
    "ulysses contiguous": ("ulysses", "contiguous"),
}
RANKS = 2


def documents(tokens: int, count: int) -> Documents:
    """Documents whose lengths are as 1 : 2 : 3 ..., the longest last."""
    ends = torch.arange(1, count + 1).cumsum(0) * tokens // (count * (count + 1) // 2)
    return Documents.of(torch.searchsorted(ends, torch.arange(tokens), right=True)[None])


def rank_main(rank: int, port: int, connection: Connection) -> None:
    """Answers every (variant, tokens, heads, dim, dtype, documents) with its seconds, until the pipe closes."""
    torch.set_num_threads(1)
    # the parent holds the store, as torchrun's agent does
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "TORCHELASTIC_USE_AGENT_STORE": "True"}
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(RANKS)}
    group = init_device_mesh("cpu", (RANKS,)).get_group()
    contexts = {name: build(*names, group) for name, names in VARIANTS.items()}
    while True:
        try:
            name, tokens, heads, dim, dtype, count = connection.recv()
        except EOFError:
            os._exit(0)  # gloo's threads may still run
        docs = documents(tokens, count)
        generator = torch.Generator().manual_seed(rank)
        shape = (1, tokens // RANKS, heads, dim)
        q, k, v = (torch.randn(shape, generator=generator).to(dtype).requires_grad_() for _ in range(3))
        comm.barrier(group)
        begin = time.perf_counter(), time.process_time()
        out = contexts[name].attend(q, k, v, docs)
        out.backward(out.detach())
        connection.send((time.perf_counter() - begin[0], time.process_time() - begin[1]))


def one_process(tokens: int, heads: int, dim: int, dtype: torch.dtype, count: int) -> tuple[float, float]:
    docs = documents(tokens, count)
    q, k, v = (torch.randn(1, heads, tokens, dim).to(dtype).requires_grad_() for _ in range(3))
    mask = None if docs.single else docs.allowed_BSS[:, None]
    begin = time.perf_counter(), time.process_time()
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None)
    out.backward(out.detach())
    return time.perf_counter() - begin[0], (time.process_time() - begin[1]) / RANKS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=16384)
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--dim", type=int, default=64)
    parser.add_argument("--documents", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    options = parser.parse_args()

    os.environ["OMP_NUM_THREADS"] = "1"
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    torch.set_num_threads(RANKS)
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    spawn = multiprocessing.get_context("spawn")
    connections = []
    for rank in range(RANKS):
        ours, theirs = spawn.Pipe()
        spawn.Process(target=rank_main, args=(rank, store.port, theirs), daemon=True).start()
        theirs.close()
        connections.append(ours)

    for name in options.dtypes:
        shape = (options.heads, options.dim, getattr(torch, name), options.documents)
        seconds: dict[str, list[tuple[float, ...]]] = {variant: [] for variant in (SDPA, *VARIANTS)}
        for repeat in range(-1, options.repeats):
            tokens = options.tokens if repeat >= 0 else 1024  # the first round warms up
            for variant, times in seconds.items():
                if variant == SDPA:
                    times.append(one_process(tokens, *shape))
                    continue
                for connection in connections:
                    connection.send((variant, tokens, *shape))
                times.append(tuple(max(pair) for pair in zip(*(connection.recv() for connection in connections))))
        report(f"{options.tokens} tokens, {options.documents} document(s), {options.heads} heads, {name}", seconds)


def report(title: str, seconds: dict[str, list[tuple[float, ...]]]) -> None:
    medians = {name: [statistics.median(column) for column in zip(*times[1:])] for name, times in seconds.items()}
    print(f"{title}: speed over contiguous, over SDPA; seconds. By the clock | by processor time")
    for variant, values in medians.items():
        columns = [
            f"{medians[NAIVE][clock] / value:5.2f} {medians[SDPA][clock] / value:5.2f} {value:7.2f}"
            for clock, value in enumerate(values)
        ]
        print(f"  {' | '.join(columns)}  {variant}", flush=True)


if __name__ == "__main__":
    main()
