"""The model card tells what was done, whatever the model is called."""

from __future__ import annotations

import dataclasses
from functools import cache
from typing import Any

import pytest
import yaml

from awq_engine.card import converted_card, model_card
from awq_engine.checkpoint import Checkpoint, read_checkpoint
from awq_engine.config import Format, Method, RunConfig
from awq_engine.plan import Plan, make_plan
from awq_engine.skeleton import build_skeleton
from tests.engine.rounded_checkpoint import demo_model


@cache
def demo() -> tuple[Plan, Checkpoint]:
    checkpoint = read_checkpoint(demo_model())
    return make_plan(RunConfig(str(demo_model()), "/out", group_size=64), build_skeleton(checkpoint)), checkpoint


def card(**changes: Any) -> str:
    plan, checkpoint = demo()
    return model_card(dataclasses.replace(plan, config=dataclasses.replace(plan.config, **changes)), checkpoint)


def front_matter(text: str) -> dict[str, Any]:
    return yaml.safe_load(text.split("---\n")[1])


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("tiny: [x] #1", "tiny: [x] #1"),
        ('say "hi"', 'say "hi"'),
        ("a\n---\nlicense: mit", "a␤---␤license: mit"),
        ("b\x1b[2J", "b␛[2J"),
        ("llama-\U0001f999", "llama-\U0001f999"),
    ],
)
def test_any_name_is_one_value_of_the_front_matter(name: str, shown: str) -> None:
    text = card(model=f"/models/{name}")
    assert front_matter(text) == {
        "base_model": shown, "library_name": "transformers", "tags": ["awq", "int4", "awq-tui"]
    }  # fmt: skip
    assert f"\n# {shown} AWQ\n" in text


def test_hub_id_is_the_base_model() -> None:
    text = card(model="org/name@main")
    assert front_matter(text)["base_model"] == "org/name"
    assert "org/name quantized to 4 bits by awq-tui: AWQ (activation-aware weight quantization)." in text


def test_norms_are_said_to_carry_the_scales() -> None:
    rest = "embeddings, head and whatever else is not a linear layer; norms carry the folded scales"
    assert rest in card()
    assert "method | awq, preset balanced |" in card()


def test_plain_rounding_is_not_called_a_search() -> None:
    text = card(method=Method.RTN)
    assert "rounded to nearest" in text
    assert "activation-aware" not in text
    assert "folded scales" not in text
    assert front_matter(text)["tags"][0] == "awq"


def test_a_few_overrides_are_listed_and_many_are_counted() -> None:
    few = ("*.o_proj=skip", "*.0.*=skip")
    assert "; *.o_proj=skip; *.0.*=skip |" in card(overrides=few)

    plan, _ = demo()
    text = card(overrides=tuple(f"*.{number}.mlp.*=skip" for number in range(50)))
    assert f"; {len(plan.linears)} linears with 4 bits, group size 64 |" in text
    assert ".mlp." not in text


def test_a_card_follows_its_weights_into_another_format() -> None:
    converted, other = converted_card(card(), Format.GPTQ_V2), card(format=Format.GPTQ_V2)
    assert "| format | GPTQ v2, asymmetric, group size 64" in converted
    assert "TGI" not in converted
    assert "| size |" not in converted
    assert "quantization_report" not in converted
    assert "since October 2025" in converted
    assert front_matter(converted) == front_matter(other)
    assert converted_card("# Somebody's model\n", Format.AWQ) == "# Somebody's model\n"
