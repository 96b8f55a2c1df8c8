"""A worker that has nothing to do: it says that it finished."""

import sys
from pathlib import Path

if __name__ == "__main__":
    directory = Path(sys.argv[sys.argv.index("--dir") + 1])
    (directory / "status.json").write_text('{"status": "finished"}')
