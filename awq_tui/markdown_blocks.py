"""Markdown as lines of styled text, block by block.

A reply is drawn many times while it grows, so the parts matter that make this cheap: only the last block of a text can
still change when more text comes (`Block.start` says where to parse on from), and a block remembers its lines. HTML is
not interpreted; it would swallow `vector<int>` and everything in unclosed tags.

Every piece of a block is a paragraph with what stands before its first line (a bullet, a number) and before the others.
Style names with a dot are component classes of the widget that draws.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache

from markdown_it import MarkdownIt
from markdown_it.token import Token
from textual.content import Content

from awq_tui.code_colours import coloured
from awq_tui.markdown_tables import table_lines
from awq_tui.widgets.glyphs import glyphs

LEAST_WIDTH = 8
"""Cells that text always gets, however deep it stands in lists."""
_INLINE_STYLES = {"strong": ".text--strong", "em": ".text--emphasis", "s": ".text--struck", "link": ".text--link"}


@dataclass(frozen=True)
class Piece:
    """One paragraph, line of a code block, rule, or table."""

    content: Content
    first: Content = field(default_factory=lambda: Content(""))
    """Before the first line."""
    rest: Content = field(default_factory=lambda: Content(""))
    """Before every other line."""
    kind: str = "text"
    """`text` is wrapped between words, `code` anywhere, `rule` is a line across, `table` is made of `cells`."""
    cells: tuple[tuple[Content, ...], ...] = ()

    def lines(self, width: int) -> list[Content]:
        room = max(LEAST_WIDTH, width - max(self.first.cell_length, self.rest.cell_length))
        if self.kind == "rule":
            found = [Content.styled(glyphs().axis * room, ".text--rule")]
        elif self.kind == "table":
            found = table_lines(self.cells, room)
        elif self.kind == "code":
            found = [_padded(line, room) for line in self.content.expand_tabs(4).fold(room)]
        else:
            found = self.content.wrap(room)
        return [(self.rest if number else self.first) + line for number, line in enumerate(found)]


@dataclass
class Block:
    """A block of the top level: it does not change any more once another one follows."""

    start: int
    """The line of the text it begins on, from 0."""
    pieces: list[Piece]
    _width: int = -1
    _lines: list[Content] = field(default_factory=list)

    def lines(self, width: int) -> list[Content]:
        """At most `width` cells each, unless `width` is less than what its indentation needs."""
        if width != self._width:
            self._width = width
            self._lines = [line for piece in self.pieces for line in piece.lines(width)]
        return self._lines


def parse_blocks(text: str) -> list[Block]:
    """The blocks of `text` in order."""
    blocks: list[Block] = []
    for tokens in _top_level(_parser().parse(text)):
        assert tokens[0].map is not None
        blocks.append(Block(tokens[0].map[0], list(_Walker().pieces(tokens))))
    return blocks


@cache
def _parser() -> MarkdownIt:
    return MarkdownIt("commonmark", {"html": False}).enable(["table", "strikethrough"])


def _top_level(tokens: Sequence[Token]) -> Iterator[list[Token]]:
    group: list[Token] = []
    depth = 0
    for token in tokens:
        group.append(token)
        depth += token.nesting
        if depth == 0:
            yield group
            group = []


@dataclass
class _Indent:
    """What a list item or a quote puts before its lines."""

    first: Content
    rest: Content
    used: bool = False


class _Walker:
    """Turns the tokens of one block into pieces."""

    def __init__(self) -> None:
        self._indents: list[_Indent] = []
        self._lists: list[int | None] = []
        """Of every list around, the next number, or None for bullets."""
        self._heading = 0
        self._loose = False
        """The next paragraph stands apart from the one before."""

    def pieces(self, tokens: Sequence[Token]) -> Iterator[Piece]:
        tokens = list(tokens)
        while tokens:
            token = tokens.pop(0)
            if token.type == "table_open":
                end = next(index for index, other in enumerate(tokens) if other.type == "table_close")
                yield from self._table(tokens[:end])
                del tokens[: end + 1]
            else:
                yield from self._piece(token)

    def _piece(self, token: Token) -> Iterator[Piece]:
        kind = token.type
        if kind == "heading_open":
            self._heading = int(token.tag[1:])
        elif kind in ("bullet_list_open", "ordered_list_open"):
            self._lists.append(int(token.attrs.get("start", 1)) if kind.startswith("ordered") else None)
        elif kind in ("bullet_list_close", "ordered_list_close"):
            self._lists.pop()
        elif kind == "list_item_open":
            self._indents.append(self._item_indent())
        elif kind == "blockquote_open":
            yield from self._gap(token)
            self._loose = False
            bar = Content.styled(f"{glyphs().quote} ", ".text--quote")
            self._indents.append(_Indent(bar, bar))
        elif kind in ("list_item_close", "blockquote_close"):
            self._indents.pop()
        elif kind == "paragraph_open":
            yield from self._gap(token)
        elif kind == "inline":
            yield self._paragraph(token)
        elif kind in ("fence", "code_block"):
            yield from self._gap(token)
            yield from self._code(token)
        elif kind == "hr":
            yield from self._gap(token)
            yield self._indented(Content(""), "rule")

    def _gap(self, token: Token) -> Iterator[Piece]:
        """An empty line before what follows in the same block, but not between the lines of a tight list."""
        if self._loose and not token.hidden:
            yield Piece(Content(""), self._prefix(bullets=False))
        self._loose = True

    def _item_indent(self) -> _Indent:
        number = self._lists[-1]
        mark = f"{glyphs().bullet} " if number is None else f"{number}. "
        if number is not None:
            self._lists[-1] = number + 1
        return _Indent(Content.styled(mark, ".text--mark"), Content(" " * len(mark)))

    def _prefix(self, bullets: bool = True) -> Content:
        parts = [indent.first if bullets and not indent.used else indent.rest for indent in self._indents]
        if bullets:
            for indent in self._indents:
                indent.used = True
        return Content("").join(parts)

    def _indented(self, content: Content, kind: str = "text", cells: tuple[tuple[Content, ...], ...] = ()) -> Piece:
        first = self._prefix()
        return Piece(content, first, self._prefix(), kind, cells)

    def _paragraph(self, token: Token) -> Piece:
        content = inline(token.children or [])
        if self._heading:
            content = Content(f"{'#' * self._heading} ").append(content).stylize(".text--heading")
            self._heading = 0
        return self._indented(content)

    def _code(self, token: Token) -> Iterator[Piece]:
        for line in coloured(token.content.rstrip("\n"), token.info.split(" ")[0]).split("\n", allow_blank=True):
            yield self._indented(line, "code")

    def _table(self, tokens: Sequence[Token]) -> Iterator[Piece]:
        rows: list[list[Content]] = []
        for token in tokens:
            if token.type == "tr_open":
                rows.append([])
            elif token.type == "inline":
                rows[-1].append(inline(token.children or []))
        yield self._indented(Content(""), "table", tuple(map(tuple, rows)))


def inline(tokens: Sequence[Token]) -> Content:
    """A paragraph's text with its styles; of a link its address too, unless that is the text: links are not opened."""
    parts: list[tuple[str, str]] = []
    styles: list[str] = []
    address, linked = "", 0
    for token in tokens:
        name = token.type.removesuffix("_open").removesuffix("_close")
        if token.nesting > 0 and name in _INLINE_STYLES:
            styles.append(_INLINE_STYLES[name])
            if name == "link":
                address, linked = str(token.attrs.get("href", "")), len(parts)
        elif token.nesting < 0 and name in _INLINE_STYLES:
            styles.remove(_INLINE_STYLES[name])
            text = "".join(text for text, _ in parts[linked:])
            if name == "link" and address.removeprefix("mailto:").removeprefix("http://") not in (text, ""):
                parts.append((f" ({address})", ".text--rule"))
        else:
            parts.append((_plain_text(token), " ".join([*styles, *([".text--code"] if name == "code_inline" else [])])))
    return _assembled(parts)


def _plain_text(token: Token) -> str:
    return {"softbreak": " ", "hardbreak": "\n"}.get(token.type, token.content)


def _assembled(parts: Sequence[tuple[str, str]]) -> Content:
    content = Content("").join(Content(text) for text, _ in parts)
    end = 0
    for text, styles in parts:
        start, end = end, end + len(text)
        for style in styles.split():
            content = content.stylize(style, start, end)
    return content


def _padded(line: Content, width: int) -> Content:
    """A line of code as wide as all others, or its background would end with its text."""
    return line.pad_right(max(0, width - line.cell_length)).stylize_before(".text--block")
