"""What ``farside verify`` prints: a row a parameter, the totals beside their bounds, the verdict last."""

from collections.abc import Sequence

from farside.train.console import console, say
from farside.train.verify.attention import Traffic, Work
from farside.train.verify.check import Verdict
from farside.train.verify.compare import BOUNDS

SHORT = (("model.", ""), ("layers.", ""), ("self_attn.", ""), ("mlp.", ""), ("layernorm", "norm"), (".weight", ""))
"""What a narrow terminal leaves out of a parameter's name."""


def show(verdict: Verdict) -> None:
    """To stdout, within the terminal's width."""
    model = verdict.model
    say(f"{verdict.layout} on {verdict.ranks} {'rank' if verdict.ranks == 1 else 'ranks'} ({verdict.device})", 2)
    say(
        f"small model: {model['num_hidden_layers']} layers, width {model['hidden_size']}, "
        f"{model['num_attention_heads']} heads over {model['num_key_value_heads']}, vocabulary {model['vocab_size']}; "
        f"{model['global_batch_size']} rows of {model['seq_len']} tokens a step, {model['micro_batch_size']} at once",
        indent=2,
    )
    _parameters(verdict)
    _totals(verdict)
    if verdict.traffic:
        _traffic(verdict.traffic)
    if verdict.work:
        _work(verdict.work)
    if verdict.retried:
        parts = [f"{name} {'agrees' if agreed else 'differs'}" for name, agreed in verdict.retried.items()]
        print()
        say(f"switched off, one at a time:  {',  '.join(parts)}", indent=2)
    _verdict(verdict)


def _parameters(verdict: Verdict) -> None:
    """The largest differences over ranks, in the precision that failed, else in float64."""
    dtype = verdict.failed or next(iter(verdict.found))
    found, bounds, out = verdict.found[dtype], BOUNDS[dtype], console()
    rows = [
        (name, gradient, found.weights[name], gradient > bounds.gradient or found.weights[name] > bounds.weight)
        for name, gradient in found.gradients.items()
    ]
    numbers = len("  1e-16  weights")
    names = [name for name, *_ in rows]
    if max(map(len, names)) + numbers > out.width:
        names = [_short(name) for name in names]
    width = max(len(dtype.value), *map(len, names))
    out.print()
    out.print(f"{dtype.value:<{width}}   grad  weights", style="bold", markup=False)
    for name, (_, gradient, weight, wrong) in zip(names, rows):
        line = f"{name:<{width}}  {gradient:>5.0e}  {weight:>7.0e}"
        out.print(line, style="bold red" if wrong else "", markup=False)


def _short(name: str) -> str:
    for long, short in SHORT:
        name = name.replace(long, short)
    return name.replace(".", " ")


def _totals(verdict: Verdict) -> None:
    out, titles = console(), ("loss", "grad norm", "gradients", "weights")
    dtypes = list(verdict.found)
    out.print()
    out.print(
        " " * 9 + "".join(f"  {title:>5}  bound" for title in (_abbreviated(dtype.value) for dtype in dtypes)),
        style="bold",
        markup=False,
    )
    for title, key in zip(titles, ("loss", "grad_norm", "gradient", "weight")):
        cells = [(getattr(verdict.found[dtype], key), getattr(BOUNDS[dtype], key)) for dtype in dtypes]
        line = f"{title:<9}" + "".join(f"  {value:>5.0e}  {bound:>5.0e}" for value, bound in cells)
        out.print(line, style="bold red" if any(value > bound for value, bound in cells) else "", markup=False)


def _abbreviated(dtype: str) -> str:
    return {"float64": "fp64", "float32": "fp32", "bfloat16": "bf16"}[dtype]


def _title(text: str) -> None:
    print()
    say(text, indent=2)


def _traffic(traffic: Traffic) -> None:
    _title("one attention sends, from each rank:")
    for direction in ("forward", "backward"):
        formula: dict[str, int] = getattr(traffic.formula, direction)
        counted = [getattr(each, direction) for each in traffic.counted]
        names = sorted({name for each in (formula, *counted) for name in each})
        for name in names:
            values = sorted({each.get(name, 0) for each in counted})
            sent = " or ".join(f"{value:,}" for value in values)
            wanted = f"{formula.get(name, 0):,}"
            said = "= formula" if sent == wanted else f"formula {wanted}  DIFFERS"
            say(f"  {direction:<8}  {name}  {sent} B  {said}", indent=4)
    for direction in ("forward", "backward"):
        sizes = [f"{name} {_size(count)}" for name, count in getattr(traffic.full_size, direction).items()]
        say(f"  full size, {direction}, a layer:  {',  '.join(sizes)}", indent=4)


def _size(count: int) -> str:
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count} B"


def _work(work: Work) -> None:
    _title(f"attention work at {work.seq_len:,} tokens, busiest rank over the mean:")
    for title, shares in (("one document a row", work.one), ("packed documents", work.packed)):
        say(f"  {title}  {max(shares):.2f}  ({_shares(shares)})", indent=4)


def _shares(shares: Sequence[float]) -> str:
    few = " ".join(f"{share:.2f}" for share in shares[:8])
    return few if len(shares) <= 8 else f"{few} … over {len(shares)} ranks"


def _verdict(verdict: Verdict) -> None:
    out = console()
    out.print()
    style = "bold green" if verdict.agrees else "bold red"
    out.print(verdict.line, style=style, markup=False, soft_wrap=not out.is_terminal)
