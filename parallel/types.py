"""Types over the mesh: what each tensor is on every axis, checked by ``spmd_types`` on one process (docs/types.md).

On an axis a tensor is R, Replicate: ranks hold the same, and their gradients are still to be summed; I, Invariant: they
hold the same, gradients too; V, Varying: each its own; or P, Partial: each a summand.

Nothing here runs in training: ``spmd_types`` calls the rules of our autograd functions only while it checks.
"""

import warnings
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import spmd_types as spmd
from torch import Tensor

from farside.parallel import comm
from farside.parallel.mesh import Mesh

Types = Mapping[str, str]
"""Axis (dp, cp, tp) -> R, I, V or P."""


class TypeMismatch(Exception):
    """A layout whose forward or backward pass cannot be right. One paragraph that names axis and types."""


class MeshTypes:
    """The types of one mesh. Axes of one rank have none; a hybrid's cp is checked as its two axes, ring and ulysses."""

    def __init__(self, mesh: Mesh) -> None:
        contexts = ("ring", "ulysses") if mesh.ring is not None and mesh.ulysses is not None else ("cp",)
        parts = {"dp": ("dp",), "cp": contexts, "tp": ("tp",)}
        self.groups = {name: getattr(mesh, name) for names in parts.values() for name in names}
        self.groups = {name: group for name, group in self.groups.items() if group is not None}
        self.axis_of = {name: axis for axis, names in parts.items() for name in names if name in self.groups}

    def mark(self, tensor: Tensor, types: Types) -> None:
        """Declares what a tensor is. Raises TypeMismatch if it is known to be something else."""
        with self._explained():
            spmd.assert_type(
                tensor, {group: getattr(spmd, types[self.axis_of[name]]) for name, group in self.groups.items()}
            )

    def of(self, tensor: Tensor) -> dict[str, str]:
        """By group name: as ``Types``, a hybrid's two axes apart."""
        return {name: spmd.get_axis_local_type(tensor, group).name for name, group in self.groups.items()}

    def expect(self, tensor: Tensor, types: Types, what: str) -> None:
        """Raises TypeMismatch unless the tensor has come out as ``types``."""
        for name, found in self.of(tensor).items():
            wanted = types[self.axis_of[name]]
            if found != wanted:
                raise TypeMismatch(f"{what} is {found} on axis {name} and must be {wanted}")

    @contextmanager
    def checking(self) -> Iterator[None]:
        """Every operation inside is checked. Raises TypeMismatch."""
        from spmd_types.checker import typecheck

        axes = {name: spmd.normalize_axis(group) for name, group in self.groups.items()}
        with warnings.catch_warnings(), self._explained(), spmd.set_current_mesh(axes), typecheck(local=True):
            warnings.simplefilter("ignore", FutureWarning)  # spmd_types 0.3.1 calls collectives by names torch renamed
            yield

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """The library's error in our names."""
        try:
            yield
        except spmd.SpmdTypeError as error:
            lines = [line for line in str(error).splitlines() if "SPMD_TYPES_TRACEBACK_FILTERING" not in line]
            text = " ".join(" ".join(lines).split()).replace("PerMeshAxisLocalSpmdType.", "")
            for name, group in self.groups.items():
                text = text.replace(repr(spmd.normalize_axis(group)), name)
            raise TypeMismatch(text) from error


def unchecked() -> AbstractContextManager[None]:
    """Nothing inside is checked: for plans, which hold no values of the model."""
    return spmd.no_typecheck()


# Rules of autograd functions that live elsewhere.


def type_attention(out: Tensor, q: Tensor, k: Tensor, v: Tensor, group: comm.Group) -> None:
    """Attention over a context: on its axis queries, keys, values and output vary. Elsewhere it is a local operation
    that is not linear in q, k, and so takes no Partial."""
    from spmd_types import rules

    if group is not None:
        for tensor in (q, k, v):
            spmd.assert_type(tensor, {group: spmd.V})
    rules.einsum("b___,b___,b___->b___", q, k, v, out=out)


def type_ignored(*tensors: Tensor) -> None:
    """Arguments that hold plans, not values."""
    from spmd_types import rules

    rules.ignore(*tensors)


def type_permutation(out: Tensor, tensor: Tensor, order: Tensor) -> None:
    """A local permutation of dim 1: linear, so it takes any type."""
    from spmd_types import rules

    type_ignored(order)
    rules.einsum("b_...->b_...", tensor, linear_in=(0,), out=out)


def type_norm(out: Tensor, x: Tensor, weight: Tensor) -> None:
    """A norm over the last dim: local and not linear."""
    from spmd_types import rules

    rules.einsum("..._,_->..._", x, weight, out=out)


def type_mlp(out: Tensor, x: Tensor, gate: Tensor, up: Tensor, down: Tensor) -> None:
    """Token by token and not linear; a sum over the width: where that is cut, each rank's output is a summand."""
    from spmd_types import rules

    rules.einsum("..._,f_,f_,_f->..._", x, gate, up, down, out=out)


def type_join(out: Tensor, tensor: Tensor, group: comm.Group) -> None:
    """Every rank's slots to the whole, on ranks that all go on alike: V -> I on every axis within the group's."""
    from spmd_types import rules

    whole = rules.einsum("b_...->b_...", tensor)
    assert group is not None
    context: Any = spmd.normalize_axis(group)
    axes: list[Any] = list(spmd.get_local_type(tensor))
    for axis in [axis for axis in axes if axis <= context]:
        whole = rules.all_gather(whole, axis, src=spmd.S(1), dst=spmd.I)
    rules.output(out, whole)


def type_scores(out: tuple[Tensor, ...], x: Tensor, weight: Tensor, labels: Tensor, group: comm.Group) -> None:
    """Label scores over a cut vocabulary: each rank scores all tokens against its rows (x: R, because each rank has
    only its rows' part of x's gradient; weight: V), and what the ranks then combine is the same on all: I."""
    from spmd_types import rules

    if group is not None:
        spmd.assert_type(x, {group: spmd.R})
        spmd.assert_type(weight, {group: spmd.V})
    for each in out:
        scores = rules.einsum("n_,__,n->n", x, weight, labels)
        if group is not None:
            scores = rules.all_reduce(scores, group, src=spmd.V, dst=spmd.I)
        rules.output(each, scores)
