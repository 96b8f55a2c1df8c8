"""Whether the configuration's layout computes what one process computes: the worker behind ``farside verify``.

torchrun --nproc-per-node 4 -m farside.train.verify experiment=tiny parallel.dp_shard=1 parallel.tp=2 parallel.cp=2
"""

from farside.configs.stages import pretrain_stages
from farside.train.metrics import write_json
from farside.train.runtime import Runtime, worker_main
from farside.train.verify.check import record, verify
from farside.train.verify.show import show


def main(runtime: Runtime) -> int:
    """0 if it does, else 1. Leaves verify.json beside the logs."""
    runtime.pulse.beat("verify")
    verdict = verify(runtime.config, runtime.mesh, runtime.device)
    if runtime.main:
        show(verdict)
        write_json(runtime.dir / "verify.json", record(verdict))
    return 0 if verdict.agrees else 1


if __name__ == "__main__":
    worker_main(main, folder="verify", check=pretrain_stages)
