"""The headless `awq-tui` commands: arguments in, exit code out.

This module only parses and turns errors into sentences; each command lives in `commands/` and is imported when it is
asked for, so `--help`, `runs` and `cancel` never wait for torch.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence
from importlib import metadata
from typing import NoReturn

from awq_engine.commands.console import result_json
from awq_engine.commands.remote import run_there, split_host
from awq_engine.config import GROUP_SIZES, SUPPORTED_BITS, Format, Method, Preset
from awq_engine.crash import write_crash_report
from awq_engine.detached import QUIET_THREADS
from awq_engine.errors import AwqError, ExitCode, UsageError, as_known_error, is_panic
from awq_engine.sanitize import plain, redacted

MODEL = "a model folder, a run id or a Hub id (org/name or org/name@revision)"
TEXT = (
    "builtin, a .txt/.jsonl/.json/.parquet file, a folder of these, or hub:DATASET[@REVISION][:CONFIG][:SPLIT][:COLUMN]"
)
MIX = f"{TEXT}, or self (the model writes it: it must fit into memory whole); several joined by +"
RUN = "a run id, the unique beginning of one, or 'latest'"


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code; every error becomes a sentence on stderr."""
    _never_fail_on_odd_characters()
    os.environ.update({**QUIET_THREADS, **os.environ})
    arguments = sys.argv[1:] if argv is None else argv
    try:
        there = split_host(arguments)
        args = build_parser().parse_args(arguments) if there is None else argparse.Namespace()
    except SystemExit as stop:  # argparse has printed the help or the version
        return stop.code if isinstance(stop.code, int) else ExitCode.OK
    except UsageError as error:
        return _report(error, as_json="--json" in arguments)
    try:
        if there is not None:
            return run_there(*there)
        module, function = args.command.split(":")
        return getattr(importlib.import_module(f"awq_engine.commands.{module}"), function)(args)
    except BrokenPipeError:  # the reader of our output has seen enough (`| head`)
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return ExitCode.OK
    except KeyboardInterrupt:
        return ExitCode.INTERRUPTED
    except BaseException as error:
        if not isinstance(error, Exception) and not is_panic(error):
            raise
        return _report(_as_ours(error), as_json=getattr(args, "json", False))


class Parser(argparse.ArgumentParser):
    """Raises what it finds wrong, so that it is reported as any other error; its commands' parsers do too."""

    def error(self, message: str) -> NoReturn:
        self.print_usage(sys.stderr)
        raise UsageError(message)


def build_parser() -> argparse.ArgumentParser:
    """Every command and option; a command names the function that carries it out."""
    parser = Parser(
        prog="awq-tui",
        description="Quantize a language model with AWQ, watch it happen, inspect the result and chat with it.",
        epilog="Without a command, in a terminal, the app opens. Exit codes: 0 done, 1 our bug, 2 bad usage or input, "
        "3 not enough memory or disk, 4 network or Hub, 130 interrupted.",
    )
    parser.add_argument("--version", action="version", version=f"awq-tui {metadata.version('awq-tui')}")
    parser.add_argument(
        "--host",
        metavar="USER@BOX",
        help="first of all: do this on another machine, over ssh; alone: open the app there",
    )
    parser.add_argument("--host-command", metavar="PATH", help="what awq-tui is called there")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    _add_quantize(commands)
    _add_run_commands(commands)
    _add_inspect(commands)
    _add_eval(commands)
    _add_compare(commands)
    _add_chat(commands)
    _add_convert(commands)
    _add_export(commands)
    _add_push(commands)
    _add_others(commands)
    return parser


Commands = argparse._SubParsersAction


def _command(commands: Commands, name: str, target: str, text: str) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.")
    parser.set_defaults(command=target)
    return parser


def _add_quantize(commands: Commands) -> None:
    parser = _command(
        commands, "quantize", "quantize:quantize", "quantize a model; it goes on when the terminal closes"
    )
    parser.add_argument("model", metavar="MODEL", help=MODEL)
    parser.add_argument("-o", "--output", metavar="OUT", help="output folder (default: ./MODEL-AWQ-W4-G128)")
    parser.add_argument("--bits", type=int, default=4, metavar="N", help=f"bits per weight: {_listed(SUPPORTED_BITS)}")
    parser.add_argument(
        "--group-size", type=int, default=128, metavar="N",
        help=f"inputs that share a scale: {_listed(GROUP_SIZES)} (-1: the whole row; default 128) or any divisor",
    )  # fmt: skip
    parser.add_argument(
        "--override", action="append", default=[], metavar="PATTERN=WHAT",
        help="other bits or groups for the linears whose whole name the glob PATTERN fits: bits:8,group:64, or skip to "
        "leave them as they are; repeat it for more, the last that fits decides",
    )  # fmt: skip
    parser.add_argument(
        "--target-bpw", type=float, default=0.0, metavar="X",
        help="meet this size in bits per weight: every linear gets the bits and groups (or, in the awq format, stays "
        "as it is) that cost the whole model least, as measured on the calibration text",
    )  # fmt: skip
    parser.add_argument(
        "--lm-head", action="store_true",
        help="quantize the output head too, unless it is the embedding table; not every program reads that",
    )  # fmt: skip
    parser.add_argument("--symmetric", action="store_true", help="all zero points in the middle of the range")
    parser.add_argument(
        "--preset", choices=_values(Preset), default=Preset.BALANCED.value, help="how much work per layer"
    )
    parser.add_argument(
        "--method",
        choices=_values(Method),
        default=Method.AWQ.value,
        help="gptq: error feedback only; rtn: plain rounding",
    )
    parser.add_argument("--calibration", default="builtin", metavar="SPEC", help=MIX)
    parser.add_argument("--answer-only", action="store_true", help="of conversations, count the answers only")
    parser.add_argument("--samples", type=int, default=128, metavar="N", help="calibration sequences (default 128)")
    parser.add_argument("--seq-len", type=int, default=512, metavar="N", help="tokens per sequence (default 512)")
    parser.add_argument(
        "--format",
        choices=_values(Format),
        default=Format.AWQ.value,
        help="layout on disk; awq holds 4 bits only, the others 2, 3, 4 and 8",
    )
    parser.add_argument(
        "--max-memory", metavar="SIZE", help="host memory to stay under, such as 4GB (default: what is free)"
    )
    _add_device(parser)
    parser.add_argument(
        "--threads", type=int, default=0, metavar="N", help="CPU threads of each process (default: all, shared out)"
    )
    parser.add_argument(
        "--workers", type=int, default=1, metavar="N",
        help="processes that share the work, each on a GPU of its own where there are several (default 1)",
    )  # fmt: skip
    parser.add_argument(
        "--on", default="", metavar="ADDRESS", help="let a Ray cluster do the work, such as ray://host:10001"
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N")
    parser.add_argument("--dry-run", action="store_true", help="print the plan and stop")
    parser.add_argument("--detach", action="store_true", help="print the run id and return at once")
    parser.add_argument("--queue", action="store_true", help="begin when no other run is at work")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing model in the output folder")
    _add_json(parser)


def _add_run_commands(commands: Commands) -> None:
    _add_json(_command(commands, "runs", "runs:show_runs", "list the runs, newest first"))
    watch = _command(commands, "watch", "quantize:watch", "follow a run, or replay one that ended")
    pause = _command(commands, "pause", "runs:pause", "let a run lie still after its present step, until `resume`")
    stop = _command(commands, "cancel", "runs:cancel", "stop a run after its present step")
    resume = _command(
        commands, "resume", "quantize:resume", "go on with a run that was paused or cancelled, failed or died"
    )
    resume.add_argument("--detach", action="store_true", help="print the run id and return at once")
    _add_json(resume)
    for parser in (watch, pause, stop, resume):
        parser.add_argument("run", metavar="RUN", help=RUN)
    remove = _command(commands, "rm", "runs:remove", "delete runs, but not the models they wrote")
    remove.add_argument("run", metavar="RUN", nargs="+", help=RUN)


def _add_inspect(commands: Commands) -> None:
    parser = _command(commands, "inspect", "inspect:inspect", "show the statistics of every layer")
    parser.add_argument("model", metavar="RUN_OR_MODEL", help="a run id or a model folder written by awq-tui")
    parser.add_argument("--sort", metavar="COLUMN", help="worst first; an unknown name lists the columns")
    parser.add_argument("--by-type", action="store_true", help="one line for each of q, k, v, o, gate, up, down")
    group = parser.add_mutually_exclusive_group()
    _add_json(group)
    group.add_argument("--csv", action="store_true", help="print comma-separated values")


def _add_eval(commands: Commands) -> None:
    parser = _command(
        commands, "eval", "evaluate:evaluate_model", "measure perplexity and the distance to the original"
    )
    parser.add_argument("model", metavar="MODEL", help=MODEL)
    parser.add_argument("--against", metavar="ORIGINAL", help="also compare with this model: KL divergence, same top-1")
    parser.add_argument("--text", default="builtin", metavar="SPEC", help=TEXT)
    parser.add_argument("--seq-len", type=int, default=512, metavar="N", help="tokens per window (default 512)")
    parser.add_argument("--max-tokens", type=int, default=16384, metavar="N", help="tokens in all (default 16384)")
    parser.add_argument("--backend", default="reference", help="auto, triton, cpu or reference (the default: exact)")
    _add_device(parser)
    _add_json(parser)


def _add_compare(commands: Commands) -> None:
    parser = _command(
        commands, "compare", "compare:compare", "quantize with several recipes and measure them side by side"
    )
    parser.add_argument("model", metavar="MODEL", help=MODEL)
    parser.add_argument(
        "--recipes", default="rtn,gptq,fast,balanced,best", metavar="LIST",
        help="from rtn, gptq-fast, gptq, gptq-best, fast, balanced and best (default: all but two)",
    )  # fmt: skip
    parser.add_argument("--bits", default="4", metavar="LIST", help="bits per weight, commas between them (default 4)")
    parser.add_argument("--group-sizes", default="128", metavar="LIST", help="inputs that share a scale (default 128)")
    parser.add_argument(
        "-o", "--output", metavar="FOLDER", help="for the table and models (default: ./MODEL-comparison)"
    )
    parser.add_argument("--keep", action="store_true", help="keep the models; without it only the table stays")
    parser.add_argument("--symmetric", action="store_true", help="all zero points in the middle of the range")
    parser.add_argument("--format", choices=_values(Format), default=Format.AWQ.value, help="layout on disk")
    parser.add_argument("--calibration", default="builtin", metavar="SPEC", help=MIX)
    parser.add_argument("--samples", type=int, default=128, metavar="N", help="calibration sequences (default 128)")
    parser.add_argument("--seq-len", type=int, default=512, metavar="N", help="tokens per sequence and per window")
    parser.add_argument("--text", default="builtin", metavar="SPEC", help=f"to measure on: {TEXT}")
    parser.add_argument("--max-tokens", type=int, default=16384, metavar="N", help="tokens measured (default 16384)")
    _add_device(parser)
    parser.add_argument("--seed", type=int, default=0, metavar="N")
    group = parser.add_mutually_exclusive_group()
    _add_json(group)
    group.add_argument("--markdown", action="store_true", help="print the table as markdown")


def _add_chat(commands: Commands) -> None:
    parser = _command(commands, "chat", "chat:chat", "talk with a model")
    parser.add_argument("model", metavar="MODEL", help=MODEL)
    parser.add_argument("--prompt", metavar="TEXT", help="answer this and end (default: a conversation)")
    parser.add_argument("--system", metavar="TEXT", help="instructions that come before the conversation")
    parser.add_argument("--max-tokens", type=int, default=512, metavar="N", help="longest answer (default 512)")
    parser.add_argument("--temperature", type=float, default=0.7, metavar="T", help="0 is always the likeliest token")
    parser.add_argument("--top-p", type=float, default=0.95, metavar="P", help="draw from this much probability")
    parser.add_argument("--top-k", type=int, default=0, metavar="N", help="draw from the N likeliest tokens (0: all)")
    parser.add_argument(
        "--min-p", type=float, default=0.0, metavar="P", help="least share of the likeliest's probability"
    )
    parser.add_argument("--repetition-penalty", type=float, default=1.0, metavar="X", help="above 1: repeat less")
    parser.add_argument(
        "--stop", action="append", default=[], metavar="TEXT", help="end before this text (may be repeated)"
    )
    parser.add_argument("--seed", type=int, metavar="N", help="makes an answer repeatable")
    parser.add_argument("--backend", default="auto", help="auto, triton, cpu or reference")
    _add_device(parser)
    parser.add_argument(
        "--quick-head", action="store_true", help="on a CPU: exact logits for the likeliest 256 tokens only, but sooner"
    )
    parser.add_argument(
        "--kv-cache", choices=["float", "int8"], default="float", help="int8: a long conversation in less memory"
    )


def _add_convert(commands: Commands) -> None:
    parser = _command(
        commands, "convert", "convert:convert_model", "write a quantized model in another format, without rounding"
    )
    parser.add_argument("model", metavar="MODEL", help=MODEL)
    parser.add_argument("-o", "--output", metavar="OUT", required=True, help="output folder")
    parser.add_argument("--format", choices=_values(Format), required=True, help="layout on disk to convert to")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing model in the output folder")
    _add_json(parser)


def _add_export(commands: Commands) -> None:
    parser = _command(commands, "export", "export:export_model", "write a quantized model for llama.cpp or MLX")
    parser.add_argument("model", metavar="MODEL", help=MODEL)
    parser.add_argument(
        "--to", choices=["gguf", "mlx"], required=True,
        help="gguf: one file for llama.cpp (llama, mistral, qwen2 and qwen3 models); mlx: a folder for mlx-lm",
    )  # fmt: skip
    parser.add_argument("-o", "--output", metavar="OUT", help="file or folder (default: ./MODEL.gguf or ./MODEL-mlx)")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing one")
    _add_json(parser)


def _add_push(commands: Commands) -> None:
    parser = _command(commands, "push", "push:push_model", "put a quantized model on the Hub")
    parser.add_argument("model", metavar="MODEL", help="a model folder or a run id")
    parser.add_argument("repo", metavar="REPO", help="org/name; made if it is not there yet")
    parser.add_argument("--public", action="store_true", help="a new repository is for everybody (default: private)")
    parser.add_argument("--dry-run", action="store_true", help="list every file and byte and stop")
    parser.add_argument("--yes", action="store_true", help="send without asking")
    _add_json(parser)


def _add_others(commands: Commands) -> None:
    demo = _command(commands, "demo", "demo:run_demo", "the whole job on the bundled model, offline")
    _add_json(demo)
    _add_json(_command(commands, "doctor", "doctor:show_doctor", "say what this machine can do, and why"))
    trust = _command(
        commands, "trust", "trust:trust", "show the Python code that a model brings along, and allow it to run"
    )
    trust.add_argument("model", metavar="MODEL", help=MODEL)
    trust.add_argument(
        "--allow", default="", metavar="DIGEST", help="agree without being asked: the digest that was shown"
    )
    trust.add_argument("--withdraw", action="store_true", help="do not allow it any more")
    _add_json(trust)
    completion = _command(
        commands, "completion", "completion:show_completion", "print a script that completes commands"
    )
    completion.add_argument("shell", choices=["bash", "zsh", "tcsh"], help='eval "$(awq-tui completion bash)"')
    bench = _command(
        commands, "bench", "bench:bench", "measure how fast this machine multiplies with quantized weights"
    )
    bench.add_argument(
        "model", metavar="MODEL", nargs="?", help="with the linears of this model (default: usual shapes)"
    )
    bench.add_argument("--bits", type=int, default=4, metavar="N", help="without MODEL: bits per weight (default 4)")
    bench.add_argument(
        "--group-size", type=int, default=128, metavar="N", help="without MODEL: inputs that share a scale"
    )
    bench.add_argument("--tune", action="store_true", help="on a GPU, first search the fastest launches and keep them")
    bench.add_argument("--backend", default="auto", help="auto, triton, cpu or reference")
    _add_device(bench)
    _add_json(bench)


def _add_json(parser: argparse.ArgumentParser | argparse._MutuallyExclusiveGroup) -> None:
    parser.add_argument("--json", action="store_true", help="print exactly one JSON object on stdout")


def _add_device(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", default="auto", metavar="DEVICE", help="auto, cpu, cuda or cuda:N")


def _values(choices: type[Preset] | type[Method] | type[Format]) -> list[str]:
    return [choice.value for choice in choices]


def _listed(values: Sequence[int]) -> str:
    return ", ".join(map(str, values))


def _as_ours(error: BaseException) -> AwqError:
    """What to tell a person about `error`: itself, a lack of memory or disk, or a bug with its report."""
    if known := as_known_error(error):
        return known
    try:
        where = f"the report is in {write_crash_report(error)}"
    except OSError:
        where = "no report could be written"
    return AwqError(f"A bug in awq-tui stopped this command ({type(error).__name__}); {where}.")


def _report(error: AwqError, as_json: bool) -> int:
    if as_json:
        result_json({"error": redacted(str(error)), "exit_code": int(error.exit_code)})
    print(f"awq-tui: {plain(redacted(str(error)))}", file=sys.stderr)
    return error.exit_code


def _never_fail_on_odd_characters() -> None:
    """A terminal that cannot show a character gets a `?` for it instead of an exception."""
    for stream in (sys.stdout, sys.stderr):
        if reconfigure := getattr(stream, "reconfigure", None):
            reconfigure(errors="replace")


if __name__ == "__main__":
    sys.exit(main())
