"""The worker of ``farside verify`` with a bug in it that one rank shows: python -m tests.verify.broken."""

from farside.train.runtime import Runtime, worker_main
from farside.train.verify.__main__ import main
from tests.verify.bugs import averaged_over_microbatches


def broken(runtime: Runtime) -> int:
    with averaged_over_microbatches():
        return main(runtime)


if __name__ == "__main__":
    worker_main(broken, folder="verify")
