"""Conversations that are kept: what was said, by which models, with which settings; one private JSON file each.

    HOME/chats/ID.json      folder 0700, files 0600

A turn is one question and one reply per model, so a conversation with two models side by side is the same thing as one
with a single model. No Textual here; what touches the disk blocks and is called off the event loop.
"""

from __future__ import annotations

import dataclasses
import json
import re
import secrets
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from awq_engine.errors import AwqError, BadInputError
from awq_engine.events import LATEST
from awq_engine.sampling_settings import Sampling
from awq_engine.sanitize import one_line
from awq_engine.shapes import check_of
from awq_engine.storage import home, write_atomically
from awq_tui.thoughts import split_thought

VERSION = 1
TITLE_LENGTH = 60
FIGURES = ("new_tokens", "tokens_per_second", "seconds_to_first_token", "context_used", "seed", "finish_reason")
"""What of a reply's `done` is kept."""


@dataclass(frozen=True)
class Reply:
    """What one model answered."""

    text: str
    """As it was written, thoughts included."""
    figures: dict[str, Any] = field(default_factory=dict)
    """Those of `FIGURES` that are known."""


@dataclass(frozen=True)
class Turn:
    """A question and what each model made of it."""

    question: str
    replies: tuple[Reply | None, ...] = ()
    """One per model; None where it did not answer."""


@dataclass(frozen=True)
class Chat:
    """One conversation."""

    models: tuple[str, ...]
    """As the person named them: a folder, a run id or a Hub id; two when they are compared."""
    id: str = ""
    """Empty until the first question."""
    created: float = 0.0
    """Unix time in seconds."""
    updated: float = 0.0
    system: str = ""
    sampling: Sampling = field(default_factory=Sampling)
    turns: tuple[Turn, ...] = ()

    @property
    def title(self) -> str:
        """The first words that were said."""
        first = self.turns[0].question.strip() if self.turns else "empty"
        line = one_line(first.splitlines()[0] if first else "empty")
        return line if len(line) <= TITLE_LENGTH else f"{line[: TITLE_LENGTH - 1]}…"

    def messages(self, side: int) -> list[dict[str, str]]:
        """What a model is sent: the system prompt, then the turns it took part in, without its thoughts."""
        found = [{"role": "system", "content": self.system}] if self.system else []
        for number, turn in enumerate(self.turns):
            reply = turn.replies[side] if side < len(turn.replies) else None
            if reply is not None or number == len(self.turns) - 1:
                found.append({"role": "user", "content": turn.question})
            if reply is not None:
                found.append({"role": "assistant", "content": split_thought(reply.text).answer})
        return found

    def asking(self, question: str, now: float) -> Chat:
        """With one more question, which nobody has answered."""
        identity = self.id or f"{time.strftime('%Y%m%d-%H%M%S', time.localtime(now))}-{secrets.token_hex(3)}"
        turn = Turn(question, (None,) * len(self.models))
        created = self.created or now
        return replace(self, id=identity, created=created, updated=now, turns=(*self.turns, turn))

    def answered(self, side: int, reply: Reply, now: float) -> Chat:
        """With what the model `side` said to the last question."""
        last = self.turns[-1]
        replies = tuple(reply if index == side else old for index, old in enumerate(last.replies))
        return replace(self, updated=now, turns=(*self.turns[:-1], replace(last, replies=replies)))

    def before(self, turn: int) -> Chat:
        """As it was before the turn of this number; when later turns go as well, under an identity of its own."""
        identity = self.id if turn >= len(self.turns) - 1 else ""
        return replace(self, id=identity, created=self.created if identity else 0.0, turns=self.turns[:turn])

    def with_models(self, models: Sequence[str]) -> Chat:
        """Talking to these models from now on; a side that keeps its model keeps its replies."""
        kept = [self.models.index(model) if model in self.models else None for model in models]

        def replies(turn: Turn) -> tuple[Reply | None, ...]:
            return tuple(None if side is None else turn.replies[side] for side in kept)

        turns = tuple(replace(turn, replies=replies(turn)) for turn in self.turns)
        return replace(self, models=tuple(models), turns=turns)

    def matches(self, query: str) -> bool:
        """Whether every word is somewhere in what was said, or in the models' names."""
        texts = [turn.question for turn in self.turns]
        texts += [reply.text for turn in self.turns for reply in turn.replies if reply]
        everything = "\n".join([*self.models, *texts]).lower()
        return all(word in everything for word in query.lower().split())


def chats_dir() -> Path:
    return home() / "chats"


def save_chat(chat: Chat) -> None:
    """Write a conversation whole or not at all, readable by its owner only; raises `OSError`."""
    folder = chats_dir()
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    write_atomically(folder / f"{chat.id}.json", as_json(chat).encode(errors="replace"), mode=0o600)


def load_chat(path: Path) -> Chat:
    """A stored conversation; `BadInputError` when the file cannot be read as one."""
    try:
        data = json.loads(path.read_bytes())
        turns = tuple(_read_turn(turn, len(data["models"])) for turn in data["turns"])
        created, updated = float(data["created"]), float(data["updated"])
        if not (0 <= created < LATEST and 0 <= updated < LATEST):
            raise ValueError("its dates are none")
        return Chat(
            models=tuple(str(model) for model in data["models"]), id=path.stem, created=created, updated=updated,
            system=str(data["system"]), sampling=Sampling.from_json(data["sampling"]), turns=turns,
        )  # fmt: skip
    except (
        AwqError, OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError
    ) as error:  # fmt: skip
        raise BadInputError(f"{path} is not a conversation that this version can read ({error}).") from error


def _read_turn(data: dict[str, Any], models: int) -> Turn:
    replies = [item if item is None else _read_reply(item) for item in data["replies"]]
    return Turn(str(data["question"]), (*replies, *[None] * models)[:models])


def _read_reply(data: dict[str, Any]) -> Reply:
    return Reply(str(data["text"]), _figures(data["figures"]))


def _figures(data: dict[str, Any]) -> dict[str, Any]:
    known = check_of(float | str | None)
    return {key: value for key, value in data.items() if key in FIGURES and known(value)}


def list_chats(query: str = "") -> list[Chat]:
    """Stored conversations that fit the query, the latest first; files that cannot be read are left out."""
    found = []
    for path in chats_dir().glob("*.json"):
        try:
            chat = load_chat(path)
        except BadInputError:
            continue
        if chat.matches(query):
            found.append(chat)
    return sorted(found, key=lambda chat: chat.updated, reverse=True)


def delete_chat(chat: Chat) -> None:
    """Raises `OSError`."""
    (chats_dir() / f"{chat.id}.json").unlink(missing_ok=True)


def export_chat(chat: Chat, folder: Path) -> tuple[Path, Path]:
    """Write the conversation as Markdown and as JSON into a folder; returns both files, raises `OSError`."""
    words = re.sub(r"[^a-z0-9]+", "-", chat.title.lower()).strip("-")[:40].strip("-")
    stem = f"awq-chat-{chat.id[:15]}-{words}".rstrip("-")
    markdown, data = folder / f"{stem}.md", folder / f"{stem}.json"
    write_atomically(markdown, as_markdown(chat).encode(errors="replace"))
    write_atomically(data, as_json(chat).encode(errors="replace"))
    return markdown, data


def as_json(chat: Chat) -> str:
    """Everything, as it is stored."""
    return json.dumps({"version": VERSION, **dataclasses.asdict(chat)}, indent=1, ensure_ascii=False) + "\n"


def as_markdown(chat: Chat) -> str:
    """For people: a front matter with models and settings, then the turns; thoughts are quoted."""
    sampling = {key: value for key, value in dataclasses.asdict(chat.sampling).items() if value not in (None, [], ())}
    front = {
        "models": list(chat.models),
        "date": time.strftime("%Y-%m-%d %H:%M", time.localtime(chat.created)),
        **sampling,
    }
    lines = ["---", *(f"{key}: {json.dumps(value, ensure_ascii=False)}" for key, value in front.items()), "---", ""]
    lines += [f"# {chat.title}", ""]
    lines += ["## System", "", chat.system, ""] if chat.system else []
    for turn in chat.turns:
        lines += ["## You", "", turn.question, ""]
        for model, reply in zip(chat.models, turn.replies, strict=False):
            lines += [f"## {model_name(model)}", "", *_reply_lines(reply)]
    return "\n".join(lines)


def _reply_lines(reply: Reply | None) -> Iterable[str]:
    if reply is None:
        return ["*(no reply)*", ""]
    parts = split_thought(reply.text)
    thought = [f"> {line}".rstrip() for line in parts.thought.splitlines()]
    figures = ", ".join(f"{key.replace('_', ' ')} {_short(value)}" for key, value in reply.figures.items())
    return [*thought, *([""] if thought else []), parts.answer, "", *([f"*{figures}*", ""] if figures else [])]


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def model_name(model: str) -> str:
    """The last part of a folder or Hub id, on one line."""
    return one_line(model.rstrip("/").rsplit("/", 1)[-1] or model)
