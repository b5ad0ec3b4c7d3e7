"""What will I get if I press start?  A form of one-line fields, checked and forecast after every change."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from collections.abc import Hashable
from functools import partial
from typing import Any, ClassVar, TypeVar

from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, VerticalScroll
from textual.content import Content
from textual.widget import Widget
from textual.widgets import Button, Input, Label, Static

from awq_engine.checkpoint import Checkpoint
from awq_engine.command_line import command
from awq_engine.config import GROUP_SIZES, SUPPORTED_BITS, Format, Method, Preset, RunConfig
from awq_engine.errors import AwqError
from awq_engine.estimate import Speed, block_linears, fitting_group_sizes, measured_speed
from awq_engine.models import describe_model
from awq_engine.output import default_output
from awq_engine.runs import Run, create_run
from awq_engine.sanitize import one_line
from awq_tui.background import in_thread
from awq_tui.catalog import Entry
from awq_tui.details import PREFERRED_GROUP_SIZES, fitting_seq_len
from awq_tui.draft import Draft, Review, TextSource, review, target_size
from awq_tui.hub_catalog import open_checkpoint
from awq_tui.screens.recipes import RecipesModal
from awq_tui.screens.section import SectionScreen
from awq_tui.widgets.choice import Choice
from awq_tui.widgets.plain_input import PlainInput
from awq_tui.widgets.plan_pane import PlanPane

T = TypeVar("T")
DEVICES = ("auto", "cpu", "cuda")
SETTLE = 0.05
"""Seconds without a change before the draft is reviewed."""
FOCUS = {"model": "#bits"}
"""Where the cursor goes to mend a problem, if not to the field of that name."""
PLACEHOLDERS = {
    TextSource.BUILTIN: "",
    TextSource.FILE: "~/text.txt, .jsonl, .parquet or a folder",
    TextSource.HUB: "dataset[:config][:split][:column]",
    TextSource.SELF: "",
}
CHOICES = {
    "bits": "bits", "group-size": "group_size", "symmetric": "symmetric", "preset": "preset", "method": "method",
    "format": "layout", "text-source": "text_source", "answer-only": "answer_only", "device": "device",
    "lm-head": "lm_head",
}  # fmt: skip
"""Fields with a choice, and what they are in a draft; what belongs to the model alone is in neither table."""
TEXTS = {
    "text": "text", "samples": "samples", "seq-len": "seq_len", "override": "overrides", "target-bpw": "target_bpw",
    "max-memory": "max_memory", "threads": "threads", "workers": "workers", "on": "on", "seed": "seed",
}  # fmt: skip


class Form(VerticalScroll, inherit_bindings=False, can_focus=False):
    """The fields; up and down are left to the screen, which moves between them."""


class ConfigureScreen(SectionScreen):
    """Makes a run of `entry`."""

    CSS_PATH = "configure.tcss"
    AUTO_FOCUS = "#group-size"
    HELP = """Choose how the model is quantized. Up and down go from field to field, left and right change a choice.
The plan shows what comes out and what it costs; a sentence with ✗ says what has to change before it can start.
Group size: inputs that share one scale; smaller is more exact and larger on disk; "row" is one scale per row.
Size: bits per weight to meet instead, by choosing the shape of every linear. Overrides: exceptions for single linears,
spaces between them, such as *.layers.0.*=bits:8,group:64 *.o_proj=skip; the last that fits a linear decides.
Output head: quantized too where it is no embedding table, which vLLM reads, and transformers in compressed-tensors.
Answers only: of conversations, only the model's own turns count. Memory: of the host, to stay under, such as 4GB.
Preset: fast is AWQ as AutoAWQ does it, balanced also mends rounding errors as it goes, best does so by
what each output means to the prediction."""
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("ctrl+s,f9", "start", "Start", key_display="^s", id="configure.start", tooltip="Start the run."),
        Binding("f8", "queue", "Queue", id="configure.queue", tooltip="Start it when no other run is at work."),
        Binding("f5", "recipes", "Recipes", id="configure.recipes", tooltip="Use a saved recipe, or save this one."),
        Binding("y", "copy", "Copy command", id="configure.copy", tooltip="The same run as a shell command (OSC 52)."),
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
        self._starting = False
        self._suggested_output = ""

    def body(self) -> ComposeResult:
        title = f"{one_line(self._entry.name)}  {one_line(self._entry.model)}"
        yield Static(title, id="configure-title", markup=False)
        with Horizontal(id="configure-panes"):
            with Form(id="form"):
                yield from self._fields()
            with VerticalScroll(id="plan", classes="pane", can_focus=False) as pane:
                pane.border_title = "Plan"
                yield PlanPane()

    def _fields(self) -> ComposeResult:
        groups = [("row (-1)" if size == -1 else str(size), size) for size in GROUP_SIZES]
        yield _row("Bits", Choice([(str(bits), bits) for bits in SUPPORTED_BITS], RunConfig.bits, id="bits"))
        yield _row("Format", Choice([(str(layout), layout) for layout in Format], RunConfig.format, id="format"))
        yield _row("Group size", Choice(groups, RunConfig.group_size, id="group-size"))
        yield _row("Zero points", Choice([("asymmetric", False), ("symmetric", True)], False, id="symmetric"))
        yield _row("Preset", Choice([(str(preset), preset) for preset in Preset], RunConfig.preset, id="preset"))
        methods = [("AWQ", Method.AWQ), ("GPTQ", Method.GPTQ), ("round to nearest", Method.RTN)]
        yield _row("Method", Choice(methods, Method.AWQ, id="method"))
        sources = [
            ("built in", TextSource.BUILTIN), ("file", TextSource.FILE), ("Hub", TextSource.HUB),
            ("its own", TextSource.SELF),
        ]  # fmt: skip
        yield _row("Calibration", Choice(sources, TextSource.BUILTIN, id="text-source"))
        yield _row("", PlainInput(id="text", compact=True), id="text-row")
        yield _row("Samples", PlainInput(str(RunConfig.samples), id="samples", compact=True, max_length=6))
        yield _row("Tokens each", PlainInput(str(RunConfig.seq_len), id="seq-len", compact=True, max_length=6))
        yield _row("Output", PlainInput(id="output", compact=True))
        yield _row(
            "If it exists", Choice([("stop", False), ("overwrite", True)], False, id="overwrite"), "overwrite-row"
        )
        yield _row("Size", PlainInput(id="target-bpw", placeholder="bits per weight, such as 4.25", compact=True))
        yield _row("Output head", Choice([("in floats", False), ("quantized", True)], False, id="lm-head"))
        yield _row("Overrides", PlainInput(id="override", placeholder="PATTERN=bits:8,group:64 or =skip", compact=True))
        yield _row("What counts", Choice([("all text", False), ("answers only", True)], False, id="answer-only"))
        yield _row("Device", Choice([(device, device) for device in DEVICES], "auto", id="device"))
        yield _row("Memory", PlainInput(id="max-memory", placeholder="what is free, or such as 4GB", compact=True))
        yield _row("Processes", PlainInput(str(RunConfig.workers), id="workers", compact=True, max_length=3))
        yield _row("Threads each", PlainInput(str(RunConfig.threads), id="threads", compact=True, max_length=4))
        yield _row("Ray cluster", PlainInput(id="on", placeholder="none, or ray://host:10001", compact=True))
        yield _row("Seed", PlainInput(str(RunConfig.seed), id="seed", compact=True, max_length=9))
        yield _row("", Button("Start", id="start", variant="primary", compact=True))

    def on_mount(self) -> None:
        self.query_one("#overwrite-row").display = False
        self.query_one("#text-row").display = False
        self.run_worker(self._read_model, group="read", exit_on_error=False)

    async def _read_model(self) -> None:
        self._request_review()
        self._speed = await in_thread(measured_speed)
        try:
            self._checkpoint = await in_thread(open_checkpoint, self._entry)
        except (AwqError, OSError) as error:
            self._obstacle = str(error)
        else:
            self._start_with_what_fits(self._checkpoint)
        self._request_review()

    def _start_with_what_fits(self, checkpoint: Checkpoint) -> None:
        """The usual 128 and 512, or the nearest values this model allows."""
        self.query_one("#seq-len", Input).value = str(fitting_seq_len(checkpoint))
        fitting = fitting_group_sizes(block_linears(checkpoint))
        self.query_one("#group-size", Choice).choose(next(size for size in PREFERRED_GROUP_SIZES if size in fitting))

    # the draft and its review

    def draft(self) -> Draft:
        """The form's present values."""
        values: dict[str, Any] = {field: self.query_one(f"#{name}", Choice).value for name, field in CHOICES.items()}
        values |= {field: self._typed(name) for name, field in TEXTS.items()}
        overwrite = self._chosen("overwrite", bool)
        return Draft(model=self._entry.model, output=self._typed("output"), overwrite=overwrite, **values)

    def _typed(self, name: str) -> str:
        return self.query_one(f"#{name}", Input).value

    def _chosen(self, name: str, kind: type[T]) -> T:
        value = self.query_one(f"#{name}", Choice).value
        assert isinstance(value, kind)
        return value

    @on(Choice.Changed)
    @on(Input.Changed)
    def _request_review(self) -> None:
        source = self._chosen("text-source", TextSource)
        self.query_one("#text-row").display = source in (TextSource.FILE, TextSource.HUB)
        self.query_one("#text", Input).placeholder = PLACEHOLDERS[source]
        self._suggest_output()
        self.run_worker(self._update_review, group="review", exclusive=True, exit_on_error=False)

    def _suggest_output(self) -> None:
        """Name the folder as the command line would, until the person names it."""
        output = self.query_one("#output", Input)
        if output.value != self._suggested_output:
            return
        folder = default_output(
            describe_model(self._entry.model),
            bits=self._chosen("bits", int),
            group_size=self._chosen("group-size", int),
            symmetric=self._chosen("symmetric", bool),
            method=self._chosen("method", Method),
            layout=self._chosen("format", Format),
            target_bpw=target_size(self._typed("target-bpw")),
        )
        output.value = f"./{folder.name}"
        self._suggested_output = output.value

    async def _update_review(self) -> None:
        await asyncio.sleep(SETTLE)
        machine = self.awq.machine
        free = machine.host.free if machine else None
        found = await in_thread(review, self.draft(), self._checkpoint, self._speed, free)
        if self._obstacle:
            found = dataclasses.replace(found, problems={"model": self._obstacle} | found.problems)
        self._review = found
        self.query_one(PlanPane).show(self._review, machine)
        fitting = self._review.fitting
        unfit = [size for size in GROUP_SIZES if size not in fitting] if fitting else []
        self.query_one("#group-size", Choice).mark_unfit(unfit)
        draft = self.draft()
        self.query_one("#overwrite-row").display = draft.output_is_there
        self.query_one("#start", Button).disabled = not self._review.ready

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
        self.app.push_screen(RecipesModal(self.draft()), self._use_recipe)

    def _use_recipe(self, recipe: Draft | None) -> None:
        """Fill the form; the model's own fields stay."""
        if recipe is None:
            return
        for name, field in CHOICES.items():
            choice: Choice[Hashable] = self.query_one(f"#{name}", Choice)
            with contextlib.suppress(ValueError):  # a value that another version offered
                choice.choose(getattr(recipe, field))
        for name, field in TEXTS.items():
            self.query_one(f"#{name}", Input).value = getattr(recipe, field)

    def action_queue(self) -> None:
        self._begin(queued=True)

    @on(Button.Pressed, "#start")
    def action_start(self) -> None:
        self._begin(queued=False)

    def _begin(self, queued: bool) -> None:
        """Start the run as it was last reviewed, or go to the field that stands in the way."""
        if self._review is None or self._starting:
            return
        if not self._review.ready or self._review.config is None:
            field, sentence = next(iter(self._review.problems.items()))
            self.query_one(FOCUS.get(field, f"#{field}")).focus()
            self.notify(sentence, severity="error")
            return
        self._starting = True
        self.run_worker(partial(self._start, self._review.config, queued), group="start", exit_on_error=False)

    async def _start(self, config: RunConfig, queued: bool) -> None:
        try:
            run = await in_thread(_create_and_spawn, self, config, queued)
        except (AwqError, OSError) as error:
            self.awq.show_failure(error)
        else:
            self.awq.open_run(run)
        finally:
            self._starting = False


def _create_and_spawn(screen: ConfigureScreen, config: RunConfig, queued: bool) -> Run:
    """A run whose engine cannot be started leaves nothing behind."""
    run = create_run(config)
    try:
        screen.awq.start_engine(run, queued)
    except BaseException:
        run.remove()
        raise
    return run


def _row(label: str, field: Widget, id: str | None = None) -> Horizontal:  # noqa: A002
    return Horizontal(Label(Content(label)), field, classes="field", id=id)
