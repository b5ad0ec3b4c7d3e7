"""Recipes: saved under names, used for other models."""

from __future__ import annotations

import pytest

from awq_engine.config import Format, Preset
from awq_engine.errors import BadInputError
from awq_tui.draft import Draft, TextSource
from awq_tui.recipes import delete_recipe, describe_recipe, load_recipes, recipes_path, save_recipe

DRAFT = Draft(
    "/models/a", "./a-out", bits=3, group_size=64, preset=Preset.BEST, layout=Format.GPTQ, text="~/t.txt",
    text_source=TextSource.FILE, samples="64", overrides="*.o_proj=skip", overwrite=True,
)  # fmt: skip


def test_a_recipe_holds_everything_but_what_belongs_to_the_model() -> None:
    save_recipe("small [/x]", DRAFT)
    save_recipe("other", Draft("", ""))
    assert list(load_recipes()) == ["small [/x]", "other"]
    found = load_recipes()["small [/x]"]
    assert (found.model, found.output, found.overwrite) == ("", "", False)
    assert (found.bits, found.layout, found.text, found.samples) == (3, Format.GPTQ, "~/t.txt", "64")
    assert "/models/a" not in recipes_path().read_text()
    delete_recipe("small [/x]")
    assert list(load_recipes()) == ["other"]


def test_a_recipe_is_described_in_one_line() -> None:
    assert describe_recipe(DRAFT) == "W3 g64 best gptq, ~/t.txt, 64 x 512, *.o_proj=skip"


def test_fields_of_other_versions_are_left_out_or_have_their_defaults() -> None:
    recipes_path().parent.mkdir(parents=True)
    recipes_path().write_text('{"old": {"bits": 8, "colour": "red"}}')
    assert load_recipes() == {"old": Draft("", "", bits=8)}


@pytest.mark.parametrize("text", ["{", "[]", '{"a": 3}', '{"a": {"bits": "four"}}', '{"a": {"preset": "slow"}}'])
def test_a_damaged_file_is_told_and_never_overwritten(text: str) -> None:
    recipes_path().parent.mkdir(parents=True)
    recipes_path().write_text(text)
    with pytest.raises(BadInputError, match=r"recipes\.json cannot be read"):
        save_recipe("new", DRAFT)
    assert recipes_path().read_text() == text
