"""Source code in the colours of the theme: which words of a language are which is Pygments' knowledge."""

from __future__ import annotations

from functools import cache

from textual.content import Content, Span

_CLASSES = {
    "Comment": ".code--comment",
    "Keyword": ".code--keyword",
    "Operator.Word": ".code--keyword",
    "Literal.String": ".code--string",
    "Literal.Number": ".code--number",
    "Name.Function": ".code--name",
    "Name.Class": ".code--name",
    "Name.Decorator": ".code--name",
    "Name.Tag": ".code--name",
    "Name.Builtin": ".code--keyword",
}
"""Component class by Pygments' kind of token; one that is not here is looked up as its parent."""
MAX_CODE = 50_000
"""Characters; more is shown without colours, because finding them takes a second."""


def coloured(code: str, language: str) -> Content:
    """`code` as it is; of an unknown language without colours."""
    from pygments.lexers import get_lexer_by_name
    from pygments.util import ClassNotFound

    if not language or len(code) > MAX_CODE:
        return Content(code)
    try:
        lexer = get_lexer_by_name(language, stripnl=False, ensurenl=False)
    except ClassNotFound:
        return Content(code)
    spans: list[Span] = []
    for start, kind, text in lexer.get_tokens_unprocessed(code):
        if style := _style(".".join(kind)):
            spans.append(Span(start, start + len(text), style))
    return Content(code, spans)


@cache
def _style(kind: str) -> str:
    if kind in _CLASSES or not kind:
        return _CLASSES.get(kind, "")
    return _style(kind.rpartition(".")[0])
