"""``farside doctor``: what this machine can do, in the form a bug report needs."""

import importlib.metadata
import os
import platform
import shutil
import subprocess
import sys

from farside.rl.reward.sandbox import Sandbox
from farside.train.console import say

PACKAGES = (
    "torch",
    "hydra-core",
    "transformers",
    "tokenizers",
    "safetensors",
    "wandb",
    "megatron-core",
    "deepspeed",
    "math-verify",
)
SELF_TEST = (
    "import os, torch, torch.distributed as dist; dist.init_process_group('gloo'); x = torch.ones(1); "
    "dist.all_reduce(x); assert x.item() == 2.0; print('ok', flush=True) if dist.get_rank() == 0 else None; "
    "dist.barrier(); os._exit(0)"  # gloo's threads now and again abort the interpreter's teardown
)


def examine() -> int:
    """Prints one fact a line; returns 0 when the gloo self-test of two ranks passes, else 1."""
    facts = {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cores": len(os.sched_getaffinity(0)),
    }
    facts["memory"] = f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.1f} GiB"
    facts["disk free here"] = f"{shutil.disk_usage('.').free / 2**30:.1f} GiB"
    for package in PACKAGES:
        try:
            facts[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            facts[package] = "not installed"
    facts["code sandbox"] = Sandbox(isolated=True).check() or "ok"
    for name, value in facts.items():
        say(f"{name:<15} {value}", indent=16)
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node=2",
        "--no-python",
        sys.executable,
    ]
    result = subprocess.run(
        [*command, "-c", SELF_TEST],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        timeout=120,
    )
    good = result.returncode == 0 and "ok" in result.stdout
    say(f"{'two gloo ranks':<15} {'ok' if good else 'FAILED: ' + result.stderr.strip()[-400:]}", indent=16)
    return 0 if good else 1
