"""One run, live or past: how far, how well, anything odd?

A thread follows the journal and posts snapshots; everything drawn here comes from the newest one, so a run that is
being worked on, one attached to from a second terminal and one that ended last week look the same.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import ClassVar

from rich.cells import cell_len
from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical, VerticalScroll
from textual.content import Content
from textual.message import Message
from textual.widgets import Static

from awq_engine.errors import AwqError
from awq_engine.estimate import default_speed, measured_speed, planned_work
from awq_engine.runs import Run, RunStatus
from awq_engine.state import RunState
from awq_tui.places import Place
from awq_tui.run_client import Replay, RunClient, Snapshot, config_of, follow
from awq_tui.run_words import block_lines, memory_line, notes, phase_line, times_line, title_line
from awq_tui.screens.confirm import ConfirmModal
from awq_tui.screens.log import LogModal
from awq_tui.screens.section import SectionScreen
from awq_tui.widgets.glyphs import glyphs
from awq_tui.widgets.heat_map import HeatMap, LayerKey, legend
from awq_tui.widgets.layer_detail import LayerDetail, LayerView
from awq_tui.widgets.progress_bar import bar

CLOCK_INTERVAL = 1.0
"""Seconds between two updates of the times in the header."""
BAR_WIDTHS = (10, 40)
ROOMY_HEIGHT = 38
"""Rows from which the layers of a block stand under the map."""
REFRESHED = ("follow", "pause", "proceed", "cancel", "detach", "resume", "inspect", "chat", "replay", "speed")
"""Actions that make sense only at times."""


class RunScreen(SectionScreen):
    """Follows `run` for as long as the screen is there."""

    CSS_PATH = "run.tcss"
    HELP = (
        "How far the run is, how well each layer went, and anything odd. Every character on the left is one linear: "
        "the darker, the more of the loss of plain rounding is left. The arrows choose a layer; the right side shows "
        "its search and its channel scales; a high terminal also lists the layers of the block. The run goes on when "
        "you leave this screen or quit."
    )
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("f", "follow", "Follow", id="run.follow", tooltip="Show the newest layer again."),
        Binding("v", "other_plot", "Plot", id="run.plot", tooltip="Switch between curve and histogram."),
        Binding("p", "pause", "Pause", id="run.pause", tooltip="The engine lies still after the present step."),
        Binding("p", "proceed", "Continue", id="run.proceed", tooltip="End the pause."),
        Binding("x", "cancel", "Cancel", id="run.cancel", tooltip="Stop after the present step; can be resumed."),
        Binding("r", "resume", "Resume", id="run.resume", tooltip="Go on from the last finished block."),
        Binding("d", "detach", "Detach", id="run.detach", tooltip="Back to the list; the run goes on."),
        Binding("p", "replay", "Replay", id="run.replay", tooltip="Play the whole run again, or stop that."),
        Binding("plus,equals_sign", "speed(2)", "Faster", key_display="+", id="run.faster", tooltip="Twice as fast."),
        Binding("minus", "speed(0.5)", "Slower", key_display="-", id="run.slower", tooltip="Half as fast."),
        Binding("l", "log", "Log", id="run.log", tooltip="What the engine printed."),
        Binding("i", "inspect", "Inspect", id="run.inspect", tooltip="Statistics of the finished layers."),
        Binding("c", "chat", "Chat", id="run.chat", tooltip="Talk to the result."),
    ]

    class Updated(Message):
        """The journal has news; a newer one replaces an older one that still waits."""

        def __init__(self, snapshot: Snapshot) -> None:
            self.snapshot = snapshot
            super().__init__()

        def can_replace(self, message: Message) -> bool:
            return isinstance(message, RunScreen.Updated)

    def __init__(self, run: Run) -> None:
        super().__init__()
        self.run = run
        self.snapshot: Snapshot | None = None
        self.following = True
        """Whether the cursor goes to the newest layer by itself."""
        self._glyphs = glyphs()
        self._config = config_of(run)
        self._stop = threading.Event()
        self._replay: Replay | None = None
        """What is played in the place of the present, while that is wanted."""
        self._expected: float | None = None
        """Seconds that all blocks will take, as the plan and earlier runs tell."""
        self._keys: tuple[bool | None, ...] = ()
        self._notes = Content("")

    def place(self) -> Place:
        cursor = None if self.following else self.query_one(HeatMap).cursor
        return {"screen": "run", "run": self.run.id, "layer": f"{cursor[0]} {cursor[1]}" if cursor else ""}

    def body(self) -> ComposeResult:
        yield Static(id="run-head", markup=False)
        with Horizontal(id="run-main"):
            with Vertical(id="run-map", classes="pane") as pane:
                pane.border_title = "loss kept vs rounding"
                yield HeatMap(id="run-heat")
                yield Static(id="run-block", markup=False)
                yield Static(legend(self._glyphs), id="run-legend", markup=False)
            with Vertical(id="run-detail", classes="pane"):
                yield LayerDetail(classes="-curve")
        with VerticalScroll(id="run-notes", can_focus=False):
            yield Static(id="run-notes-text", markup=False)

    def on_mount(self) -> None:
        self.query_one(HeatMap).focus()
        self.set_interval(CLOCK_INTERVAL, self._show_head)
        self.run_worker(self._follow, thread=True, group="follow", exit_on_error=False)

    def on_unmount(self) -> None:
        self._stop.set()

    def _follow(self) -> None:
        stop, client = self._stop, self._replay or RunClient(self.run)

        def post(snapshot: Snapshot) -> None:
            plan = snapshot.state.plan
            if self._expected is None and plan is not None and self._config is not None:
                speed = measured_speed(self._config.device) or default_speed()
                self._expected = planned_work(plan, self._config) / speed.flops
            self.post_message(self.Updated(snapshot))

        follow(client, post, stop)

    # drawing

    @on(Updated)
    def _take(self, message: Updated) -> None:
        self.snapshot = message.snapshot
        self.catch_up()

    def catch_up(self) -> None:
        if self.snapshot is None or not self.is_current:
            return
        state = self.snapshot.state
        self.query_one(HeatMap).show(state)
        self._go_to_kept_layer(state)
        if self.following and (newest := newest_layer(state)) is not None:
            self.query_one(HeatMap).move_to(newest)
        self._show_layer()
        self._show_head()
        self._show_notes()
        self._refresh_keys()

    def _go_to_kept_layer(self, state: RunState) -> None:
        """Once, when the layers are drawn for the first time."""
        block, _, name = self.kept.get("layer", "").partition(" ")
        if block.isdecimal() and (int(block), name) in state.layers:
            self.following = False
            self.query_one(HeatMap).move_to((int(block), name))
        if state.layers:
            self.kept = {}

    def on_resize(self) -> None:
        self.set_class(self.app.size.height >= ROOMY_HEIGHT, "-roomy")
        self._show_head()

    def _show_head(self) -> None:
        if self.snapshot is None or not self.is_current:
            return
        state = self.snapshot.state
        title = title_line(self._config, self.run.id, self._glyphs)
        if self._replay is not None:
            title += f"  replay {self._replay.speed:g}x"
        now = self.snapshot.now or time.time()
        phase, clock = phase_line(self.snapshot, self._glyphs), times_line(self.snapshot, now, self._expected)
        room = self.size.width - len(clock) - len(phase) - 12
        progress = bar(state.fraction(), min(max(room, BAR_WIDTHS[0]), BAR_WIDTHS[1]), self._glyphs)
        gauges = memory_line(state, self._glyphs)
        gap = max(2, self.size.width - 2 - cell_len(title) - cell_len(gauges))
        head = Content.assemble(
            (title, "bold"),
            f"{'':{gap}}",
            (gauges, "dim"),
            "\n",
            (f"{phase}  ", "$accent"),
            (progress, "$primary"),
            f"  {clock}",
        )
        self.query_one("#run-head", Static).update(head, layout=False)

    def _show_layer(self) -> None:
        key = self.query_one(HeatMap).cursor
        layer = self.snapshot.state.layers.get(key) if self.snapshot and key else None
        view = LayerView.of_state(layer) if layer else LayerView("", note="Waiting for the plan.")
        self.query_one(LayerDetail).show(view)
        layers = self.snapshot.state.layers.of_block(key[0]) if self.snapshot and key else {}
        lines = block_lines(layers, key[1] if key else "", self._glyphs)
        styled = [Content.styled(text, "$accent" if chosen else "dim" if not row else "")
                  for row, (text, chosen) in enumerate(lines)]  # fmt: skip
        self.query_one("#run-block", Static).update(Content("\n").join(styled), layout=False)

    def _show_notes(self) -> None:
        assert self.snapshot is not None
        lines = [Content.styled(note.text, note.tone) for note in notes(self.snapshot, self._config, self._glyphs)]
        content = Content("\n").join(lines)
        if content != self._notes:
            self._notes = content
            self.query_one("#run-notes").display = bool(lines)
            self.query_one("#run-notes-text", Static).update(content)

    @on(HeatMap.Moved)
    def _choose_layer(self) -> None:
        self.following = False
        self._show_layer()
        self._refresh_keys()

    # keys

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """Only the keys that make sense now are in the footer."""
        status = self.snapshot.status if self.snapshot else None
        running, playing = status is RunStatus.RUNNING, self._replay is not None
        allowed = {
            "follow": running and not self.following,
            "other_plot": self.has_class("-narrow") and self.has_class("-low"),
            "pause": running and not playing and self.snapshot is not None and not self.snapshot.pausing,
            "proceed": running and not playing and self.snapshot is not None and self.snapshot.pausing,
            "cancel": running and not playing and self.snapshot is not None and not self.snapshot.cancelling,
            "detach": running or status is None,
            "resume": status is not None and status.resumable and not playing,
            "replay": playing or (status is not None and not running),
            "speed": playing,
            "inspect": self.snapshot is not None and bool(self.snapshot.state.blocks),
            "chat": status is RunStatus.DONE,
        }
        return allowed.get(action, True)

    def _refresh_keys(self) -> None:
        """Drawing the footer is dear, so only when another key makes sense."""
        keys = tuple(self.check_action(action, ()) for action in REFRESHED)
        if keys != self._keys:
            self._keys = keys
            self.refresh_bindings()

    def action_replay(self) -> None:
        """Play the run again from its start, or go back to how it stands."""
        self._stop.set()
        self._stop = threading.Event()
        self._replay = None if self._replay else Replay(self.run)
        self.following = True
        self.run_worker(self._follow, thread=True, group="follow", exit_on_error=False)
        self._refresh_keys()

    def action_speed(self, factor: float) -> None:
        if self._replay is not None:
            self._replay.speed = min(max(self._replay.speed * factor, 0.25), 4096.0)
            self._show_head()

    def action_follow(self) -> None:
        self.following = True
        newest = newest_layer(self.snapshot.state) if self.snapshot else None
        if newest is not None:
            self.query_one(HeatMap).move_to(newest)
            self._show_layer()
        self._refresh_keys()

    def action_other_plot(self) -> None:
        self.query_one(LayerDetail).toggle_class("-curve", "-histogram")

    def action_pause(self) -> None:
        self._ask_engine(self.run.request_pause, "pause")

    def action_proceed(self) -> None:
        self._ask_engine(self.run.end_pause, "go on")

    def action_cancel(self) -> None:
        question = "Stop this run after the present step? Finished blocks are kept, and it can be resumed."
        self.app.push_screen(ConfirmModal(question, "Stop"), self._cancel)

    def _cancel(self, yes: bool | None) -> None:
        if yes:
            self._ask_engine(self.run.request_cancel, "stop")

    def _ask_engine(self, ask: Callable[[], None], wish: str) -> None:
        try:
            ask()
        except OSError as error:
            self.notify(f"The run could not be asked to {wish}: {error.strerror}.", severity="error")

    def action_resume(self) -> None:
        try:
            self.awq.start_engine(self.run)
        except (AwqError, OSError) as error:
            self.awq.show_failure(error)
        self.following = True

    async def action_detach(self) -> None:
        await self.awq.action_back()

    def action_log(self) -> None:
        self.app.push_screen(LogModal(self.run))

    def action_inspect(self) -> None:
        self.awq.open_inspect(self.run)

    def action_chat(self) -> None:
        self.awq.open_chat(self.run.id)


def newest_layer(state: RunState) -> LayerKey | None:
    """The layer the engine touched last: in the present block, else in the last finished one, else the first of all."""
    block = state.current_block if state.current_block is not None else max(state.blocks, default=None)
    layers = state.layers.of_block(block or 0)
    touched = [name for name, layer in layers.items() if layer.scale or layer.quantized]
    done = [name for name in touched if layers[name].quantized]
    candidates = done or touched or list(layers)[:1]
    return (block or 0, candidates[-1]) if candidates else None
