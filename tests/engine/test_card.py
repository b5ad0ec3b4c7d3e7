"""The model card tells what was done, whatever the model is called."""

from __future__ import annotations

import dataclasses
from functools import cache
from pathlib import Path
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
def test_no_name_gets_into_the_front_matter(name: str, shown: str) -> None:
    text = card(model=f"/models/{name}")
    found = front_matter(text)
    assert (found["library_name"], found["tags"]) == ("transformers", ["awq", "int4", "awq-tui"])
    assert found.keys() <= {"library_name", "tags", "license", "language", "pipeline_tag"}
    assert f"\n# {shown} AWQ\n" in text


def test_hub_id_is_the_base_model() -> None:
    text = card(model="org/name@main")
    assert front_matter(text)["base_model"] == "org/name"
    assert front_matter(text)["base_model_relation"] == "quantized"
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
    assert ".mlp." not in text.partition("## Made with")[0]


def test_a_card_follows_its_weights_into_another_format() -> None:
    converted, other = converted_card(card(), Format.GPTQ_V2), card(format=Format.GPTQ_V2)
    assert "| format | GPTQ v2, asymmetric, group size 64" in converted
    assert "TGI" not in converted
    assert "| size |" not in converted
    assert "quantization_report" not in converted
    assert "since October 2025" in converted
    assert front_matter(converted) == front_matter(other)
    assert converted_card("# Somebody's model\n", Format.AWQ) == "# Somebody's model\n"


def test_the_licence_goes_along_and_nothing_else_does(tmp_path: Path) -> None:
    plan, checkpoint = demo()
    original = dataclasses.replace(checkpoint, path=tmp_path)
    assert "license" not in front_matter(model_card(plan, original))
    (tmp_path / "README.md").write_text("---\nlicense: apache-2.0\nlanguage: [en, de]\nwidget: [x]\n---\n# Theirs\n")
    found = front_matter(model_card(plan, original))
    assert (found["license"], found["language"]) == ("apache-2.0", ["en", "de"])
    assert "widget" not in found
    for damaged in (
        b"---\n{[\n---\n",
        b"\xff\xfe",
        b"---\n- 1\n---\n",
        b"---\na: !!python/object/apply:os.system [x]\n---\n",
    ):
        (tmp_path / "README.md").write_bytes(damaged)
        assert "license" not in front_matter(model_card(plan, original))


def test_the_command_makes_the_same_again_without_telling_where_files_lie() -> None:
    text = card(model="/home/me/secret/tiny", output="/home/me/out/tiny-AWQ", calibration="/home/me/notes.txt", seed=3)
    assert "awq-tui quantize tiny --bits 4 --group-size 64" in text
    assert "--calibration notes.txt --seed 3" in text
    assert "/home/me" not in text


def test_serving_names_the_sizes_that_work() -> None:
    plan, checkpoint = demo()
    linears = [{**linear, "marlin_refuses": [4, 8] if n else [8]} for n, linear in enumerate(plan.event.linears)]
    text = model_card(dataclasses.replace(plan, event=dataclasses.replace(plan.event, linears=linears)), checkpoint)
    assert "vllm serve FOLDER --tensor-parallel-size 1" in text
    assert "for every linear: 1, 2." in text
    nowhere = [{**linear, "marlin_refuses": [1, 2, 4, 8]} for linear in plan.event.linears]
    text = model_card(dataclasses.replace(plan, event=dataclasses.replace(plan.event, linears=nowhere)), checkpoint)
    assert "## Serving" not in text
