"""Rules of the design that are read off the source: who imports whom, and what nobody may use."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("configs", "data", "parallel", "train", "rl")
MAY_IMPORT = {
    "configs": {"configs"},
    "parallel": {"parallel", "configs.schema", "configs.errors"},
    "data": {"data", "configs"},
    "train": {"train", "data", "parallel", "configs"},
    "rl": {"rl", "train", "data", "parallel", "configs"},
}
ONLY_IN = {
    "wandb": {"train/metrics.py"},
    "hydra": {"configs/compose.py", "farside/launch/commands.py"},
    "megatron": {"train/engine/megatron.py", "data/indexed.py", "scripts/bench_data.py"},
    "deepspeed": {"train/engine/deepspeed.py"},
    # collectives in the one, their typing rules and the check itself in the other: the latter runs only on request
    "spmd_types": {"parallel/comm.py", "parallel/types.py"},
}
COMM = "parallel/comm.py"
RUNTIME = "train/runtime.py"
"""May also start the process group and wait for its ranks at the very end."""
COLLECTIVES = {
    *("all_reduce", "all_gather", "reduce_scatter", "reduce", "broadcast", "scatter", "gather", "all_to_all"),
    *("send", "recv", "isend", "irecv", "batch_isend_irecv", "barrier", "monitored_barrier"),
    *("init_process_group", "new_group"),
}
PICKLES = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "marshal", "shelve", "joblib"}


@cache
def product() -> dict[str, ast.Module]:
    """Every Python file outside tests/, by its path; farside/ holds links to the other folders."""
    files = [ROOT / "setup.py"]
    for folder in (*FOLDERS, "scripts"):
        files += sorted((ROOT / folder).rglob("*.py"))
    for path in sorted((ROOT / "farside").rglob("*.py")):
        if path.relative_to(ROOT / "farside").parts[0] not in FOLDERS:
            files.append(path)
    return {str(path.relative_to(ROOT)): ast.parse(path.read_text()) for path in files}


def imports(tree: ast.Module) -> Iterator[str]:
    """Dotted names, ``from a import b`` as a.b; relative ones begin with a dot."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{'.' * node.level}{node.module or ''}.{alias.name}" for alias in node.names)


def within(name: str, module: str) -> bool:
    return name == module or name.startswith(module + ".")


def dotted(node: ast.expr) -> str:
    """The source of a chain of names, such as torch.distributed.all_reduce; empty for anything else."""
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def calls(tree: ast.Module) -> Iterator[ast.Call]:
    return (node for node in ast.walk(tree) if isinstance(node, ast.Call))


def distributed_names(tree: ast.Module) -> set[str]:
    """Attributes of torch.distributed that a file reaches for, under whatever alias."""
    aliases = {"torch.distributed"}
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            aliases |= {alias.asname for alias in node.names if alias.name == "torch.distributed" and alias.asname}
        elif isinstance(node, ast.ImportFrom) and node.module == "torch":
            aliases |= {alias.asname or alias.name for alias in node.names if alias.name == "distributed"}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("torch.distributed"):
            found |= {alias.name for alias in node.names}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and dotted(node.value) in aliases:
            found.add(node.attr)
    return found


def is_collective(name: str) -> bool:
    return any(name == base or name.startswith(f"{base}_") for base in COLLECTIVES)


def test_the_product_is_found() -> None:
    assert len(product()) > 60
    assert {"train/loop.py", "farside/cli.py", "data/synthetic/needle.py", "setup.py"} <= product().keys()
    assert not any(path.startswith("farside/train") for path in product())


@pytest.mark.parametrize("folder", FOLDERS)
def test_imports_go_one_way(folder: str) -> None:
    wrong = [
        f"{path}: {name}"
        for path, tree in product().items()
        if path.startswith(f"{folder}/")
        for name in imports(tree)
        if within(name, "farside") and not any(within(name, f"farside.{other}") for other in MAY_IMPORT[folder])
    ]
    assert not wrong


def test_imports_are_absolute_and_through_farside() -> None:
    wrong = [
        f"{path}: {name}"
        for path, tree in product().items()
        for name in imports(tree)
        if name.startswith(".") or name.split(".")[0] in (*FOLDERS, "tests")
    ]
    assert not wrong


@pytest.mark.parametrize("library", ONLY_IN)
def test_libraries_stay_in_their_files(library: str) -> None:
    users = {path for path, tree in product().items() if any(within(name, library) for name in imports(tree))}
    assert users <= ONLY_IN[library]


def test_configs_import_no_torch() -> None:
    users = {path for path, tree in product().items() if any(within(name, "torch") for name in imports(tree))}
    assert not [path for path in users if path.startswith("configs/")]
    assert users, "the check sees imports"


def test_collectives_are_called_in_comm_only() -> None:
    users = {path: {n for n in distributed_names(tree) if is_collective(n)} for path, tree in product().items()}
    assert {"all_reduce", "broadcast_object_list"} <= users.pop(COMM)
    assert users.pop(RUNTIME) <= {"init_process_group", "barrier"}
    assert not {path: names for path, names in users.items() if names}


@pytest.mark.parametrize(
    "source",
    [
        "import torch.distributed as d\nd.all_gather_into_tensor(1)",
        "from torch import distributed as dist\ndist.isend(1)",
        "import torch\ntorch.distributed.reduce_scatter_tensor(1)",
        "from torch.distributed import all_to_all_single",
        "from torch.distributed.distributed_c10d import broadcast",
    ],
)
def test_the_check_for_collectives_sees_every_spelling(source: str) -> None:
    assert any(is_collective(name) for name in distributed_names(ast.parse(source)))


RUNS_CODE = {
    *("eval", "exec", "compile", "__import__", "builtins.eval", "builtins.exec", "torch.load", "torch.hub.load"),
    *("os.system", "os.popen", "posix.system", "torch.package.PackageImporter", "subprocess.getoutput"),
    *("yaml.Loader", "yaml.UnsafeLoader", "yaml.FullLoader", "hydra.utils.instantiate", "hydra.utils.call"),
}


def dangers(tree: ast.Module) -> Iterator[str]:
    """What could run somebody else's code."""
    yield from (name for name in imports(tree) if name.split(".")[0] in PICKLES or name in RUNS_CODE)
    for call in calls(tree):
        name = dotted(call.func)
        if name in RUNS_CODE or name.split(".")[-1] in ("read_pickle", "to_pickle"):
            yield name
        if name in ("np.load", "numpy.load") and not any(keyword.arg == "allow_pickle" for keyword in call.keywords):
            yield f"{name} without allow_pickle=False"
        if name.startswith("yaml.") and name.split(".")[-1] in ("load", "load_all", "unsafe_load", "full_load"):
            yield name
        for keyword in call.keywords:
            if keyword.arg in ("shell", "allow_pickle", "trust_remote_code") and not is_false(keyword.value):
                yield f"{name}({keyword.arg}=...)"
            if keyword.arg == "weights_only" and is_false(keyword.value):
                yield f"{name}(weights_only=False)"
        names = [argument.value for argument in call.args[1:2] if isinstance(argument, ast.Constant)]
        if name == "getattr" and names and names[0] in ("system", "popen", "eval", "exec", "load", "loads"):
            yield f"getattr(..., {names[0]!r})"


def is_false(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and node.value is False


def test_nothing_unpickles_or_evaluates() -> None:
    assert not [f"{path}: {found}" for path, tree in product().items() for found in dangers(tree)]


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from pickle import loads",
        "torch.load(path)",
        "yaml.load(text)",
        "eval(text)",
        "exec(text)",
        "subprocess.run(line, shell=True)",
        "np.load(path, allow_pickle=flag)",
        "np.load(path)",
        "import numpy\nnumpy.load(path, mmap_mode='r')",
        "from torch import load",
        "from os import system",
        "os.system(line)",
        "os.popen(line)",
        "from builtins import exec",
        "yaml.unsafe_load(text)",
        "yaml.full_load(text)",
        "from yaml import UnsafeLoader",
        "pandas.read_pickle(path)",
        "import joblib",
        "torch.load(path, weights_only=True)",
        "read(path, weights_only=False)",
        "AutoModel.from_pretrained(name, trust_remote_code=True)",
        "AutoModel.from_pretrained(name, trust_remote_code=flag)",
        "subprocess.getoutput(line)",
        "getattr(os, 'system')(line)",
        "from hydra.utils import instantiate",
        "from subprocess import run\nrun(line, shell=yes)",
    ],
)
def test_the_check_for_dangers_sees_them(source: str) -> None:
    assert list(dangers(ast.parse(source)))


def test_harmless_neighbours_are_left_alone() -> None:
    source = "model.eval()\nnp.load(path, allow_pickle=False)\njson.load(stream)\nrun(line, shell=False)"
    assert not list(dangers(ast.parse(source)))


@pytest.mark.parametrize("module", ["farside.cli", "farside.launch.commands", "farside.configs.schema"])
def test_the_command_imports_neither_torch_nor_hydra(module: str) -> None:
    script = f"import sys, {module}; print(*sorted({{'torch', 'hydra', 'transformers'}} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_the_wheel_holds_every_package(monkeypatch: pytest.MonkeyPatch) -> None:
    """An editable install has them all anyway."""
    told: list[str] = []
    monkeypatch.setattr("setuptools.setup", lambda packages, **rest: told.extend(packages))
    monkeypatch.chdir(ROOT)
    exec(compile((ROOT / "setup.py").read_text(), "setup.py", "exec"), {})  # noqa: S102 - it is our own
    wanted = {"farside", *(f"farside.{path.parent.name}" for path in ROOT.glob("farside/[a-z]*/__init__.py"))}
    for folder in FOLDERS:
        for path in (ROOT / folder).rglob("__init__.py"):
            wanted.add(".".join(["farside", *path.relative_to(ROOT).parts[:-1]]))
    assert set(told) == wanted
