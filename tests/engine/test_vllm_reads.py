"""What we write into config.json, read by vLLM's rules: its modules are quantized as we did, or left in floats."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
import vllm_reader as vllm
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import nn
from zoo import quiet, write_model

from awq_engine.checkpoint import read_checkpoint
from awq_engine.config import Format, RunConfig
from awq_engine.formats.codec import Kept
from awq_engine.formats.patterns import name_patterns
from awq_engine.formats.registry import CODECS
from awq_engine.overrides import parse_override
from awq_engine.plan import Plan, make_plan
from awq_engine.publishing import quantization_config
from awq_engine.skeleton import Skeleton, build_skeleton
from awq_engine.spec import QuantSpec

pytestmark = pytest.mark.filterwarnings("ignore")
PREFIXES = {
    "gemma3": (
        ("model.language_model.", "language_model.model."),
        ("model.", ""),
        ("lm_head", "language_model.lm_head"),
    ),
    "qwen3_vl": (("model.visual.", "visual."), ("model.language_model.", "language_model.model.")),
}
"""`hf_to_vllm_mapper` of vLLM's models/gemma3_mm.py and qwen3_vl.py."""
MODELS = ("llama", "qwen3_moe", "mixtral", "deepseek_v3", "qwen3_next", "gemma3", "qwen3_vl")
SKIPS = (
    (),
    ("*.self_attn.*=skip", "*linear_attn*=skip"),
    ("*.layers.1.*=skip",),
    ("*.down_proj=skip", "*.experts.*=skip"),
)
MIXES = (
    ("*.layers.1.*=bits:8",),
    ("*attn*=bits:8,group:-1", "*.layers.0.*=skip"),
    ("*.experts.*=bits:8,group:16", "*.layers.0.*_proj*=bits:2"),
)


def renamer(model_type: str) -> Callable[[str], str]:
    """How vLLM renames what the checkpoint calls its modules: the first prefix that fits."""

    def rename(name: str) -> str:
        found = next(((old, new) for old, new in PREFIXES.get(model_type, ()) if name.startswith(old)), ("", ""))
        return found[1] + name.removeprefix(found[0])

    return rename


@pytest.fixture(scope="module", params=MODELS)
def skeleton(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Skeleton:
    quiet()
    return build_skeleton(read_checkpoint(write_model(request.param, tmp_path_factory.mktemp(request.param))))


def planned(skeleton: Skeleton, layout: Format, overrides: tuple[str, ...], *, lm_head: bool = False) -> Plan:
    """The plan with those overrides that fit any of the model's linears."""
    path = str(skeleton.checkpoint.path)
    plain = make_plan(RunConfig(path, "/out", group_size=32, format=layout, lm_head=lm_head), skeleton)
    keys = [linear.key for linear in plain.linears]
    fitting = [text for text in overrides if any(parse_override(text).fits(key) for key in keys)]
    asked = RunConfig(path, "/out", group_size=32, format=layout, overrides=tuple(fitting), lm_head=lm_head)
    return make_plan(asked, skeleton)


def all_linears(skeleton: Skeleton) -> list[str]:
    """Names in the checkpoint of every linear of the model, towers, projectors and head too."""
    paths = [path for path, module in skeleton.model.named_modules() if isinstance(module, nn.Linear)]
    return [skeleton.written_name(f"{path}.weight").removesuffix(".weight") for path in paths]


@pytest.mark.parametrize(
    ("layout", "overrides"),
    [*((Format.AWQ, skip) for skip in SKIPS)]
    + [(layout, mix) for layout in (Format.GPTQ_V2, Format.COMPRESSED_TENSORS) for mix in (*SKIPS, *MIXES)],
    ids=str,
)
def test_vllm_finds_what_was_done(skeleton: Skeleton, layout: Format, overrides: tuple[str, ...]):
    check_reading(skeleton, layout, planned(skeleton, layout, overrides))


@pytest.mark.parametrize(
    ("layout", "overrides"),
    [
        (Format.AWQ, ()),
        (Format.AWQ, ("*.layers.1.*=skip",)),
        (Format.GPTQ_V2, ()),
        (Format.GPTQ_V2, ("*lm_head=bits:8",)),
        (Format.COMPRESSED_TENSORS, ()),
        (Format.COMPRESSED_TENSORS, ("*lm_head=bits:8",)),
        (Format.COMPRESSED_TENSORS, ("*.layers.*=bits:8",)),
    ],
    ids=str,
)
def test_vllm_finds_a_quantized_head(skeleton: Skeleton, layout: Format, overrides: tuple[str, ...]):
    if skeleton.stored_head() is None:
        pytest.skip("its head is the embedding table")
    plan = planned(skeleton, layout, overrides, lm_head=True)
    assert plan.head is not None
    check_reading(skeleton, layout, plan)


def check_reading(skeleton: Skeleton, layout: Format, plan: Plan) -> None:
    """vLLM's rules give every linear what the plan says."""
    config = quantization_config(plan, skeleton)
    specs = {linear.key: (linear.spec.bits, linear.spec.group_size) for linear in plan.linears}
    rename = renamer(skeleton.checkpoint.model_type)
    readers: dict[Format, Callable[[vllm.Module], vllm.Found]] = {
        Format.AWQ: lambda module: vllm.awq(config, module, rename),
        Format.GPTQ_V2: lambda module: vllm.gptq(config, module, rename, specs),
        Format.COMPRESSED_TENSORS: lambda module: vllm.compressed_tensors(config, module, rename),
    }
    for module in vllm.modules_of(all_linears(skeleton), rename):
        done = {specs.get(key) for key in module.holds}
        assert len(done) == 1, "these overrides treat what vLLM joins alike"
        assert readers[layout](module) == done.pop(), module
    assert len(str(config)) < 4000, "expressions, and no list of every linear"


def test_rules_for_parts_of_a_joined_linear_name_it_too():
    """A rule for q, k and v alone would not fit vLLM's qkv_proj, which would get the settings of the others."""
    names = [
        f"model.layers.{n}.self_attn.{role}" for n in range(3) for role in ("q_proj", "k_proj", "v_proj", "o_proj")
    ]
    specs = {name: QuantSpec(8 if ".1." in name else 4, 64, symmetric=True) for name in names}
    rules = CODECS[Format.GPTQ].settings(specs, Kept())["dynamic"]

    assert [rule for rule in rules if re.match(rule[2:], "language_model.model.layers.1.self_attn.qkv_proj")]
    assert not [rule for rule in rules if re.match(rule[2:], "model.layers.0.self_attn.qkv_proj")]
    assert len(rules) == 2


NAMES = st.one_of(
    st.sampled_from(["lm_head", "model.projector.linear_1", "model.other.linear_1", "linear_1"]),
    st.builds(
    "{}.{}.{}".format,
    st.sampled_from(["model.layers", "h"]),
    st.integers(0, 11),
    st.sampled_from([
        "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj", "mlp.gate", "mlp.gate_proj",
        "mlp.experts.0.w1", "mlp.experts.0.w2", "mlp.experts.1.w1", "mlp.experts.11.w2", "mlp.0.linear", "a+b.c",
        "projector.linear_1",
    ]),
    ),
)  # fmt: skip


@given(st.sets(NAMES, min_size=1), st.data())
def test_expressions_fit_exactly_what_they_are_for(every: set[str], data: st.DataObject):
    stack = "h." if any(name.startswith("h.") for name in every) else "model.layers"
    linears = sorted(name for name in every if name.startswith(stack) or not re.search(r"\d+\.", name))
    assume(linears)  # one list of blocks, as in a model
    wanted = data.draw(st.sets(st.sampled_from(linears)))
    for containers in (False, True):
        patterns = name_patterns(wanted, linears, containers=containers)
        assert {name for name in linears if any(re.match(p, name) for p in patterns)} == wanted
