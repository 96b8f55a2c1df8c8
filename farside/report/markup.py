"""HTML that is escaped by construction: only what ``tag`` and ``join`` made is passed through unescaped.

Completions, questions and configs are untrusted text. No other module of the report writes a ``<``.
"""

import base64
import html
from collections.abc import Iterable, Sequence

# Control characters are forbidden in HTML or invisible; their pictures are neither. Line feed and tab stay.
_CONTROL_PICTURES = {code: 0x2400 + code for code in range(32) if chr(code) not in "\n\t"} | {127: 0x2421}
_VOID = {"img", "meta", "br"}


class Markup(str):
    """Text that is HTML already. Any string method gives a plain ``str`` again, which gets escaped."""


def escape(child: object) -> str:
    """``child`` as HTML: Markup unchanged, everything else as text."""
    if isinstance(child, Markup):
        return str.__str__(child)
    return html.escape(str(child).translate(_CONTROL_PICTURES), quote=True)


def tag(name: str, /, *children: object, **attributes: str) -> Markup:
    """An element. A trailing underscore in an attribute is dropped (``class_``), others become dashes."""
    names = {key: key.rstrip("_").replace("_", "-") for key in attributes}
    opening = "".join(f' {names[key]}="{escape(value)}"' for key, value in attributes.items())
    if name in _VOID:
        assert not children
        return Markup(f"<{name}{opening}>")
    return Markup(f"<{name}{opening}>{join(children)}</{name}>")


def join(children: Iterable[object]) -> Markup:
    return Markup("".join(escape(child) for child in children))


def table(header: Sequence[object], rows: Iterable[Sequence[object]], numeric: Sequence[int] = ()) -> Markup:
    """A table that scrolls sideways by itself on a narrow screen; ``numeric`` columns align right."""

    def cell(name: str, column: int, child: object) -> Markup:
        return tag(name, child, class_="number") if column in numeric else tag(name, child)

    head = tag("tr", *(cell("th", column, child) for column, child in enumerate(header)))
    body = [tag("tr", *(cell("td", column, child) for column, child in enumerate(row))) for row in rows]
    return tag("div", tag("table", tag("thead", head), tag("tbody", *body)), class_="scroll")


def image(png: bytes, alt: str, caption: object = "", narrow: bool = False) -> Markup:
    """A figure with the PNG inside the page itself."""
    source = "data:image/png;base64," + base64.b64encode(png).decode("ascii")
    picture = tag("div", tag("img", src=source, alt=alt), class_="scroll")
    below = [tag("figcaption", caption)] if caption else []
    return tag("figure", picture, *below, class_="narrow" if narrow else "wide")


def quiet(text: object) -> Markup:
    return tag("p", text, class_="quiet")


def pill(text: object, kind: str) -> Markup:
    """A small coloured label (``kind``: good, warn, bad, plain); its text says it all, colour only helps."""
    return tag("span", text, class_=f"pill {kind}")


def section(identifier: str, title: str, *children: object) -> Markup:
    return tag("section", tag("h2", title), *children, id=identifier)


def page(title: str, *children: object) -> str:
    """A whole document. The policy forbids scripts and every outside reference, should escaping ever fail."""
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", http_equiv="Content-Security-Policy", content=policy),
        tag("title", title),
        tag("style", Markup(STYLE)),
    )
    document = tag("html", head, tag("body", tag("main", *children)), lang="en")
    return f"<!DOCTYPE html>\n{document}\n"


STYLE = """
:root { --ink: #1d2530; --soft: #5d6875; --line: #e0e4e9; --back: #f7f8fa; --blue: #245f9e; }
* { box-sizing: border-box; }
body { margin: 0; background: var(--back); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", sans-serif; }
main { max-width: 1080px; margin: 0 auto; padding: 32px 20px 64px; }
h1 { font-size: 1.75rem; margin: 0 0 4px; overflow-wrap: anywhere; }
h2 { font-size: 1.3rem; margin: 0 0 8px; }
h3 { font-size: 1rem; margin: 24px 0 8px; }
h4 { font-size: .92rem; color: var(--soft); margin: 14px 0 6px; }
p { margin: 0 0 12px; max-width: 78ch; }
section, header { background: #fff; border: 1px solid var(--line); border-radius: 8px; padding: 24px;
  margin: 0 0 20px; }
nav { margin: 12px 0 0; font-size: .9rem; }
nav, .facts { display: flex; flex-wrap: wrap; gap: 2px 15px; align-items: center; }
nav a { color: var(--blue); text-decoration: none; }
nav a:hover { text-decoration: underline; }
code, pre { font: .86rem/1.5 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; }
code { overflow-wrap: anywhere; }
pre { margin: 0; white-space: pre-wrap; overflow-wrap: anywhere; unicode-bidi: isolate; }
.command { background: var(--back); border-radius: 6px; padding: 8px 12px; margin: 12px 0; }
.quiet, figcaption, .facts, .soft { color: var(--soft); font-size: .92rem; }
.quiet { margin: 0; }
.facts { max-width: none; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: .92rem; margin: 4px 0 12px; }
th { text-align: left; color: var(--soft); font-weight: 600; border-bottom: 2px solid var(--line); }
th, td { padding: 7px 14px 7px 0; vertical-align: top; }
td .soft { font-size: .88rem; }
td { border-bottom: 1px solid var(--line); }
td, code { unicode-bidi: isolate; }
td:first-child > code { overflow-wrap: normal; }
.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
figure { margin: 12px 0 16px; }
figure img { display: block; width: 100%; height: auto; }
figure.narrow { max-width: 640px; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(215px, 1fr)); gap: 14px;
  margin: 4px 0 20px; }
.card { background: var(--back); border-radius: 8px; padding: 12px 16px; }
.card b { display: block; font-size: 1.3rem; font-weight: 650; line-height: 1.35; }
.card span { color: var(--soft); font-size: .88rem; display: block; }
.pill { display: inline-block; border-radius: 10px; padding: 0 9px; font-size: .82rem; font-weight: 600;
  white-space: nowrap; background: #e8ebef; color: #3c4652; }
.pill.good { background: #d8f0db; color: #165c24; }
.pill.warn { background: #fcebcb; color: #744700; }
.pill.bad { background: #f9dcdb; color: #8c1517; }
.cause { border-left: 4px solid #b3282b; padding: 4px 12px; margin: 12px 0; overflow-wrap: anywhere; }
.samples { display: grid; gap: 12px;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 420px), 1fr)); }
.sample { border: 1px solid var(--line); border-radius: 8px; padding: 10px 14px; min-width: 0; }
.sample pre { background: var(--back); border-radius: 6px; padding: 8px 10px; margin: 8px 0; }
.sample .facts { margin: 0; }
details summary { cursor: pointer; color: var(--blue); }
details pre { margin-top: 12px; }
@media (max-width: 700px) {
  main { padding: 12px 8px 40px; }
  section, header { padding: 16px 14px; }
  figure.wide img { min-width: 640px; }
  td:first-child { min-width: 120px; }
}
@media print { body { background: #fff; } section, header { break-inside: avoid-page; } }
"""
