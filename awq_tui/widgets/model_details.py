"""The pane beside the list: what the model is, and what it would become."""

from __future__ import annotations

from typing import TYPE_CHECKING

from textual.content import Content
from textual.widgets import Static

from awq_engine.format import count, duration, size
from awq_engine.paths import shown_path
from awq_engine.sanitize import one_line, plain
from awq_tui.catalog import Entry, Where
from awq_tui.ellipsis import shorten
from awq_tui.widgets.glyphs import glyphs
from awq_tui.widgets.progress_bar import bar

if TYPE_CHECKING:
    from awq_engine.downloads import Download
    from awq_engine.estimate import Estimate
    from awq_tui.details import Details
    from awq_tui.machine import Machine

ORIGINS = {
    Where.DEMO: "bundled with awq-tui",
    Where.RESULT: "made by awq-tui",
    Where.DISK: "on this disk",
    Where.CACHE: "in the Hugging Face cache",
    Where.HUB: "on the Hugging Face Hub",
}
COLUMN = 10
LABEL = 7
ONE_LINE_WIDTH = 68
"""Cells from which size before and after fit beside the heading, and what is free beside what is needed."""


class ModelDetails(Static):
    """Drawn from one `Details`; everything from outside goes through `plain` and is never markup."""

    def __init__(self, id: str | None = None) -> None:  # noqa: A002
        super().__init__(id=id, markup=False)

        self._details: Details | None = None
        self._nothing = ""
        self._machine: Machine | None = None
        self._download: Download | None = None

    def show(self, details: Details | None, nothing: str = "No model chosen.") -> None:
        """Describe one model, or say why there is `nothing`."""
        self._details, self._nothing = details, nothing
        self.on_resize()

    def show_machine(self, machine: Machine | None) -> None:
        """Whose memory a run has to fit into."""
        self._machine = machine
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
            self.update(draw(self._details, self.size.width, self._machine, self._download))


def draw(details: Details, width: int, machine: Machine | None = None, download: Download | None = None) -> Content:
    """The pane's text for a pane of `width` cells; with the `machine`, whether a run fits into its memory."""
    entry = details.entry
    wide = width >= ONE_LINE_WIDTH
    lines = [Content.styled(one_line(entry.name), "bold"), Content.styled(_origin(entry, width), "dim")]
    lines += [Content(f"licence {one_line(entry.licence)}")] if entry.licence else []
    lines = [Content("   ").join(lines)] if wide else lines
    lines += [draw_download(download, width)] if download and download.error not in details.problems else []
    lines += [Content(plain(fact)) for fact in ([" · ".join(details.facts)] if wide else details.facts) if fact]
    lines += [Content.styled(f"✗ {plain(_shorter(problem, entry))}", "$text-error") for problem in details.problems]
    lines += _marks(details)
    if details.forecasts:
        lines += _forecast(details, width, machine)
    if details.looking:
        lines.append(Content.styled("reading its shapes from the Hub…", "dim"))
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
        origin += f" · {_tail(one_line(shown_path(entry.path.parent)), width - len(origin) - 3)}"
    return origin


def _tail(path: str, room: int) -> str:
    """The end of a path that is too long, because the end tells folders apart."""
    return path if len(path) <= room else f"…{path[len(path) - max(1, room - 1) :]}"


def _shorter(problem: str, entry: Entry) -> str:
    """The pane's heading already names the folder."""
    return problem.replace(str(entry.path), entry.name) if entry.path else problem


def _marks(details: Details) -> list[Content]:
    entry, lines = details.entry, []
    if entry.quantized:
        lines.append(
            Content.styled(f"◆ Already quantized ({plain(entry.quantized)}): c chats with it.", "$text-accent")
        )
    if entry.has_report:
        lines.append(Content("i shows its per-layer statistics."))
    if entry.gated and not details.problems:
        page = f"huggingface.co/{plain(entry.model)}"
        lines.append(Content.styled(f"⊘ Gated: accept the licence at {page}, then `hf auth login`.", "$text-warning"))
    if entry.where is Where.HUB and entry.nbytes:
        lines.append(Content(f"{size(entry.nbytes)} to download first: d, or a run does it by itself."))
    return lines


def _forecast(details: Details, width: int, machine: Machine | None) -> list[Content]:
    forecasts = [forecast for _, forecast in details.forecasts]
    first, wide = forecasts[0], width >= ONE_LINE_WIDTH
    group = "row" if details.group_size == -1 else f"g{details.group_size}"
    heading = (f"after W4 {group} · {first.n_linears} linears", "bold $accent")
    result = f"{size(first.bytes_before)} → {size(first.bytes_after)} · {first.bits_per_weight:.2f} bits/weight"
    presets = "".join(f"{preset:>{COLUMN}}" for preset, _ in details.forecasts)
    times = "".join(f"{'~' + duration(forecast.seconds):>{COLUMN}}" for forecast in forecasts)
    gap, room = ("   ", width - LABEL - 3 * COLUMN - 3) if wide else (f"\n{'':{LABEL}}", width - LABEL)
    return [
        Content.assemble(heading, "   " if wide else "\n", result),
        Content.assemble(" " * LABEL, (presets, "dim")),
        *_memory(forecasts, machine, gap),
        Content.assemble(f"{'time':<{LABEL}}{times}", (f"{gap}{shorten(one_line(first.speed.source), room)}", "dim")),
    ]


def _memory(forecasts: list[Estimate], machine: Machine | None, gap: str) -> list[Content]:
    """What each preset takes of the host's memory, and of the GPU's where there is one, with a verdict."""
    needs = [forecast.peak_host_bytes for forecast in forecasts]
    lines = [_need("memory", needs, machine.host.free if machine else None, gap)]
    if machine and machine.gpu:
        lines.append(_need("GPU", [forecast.device_bytes for forecast in forecasts], machine.gpu.memory.free, gap))
    return lines


def _need(label: str, needs: list[int], free: int | None, gap: str) -> Content:
    parts: list[tuple[str, str]] = [(f"{label:<{LABEL}}", "")]
    for need in needs:
        verdict, colour = (
            ("", "") if free is None else ("✓ ", "$text-success") if need < free else ("✗ ", "$text-error")
        )
        parts.append((f"{verdict + size(need):>{COLUMN}}", colour))
    return Content.assemble(*parts, (f"{gap}of {size(free)} free" if free is not None else "", "dim"))
