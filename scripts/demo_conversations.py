"""Compose the conversations the demo model learns its chat template from.

Three kinds: a story asked for by its hero, thing or place and told from the grammar in `demo_grammar.txt`; a story of
the corpus asked for by words that occur in it, or begun by the user and told to its end; and small talk. The
grammar's stories are what lets a model of four million parameters answer to the point: their sentences recur, their
casts never do.
"""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

GRAMMAR = Path(__file__).with_name("demo_grammar.txt")
CHOICE = re.compile(r"\{([^{}]*)\}")
SLOT = re.compile(r"\[(\w+)\]")
PRONOUNS = {"he": ("his", "him"), "she": ("her", "her")}
FIXED = {"girl": "she", "queen": "she", "princess": "she", "hen": "she", "boy": "he", "king": "he", "fisherman": "he"}

Message = dict[str, str]


def read_grammar(path: Path = GRAMMAR) -> dict[str, list[str]]:
    """The lists of the grammar file by name."""
    lists: dict[str, list[str]] = {}
    name = ""
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith("== "):
            name = line[3:]
            lists[name] = []
        elif line.strip() and not line.startswith("#"):
            lists[name].append(line)
    return lists


def article(noun: str) -> str:
    """'an owl', 'a fox'."""
    return f"{'an' if noun[0] in 'aeio' or noun.startswith('umb') else 'a'} {noun}"


class Conversations:
    """Endless conversations from the grammar and from stories.

    Args:
        stories: whole stories of a corpus, paragraphs separated by blank lines; may be empty.
    """

    def __init__(self, stories: list[str], seed: int) -> None:
        self.grammar = read_grammar()
        self.common = frozenset(" ".join(self.grammar["common"]).split())
        self.plots = [name for name in self.grammar if name.startswith("plot ")]
        self.stories = [story for story in stories if 300 < len(story) < 1100]
        self.random = random.Random(seed)

    def __iter__(self) -> Iterator[list[Message]]:
        kinds = [self.composed, self.corpus_story, self.small_talk]
        weights = [5, 4, 1] if self.stories else [5, 0, 1]
        while True:
            talk = self.random.choices(kinds, weights)[0]()
            system = [{"role": "system", "content": self.pick("system")}] if self.random.random() < 0.1 else []
            yield system + talk

    def pick(self, name: str) -> str:
        return self.random.choice(self.grammar[name])

    def cast(self) -> dict[str, str]:
        """One story's words: the hero, the friend (slots that start with f), a thing, a place."""
        words = ("trait", "place", "thing", "colour", "weather", "country", "sum")
        cast = {word: self.pick(word) for word in words} | {"ftrait": self.pick("trait"), "name": ""}
        kinds = self.random.sample(self.grammar["kind"], 2)
        for prefix, slot, kind in (("", "name", kinds[0]), ("f", "friend", kinds[1])):
            he = FIXED.get(kind, self.random.choice(["he", "she"]))
            his, him = PRONOUNS[he]
            names = [name for name in self.grammar[f"name {he}"] if name != cast["name"]]
            cast |= {slot: self.random.choice(names), f"{prefix}kind": kind}
            cast |= {f"{prefix}he": he, f"{prefix}his": his, f"{prefix}him": him}
            cast |= {f"{prefix}He": he.title(), f"{prefix}His": his.title()}
        return cast | {f"a_{word}": article(cast[word]) for word in ("kind", "fkind", "thing", "trait", "colour")}

    def fill(self, text: str, cast: dict[str, str]) -> str:
        """Choose among the {a|b} and replace the [slots]; choices may hold slots."""
        text = CHOICE.sub(lambda match: self.random.choice(match[1].split("|")), text)
        text = SLOT.sub(lambda match: cast[match[1]], text)
        return text[0].upper() + text[1:]

    def story(self, cast: dict[str, str]) -> str:
        """A story of the grammar, three or four paragraphs."""
        plot = self.grammar[self.random.choice(self.plots)]
        lines = [self.pick("opening"), *plot, self.pick("closing")]
        text = " ".join(self.fill(line.replace("¶ ", "¶"), cast) for line in lines)
        return re.sub(r"\s*¶(\w)", lambda match: "\n\n" + match[1].upper(), text).replace(" ¶", "\n\n")

    def composed(self) -> list[Message]:
        """A request, its story, and sometimes a second turn."""
        cast = self.cast()
        request = self.random.choices(["kind", "thing", "place", "any"], [6, 3, 1, 2])[0]
        talk = turn(self.fill(self.pick(f"request {request}"), cast), self.story(cast))
        second = self.random.random()
        if second < 0.12:
            talk += turn(self.pick("request next"), self.fill(self.pick("next"), cast))
        elif second < 0.24:
            talk += turn(self.pick("request more"), self.story(self.cast()))
        return talk

    def corpus_story(self) -> list[Message]:
        """A story of the corpus, asked for by its words or begun by the user."""
        story = self.random.choice(self.stories)
        if self.random.random() < 0.3:
            begin = re.match(r".*?[.!?]\"?\s", story, re.DOTALL)
            if begin and len(begin[0]) < 200:
                return turn(begin[0].strip(), story[begin.end() :])
        words = Counter(re.findall(r"(?<![.!?] )\b[a-z]{3,}\b", story))
        topics = [word for word, count in words.most_common(30) if count > 1 and word not in self.common][:2]
        named = re.search(r"\b(an? (?:[a-z]+ ){0,2}[a-z]+) (?:named|called) ([A-Z][a-z]+)", story)
        if named:
            topic = named[0] if self.random.random() < 0.5 else named[1]
        else:
            topic = f"the words {topics[0]} and {topics[1]}" if len(topics) > 1 else "a happy day"
        ask = self.random.choice(["Tell me a story about {}.", "Write a story about {}.", "Can you tell me about {}?"])
        return turn(ask.format(topic), story)

    def small_talk(self) -> list[Message]:
        """A short exchange, sometimes two."""
        talk: list[Message] = []
        for line in self.random.sample(self.grammar["talk"], self.random.choice([1, 1, 2])):
            asked, answer = line.split(" => ")
            cast = self.cast()
            talk += turn(self.vary(self.fill(asked, cast)), self.fill(answer, cast))
        return talk

    def vary(self, text: str) -> str:
        """The way people type: without the capital or the stop, now and then."""
        text = text.rstrip(".!") if self.random.random() < 0.3 else text
        return text.lower() if self.random.random() < 0.15 else text


def turn(asked: str, answer: str) -> list[Message]:
    return [{"role": "user", "content": asked}, {"role": "assistant", "content": answer.strip()}]
