"""The pane beside the list: what the model is, and what it would become."""

from __future__ import annotations

from typing import TYPE_CHECKING

from textual.content import Content
from textual.widgets import Static

from awq_engine.format import count, duration, size
from awq_engine.sanitize import one_line, plain
from awq_tui.catalog import Entry, Where
from awq_tui.widgets.glyphs import glyphs
from awq_tui.widgets.progress_bar import bar

if TYPE_CHECKING:
    from awq_engine.downloads import Download
    from awq_tui.details import Details

ORIGINS = {
    Where.DEMO: "bundled with awq-tui",
    Where.RESULT: "made by awq-tui",
    Where.DISK: "on this disk",
    Where.CACHE: "in the Hugging Face cache",
    Where.HUB: "on the Hugging Face Hub, not downloaded",
}
COLUMN = 10
ONE_LINE_WIDTH = 56
"""Cells from which size before and after fit beside the heading."""


class ModelDetails(Static):
    """Drawn from one `Details`; everything from outside goes through `plain` and is never markup."""

    def __init__(self, id: str | None = None) -> None:  # noqa: A002
        super().__init__(id=id, markup=False)

        self._details: Details | None = None
        self._nothing = ""
        self._free: int | None = None
        self._download: Download | None = None

    def show(self, details: Details | None, nothing: str = "No model chosen.") -> None:
        """Describe one model, or say why there is `nothing`."""
        self._details, self._nothing = details, nothing
        self.on_resize()

    def show_free(self, free: int) -> None:
        """How many bytes of memory this machine has left."""
        self._free = free
        self.on_resize()

    def show_download(self, download: Download | None) -> None:
        """How far the model is fetched, or why it was not."""
        if download != self._download:
            self._download = download
            self.on_resize()

    def on_resize(self) -> None:
        if self._details is None:
            self.update(Content.styled(plain(self._nothing), "dim"))
        else:
            text = draw(self._details, self.size.width, self._free)
            progress = [draw_download(self._download, self.size.width)] if self._download else []
            self.update(Content("\n").join([text, *progress]))


def draw(details: Details, width: int, free: int | None = None) -> Content:
    """The pane's text for a pane of `width` cells, on a machine with so many bytes of memory left."""
    entry = details.entry
    lines = [Content.styled(one_line(entry.name), "bold"), Content.styled(_origin(entry, width), "dim")]
    lines += [Content(f"licence {one_line(entry.licence)}")] if entry.licence else []
    lines += [Content(plain(fact)) for fact in details.facts]
    lines += [Content.styled(f"✗ {plain(_shorter(problem, entry))}", "$text-error") for problem in details.problems]
    lines += _marks(entry)
    if details.forecasts:
        lines += _forecast(details, width, free)
    return Content("\n").join(lines)


def draw_download(download: Download, width: int) -> Content:
    """A bar and bytes, or why the download ended."""
    if download.error:
        return Content.styled(f"✗ {plain(download.error)}", "$text-error")
    if not download.total:
        return Content.styled("asking the Hub…", "$text-accent")
    figures = f"{size(download.done)} of {size(download.total)}"
    share = bar(download.done / download.total, max(4, width - len(figures) - 9), glyphs())
    return Content.assemble((share, "$primary"), f"  {figures}")


def _origin(entry: Entry, width: int) -> str:
    origin = ORIGINS[entry.where]
    if entry.downloads:
        origin += f" · {count(entry.downloads)} downloads a month"
    if entry.path and entry.where in (Where.DISK, Where.RESULT):
        origin += f" · {_tail(one_line(str(entry.path.parent)), width - len(origin) - 3)}"
    return origin


def _tail(path: str, room: int) -> str:
    """The end of a path that is too long, because the end tells folders apart."""
    return path if len(path) <= room else f"…{path[len(path) - max(1, room - 1) :]}"


def _shorter(problem: str, entry: Entry) -> str:
    """The pane's heading already names the folder."""
    return problem.replace(str(entry.path), entry.name) if entry.path else problem


def _marks(entry: Entry) -> list[Content]:
    lines = []
    if entry.quantized:
        lines.append(
            Content.styled(f"◆ Already quantized ({plain(entry.quantized)}): c chats with it.", "$text-accent")
        )
    if entry.has_report:
        lines.append(Content("i shows its per-layer statistics."))
    if entry.gated:
        page = f"huggingface.co/{plain(entry.model)}"
        lines.append(Content.styled(f"⊘ Gated: accept the licence at {page}, then `hf auth login`.", "$text-warning"))
    if entry.where is Where.HUB and entry.nbytes:
        lines.append(Content(f"{size(entry.nbytes)} to download first: d, or a run does it by itself."))
    return lines


def _forecast(details: Details, width: int, free: int | None) -> list[Content]:
    first = details.forecasts[0][1]
    group = "row" if details.group_size == -1 else f"g{details.group_size}"
    result = f"{size(first.bytes_before)} → {size(first.bytes_after)} · {first.bits_per_weight:.2f} bits/weight"
    presets = "".join(f"{preset:>{COLUMN}}" for preset, _ in details.forecasts)
    memory = "".join(f"{size(forecast.peak_host_bytes):>{COLUMN}}" for _, forecast in details.forecasts)
    times = "".join(f"{'~' + duration(forecast.seconds):>{COLUMN}}" for _, forecast in details.forecasts)
    return [
        Content.assemble((f"after W4 {group}", "bold $accent"), "   " if width >= ONE_LINE_WIDTH else "\n", result),
        Content.assemble(f"{'':7}", (presets, "dim")),
        Content(f"{'memory':<7}{memory}"),
        *([] if free is None else [_fits(details, free)]),
        Content(f"{'time':<7}{times}"),
        Content.styled(f"time is {plain(first.speed.source)}", "dim"),
    ]


def _fits(details: Details, free: int) -> Content:
    """A verdict under the memory of each preset."""
    parts: list[tuple[str, str]] = [(f"{'fits':<7}", "")]
    for _, forecast in details.forecasts:
        fits = forecast.peak_host_bytes < free
        parts.append((f"{'✓ yes' if fits else '✗ no':>{COLUMN}}", "$text-success" if fits else "$text-error"))
    return Content.assemble(*parts, (f"  {size(free)} free", "dim"))
