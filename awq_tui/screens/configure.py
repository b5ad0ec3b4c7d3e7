"""What will I get if I press start?  A form of one-line fields, checked and forecast after every change."""

from __future__ import annotations

import asyncio
import dataclasses
from functools import partial
from typing import ClassVar

from textual import events, on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical, VerticalScroll
from textual.content import Content
from textual.widgets import Button, Input, Static
from textual.worker import Worker

from awq_engine.checkpoint import Checkpoint
from awq_engine.command_line import command
from awq_engine.config import GROUP_SIZES, RunConfig
from awq_engine.errors import AwqError
from awq_engine.estimate import Speed, block_linears, fitting_group_sizes, measured_speed
from awq_engine.models import describe_model
from awq_engine.output import default_output
from awq_engine.paths import shown_path
from awq_engine.runs import Run, create_run
from awq_engine.sanitize import one_line
from awq_tui.background import in_thread
from awq_tui.catalog import Entry
from awq_tui.details import PREFERRED_GROUP_SIZES, fitting_seq_len
from awq_tui.draft import Draft, Review, review, target_size
from awq_tui.draft_fields import about, from_texts, to_texts
from awq_tui.hub_catalog import open_checkpoint
from awq_tui.places import Place
from awq_tui.recipes import OWN_OF_MODEL
from awq_tui.screens.recipes import RecipesModal
from awq_tui.screens.section import SectionScreen
from awq_tui.widgets.choice import Choice
from awq_tui.widgets.draft_form import DraftForm
from awq_tui.widgets.plan_pane import PlanPane

SETTLE = 0.05
"""Seconds without a change before the draft is reviewed."""
FOCUS = {"model": "#bits"}
"""Where the cursor goes to mend a problem, if not to the field of that name."""


class ConfigureScreen(SectionScreen):
    """Makes a run of `entry`."""

    CSS_PATH = "configure.tcss"
    AUTO_FOCUS = "#group-size"
    HELP = """Choose how the model is quantized. Up and down go from field to field, left and right change a choice;
what the field means stands beside the form. The plan shows what comes out and what it costs; a sentence with ✗ says
what has to change before it can start. Queued runs start one after the other, and more can be queued from here."""
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("ctrl+s,f9", "start", "Start", key_display="^s", id="configure.start", tooltip="Start the run."),
        Binding("f8", "queue", "Queue", id="configure.queue", tooltip="Start it when no other run is at work."),
        Binding("f5", "recipes", "Recipes", id="configure.recipes", tooltip="Use a saved recipe, or save this one."),
        Binding(
            "y,f7", "copy", "Copy command", id="configure.copy", tooltip="The same run as a shell command (OSC 52)."
        ),
        Binding("escape", "app.back", "Back", key_display="esc", id="configure.back"),
        Binding("up", "app.focus_previous", "Field above", show=False),
        Binding("down", "app.focus_next", "Field below", show=False),
    ]

    def __init__(self, entry: Entry) -> None:
        super().__init__()
        self._entry = entry
        self._checkpoint: Checkpoint | None = None
        self._obstacle = ""
        """Why the model cannot be read: offline, gated, damaged."""
        self._speed: Speed | None = None
        self._review: Review | None = None
        self._reading: Worker[None] | None = None
        self._starting = False
        self._suggested_output = ""

    def place(self) -> Place:
        entry = self._entry
        known = {"where": str(entry.where), "name": entry.name, "model": entry.model, "path": str(entry.path or "")}
        return {**to_texts(self.form.draft), **known, "screen": "configure"}

    def body(self) -> ComposeResult:
        named = self._entry.name == self._entry.model
        title = self._entry.name if named else f"{self._entry.name}  {shown_path(self._entry.model)}"
        yield Static(one_line(title), id="configure-title", markup=False)
        with Horizontal(id="configure-panes"):
            yield DraftForm(from_texts(self.kept, Draft(self._entry.model, "")))
            with Vertical(id="configure-side"):
                with VerticalScroll(id="plan", classes="pane", can_focus=False) as pane:
                    pane.border_title = "Plan"
                    yield PlanPane()
                yield Static(id="about", markup=False)

    @property
    def form(self) -> DraftForm:
        return self.query_one(DraftForm)

    def on_mount(self) -> None:
        self._reading = self.run_worker(self._read_model, group="read", exit_on_error=False)

    def on_descendant_focus(self, event: events.DescendantFocus) -> None:
        label, text = about(event.widget.id)
        self.query_one("#about", Static).update(Content.assemble((f"{label}  " if label else "", "bold"), text))

    async def _read_model(self) -> None:
        self._request_review()
        self._speed = await in_thread(measured_speed)
        try:
            self._checkpoint = await in_thread(open_checkpoint, self._entry)
        except (AwqError, OSError) as error:
            self._obstacle = str(error)
        else:
            if not self.kept:
                self._start_with_what_fits(self._checkpoint)
        self._request_review()

    def _start_with_what_fits(self, checkpoint: Checkpoint) -> None:
        """The usual 128 and 512, or the nearest values this model allows."""
        self.form.put("seq_len", str(fitting_seq_len(checkpoint)))
        fitting = fitting_group_sizes(block_linears(checkpoint))
        self.form.put("group_size", next(size for size in PREFERRED_GROUP_SIZES if size in fitting))

    # the draft and its review

    @on(Choice.Changed)
    @on(Input.Changed)
    def _request_review(self) -> None:
        self._suggest_output()
        self.form.show_needed()
        self.run_worker(self._review_soon, group="review", exclusive=True, exit_on_error=False)

    def _suggest_output(self) -> None:
        """Name the folder as the command line would, until the person names it."""
        draft = self.form.draft
        folder = default_output(
            describe_model(draft.model), bits=draft.bits, group_size=draft.group_size, symmetric=draft.symmetric,
            method=draft.method, layout=draft.layout, target_bpw=target_size(draft.target_bpw),
        )  # fmt: skip
        suggestion = f"./{folder.name}"
        if draft.output in (self._suggested_output, suggestion):
            self._suggested_output = suggestion
            self.form.put("output", suggestion)

    async def _review_soon(self) -> None:
        await asyncio.sleep(SETTLE)
        await self._look_over()

    async def _look_over(self) -> Review:
        """Review the form as it is now."""
        machine = self.awq.machine
        free = machine.host.free if machine else None
        found = await in_thread(review, self.form.draft, self._checkpoint, self._speed, free)
        found = dataclasses.replace(found, problems=self._other_problems(found) | found.problems)
        self._review = found
        self.query_one(PlanPane).show(found, machine)
        unfit = [size for size in GROUP_SIZES if size not in found.fitting] if found.fitting else []
        self.query_one("#group-size", Choice).mark_unfit(unfit)
        self.query_one("#start", Button).disabled = not found.ready
        return found

    def _other_problems(self, found: Review) -> dict[str, str]:
        """What the draft itself does not tell."""
        problems = {"model": self._obstacle} if self._obstacle else {}
        outputs = {summary.file.config.output for summary in self.awq.summaries if summary.running and summary.file}
        if found.config and found.config.output in outputs:
            problems["output"] = "A run that is at work, or waits, writes to this folder already; choose another."
        return problems

    # keys

    @on(Input.Submitted)
    def _next_field(self) -> None:
        self.focus_next()

    def action_copy(self) -> None:
        if self._review is None or self._review.config is None:
            self.notify("The command can be copied once every field has a usable value.", severity="warning")
            return
        text = command(self._review.config)
        self.app.copy_to_clipboard(text)
        self.notify(text, title="Copied")

    def action_recipes(self) -> None:
        self.app.push_screen(RecipesModal(self.form.draft), self._use_recipe)

    def _use_recipe(self, recipe: Draft | None) -> None:
        """Fill the form; the model's own fields stay."""
        if recipe is not None:
            self.form.fill(recipe, leave=OWN_OF_MODEL)

    def action_queue(self) -> None:
        self._begin(queued=True)

    @on(Button.Pressed, "#start")
    def action_start(self) -> None:
        self._begin(queued=False)

    def _begin(self, queued: bool) -> None:
        if not self._starting:
            self._starting = True
            self.run_worker(partial(self._start, queued), group="start", exit_on_error=False)

    async def _start(self, queued: bool) -> None:
        """Start the run as the form says it now, or go to the field that stands in the way."""
        try:
            if self._reading is not None:
                await self._reading.wait()
            found = await self._look_over()
            if not found.ready or found.config is None:
                self._go_to_problem(found)
                return
            run = await in_thread(_create_and_spawn, self, found.config, queued)
        except (AwqError, OSError) as error:
            self.awq.show_failure(error)
        else:
            self._show_started(run, queued)
        finally:
            self._starting = False

    def _go_to_problem(self, found: Review) -> None:
        field, sentence = next(iter(found.problems.items()))
        self.query_one(FOCUS.get(field, f"#{field}")).focus()
        self.notify(sentence, severity="error")

    def _show_started(self, run: Run, queued: bool) -> None:
        """A run that waits for others leaves the form, for the next one of the queue."""
        if queued and any(other.running for other in self.awq.summaries):
            self.notify(f"{run.config().output} waits for the runs before it; 2 shows them.", title="Queued")
            self._request_review()
        else:
            self.awq.open_run(run)


def _create_and_spawn(screen: ConfigureScreen, config: RunConfig, queued: bool) -> Run:
    """A run whose engine cannot be started leaves nothing behind."""
    run = create_run(config)
    try:
        screen.awq.start_engine(run, queued)
    except BaseException:
        run.remove()
        raise
    return run
