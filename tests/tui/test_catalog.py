"""Finding and describing models: every kind of place, and every kind of ruin, without a screen."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from huggingface_hub import HfApi
from huggingface_hub.utils import SafetensorsFileMetadata, SafetensorsRepoMetadata, TensorInfo

from awq_engine.checkpoint import read_checkpoint
from awq_engine.config import Preset
from awq_engine.errors import NetworkError
from awq_engine.report import REPORT_NAME
from awq_tui import catalog, hub_catalog
from awq_tui.catalog import Entry, Where
from awq_tui.details import look_into
from awq_tui.run_book import RunBook
from tests.engine.fake_hub import FakeHub
from tests.engine.safetensors_files import llama_shapes, model_folder, safetensors
from tests.tui.recorded_run import recorded_run


def test_the_demo_is_a_usable_model() -> None:
    entry = catalog.demo_entry()
    assert (entry.where, entry.arch, entry.problem, entry.quantized) == (Where.DEMO, "llama", "", "")
    assert entry.parameters is not None
    assert entry.parameters > 1_000_000


def test_folders_are_found_two_levels_deep_and_no_deeper(tmp_path: Path) -> None:
    for place in ("a", "org/b", "deep/er/c", ".hidden/d"):
        model_folder(tmp_path / place)
    (tmp_path / "empty").mkdir()
    assert [path.name for path in catalog.find_model_folders(tmp_path)] == ["a", "b"]


def test_a_model_folder_is_its_own_root(tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "model")
    assert catalog.find_model_folders(folder) == [folder.resolve()]


def test_other_peoples_config_json_is_no_model(tmp_path: Path) -> None:
    (tmp_path / "web").mkdir()
    (tmp_path / "web" / "config.json").write_text('{"port": 80}')
    assert catalog.find_model_folders(tmp_path) == []


def test_an_unreadable_root_is_an_empty_one(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert catalog.folder_entries([tmp_path / "absent", tmp_path / "file"]) == []


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        ("truncated", "truncated"),
        ("no weights", "model.safetensors is missing"),
        ("pickle", "only pickled weights"),
        ("bad json", "not valid JSON"),
        ("no config", "has no config.json"),
        ("absent shard", "lacks the shard"),
    ],
)
def test_a_broken_folder_says_what_is_wrong(tmp_path: Path, damage: str, words: str) -> None:
    folder = model_folder(tmp_path / "model")
    weights, config = folder / "model.safetensors", folder / "config.json"
    if damage == "truncated":
        weights.write_bytes(weights.read_bytes()[:-100])
    elif damage == "no weights":
        weights.unlink()
    elif damage == "pickle":
        weights.rename(folder / "pytorch_model.bin")
    elif damage == "bad json":
        config.write_text('{"model_type": ')
    elif damage == "no config":
        config.unlink()
    else:
        index = {"weight_map": {"model.norm.weight": "model-00001-of-00002.safetensors"}}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (entry,) = catalog.folder_entries([tmp_path])
    assert words in entry.problem
    assert entry.problem.endswith(".")


def test_a_quantized_model_is_marked_and_counted_in_weights(tmp_path: Path) -> None:
    shapes = {
        "model.layers.0.mlp.up_proj.qweight": (128, 32),
        "model.layers.0.mlp.up_proj.qzeros": (1, 32),
        "model.layers.0.mlp.up_proj.scales": (1, 256),
        "model.norm.weight": (128,),
    }
    folder = model_folder(tmp_path / "m", shapes, quantization_config={"quant_method": "awq", "bits": 4})
    (folder / REPORT_NAME).write_text("{}")
    entry = catalog.describe_folder(folder, Where.DISK)
    assert (entry.quantized, entry.has_report) == ("awq 4-bit", True)
    assert entry.parameters == 128 * 256 + 128


def test_facts_survive_a_config_full_of_nonsense(tmp_path: Path) -> None:
    folder = model_folder(
        tmp_path / "m", hidden_size="wide", num_attention_heads=None, num_hidden_layers=[2], vocab_size=True
    )
    assert catalog.facts(read_checkpoint(folder)) == []


def test_facts_name_grouped_query_attention() -> None:
    path = catalog.demo_entry().path
    assert path is not None
    assert "heads 4/2 GQA" in " ".join(catalog.facts(read_checkpoint(path)))


def test_results_of_finished_runs_are_listed_while_they_exist(tmp_path: Path) -> None:
    run = recorded_run(tmp_path)
    output = Path(run.config().output)
    assert catalog.result_entries(RunBook().refresh()) == []
    model_folder(output)
    (entry,) = catalog.result_entries(RunBook().refresh())
    assert (entry.where, entry.path) == (Where.RESULT, output)


def test_cached_repositories_are_listed_under_their_hub_id(tmp_path: Path) -> None:
    assert catalog.cache_entries() == []
    repo = tmp_path / "hf-home" / "hub" / "models--org--tiny"
    model_folder(repo / "snapshots" / ("c" * 40))
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text("c" * 40)
    (entry,) = catalog.cache_entries()
    assert (entry.name, entry.model, entry.where, entry.problem) == ("org/tiny", "org/tiny", Where.CACHE, "")


def test_merging_keeps_the_first_of_each_model(tmp_path: Path) -> None:
    local = Entry(Where.CACHE, "org/tiny", "org/tiny", tmp_path)
    hub = Entry(Where.HUB, "org/tiny", "org/tiny")
    other = Entry(Where.HUB, "org/other", "org/other")
    assert catalog.merge([local], [hub, other]) == [local, other]


def test_find_matches_every_word_anywhere() -> None:
    entry = Entry(Where.DISK, "Qwen2.5-7B", "/m", arch="qwen2", dtype="bf16")
    assert entry.matches("")
    assert entry.matches("7b DISK")
    assert not entry.matches("7b hub")


FOUND = [
    {"id": "org/original", "gated": "manual", "downloads": 2_100_000, "config": {"model_type": "llama"},
     "safetensors": {"parameters": {"BF16": 8_000_000_000}, "total": 8_000_000_000}},
    {"id": "org/tagged", "gated": False, "tags": ["gptq"], "safetensors": {"parameters": {"I32": 9}, "total": 9}},
    {"id": "org/packed", "safetensors": {"parameters": {"U8": 9}, "total": 9}},
    {"id": "org/bare"},
]  # fmt: skip


def test_the_hub_is_asked_once_for_everything_the_list_shows(hub: FakeHub) -> None:
    hub.found = [*FOUND, {"id": 7}, {"id": "org/odd", "downloads": "many"}, "nonsense"]
    original, tagged, packed, bare = hub_catalog.search_hub("llama 8b")
    assert hub.requests == ["GET /api/models"]
    assert (original.arch, original.parameters, original.nbytes) == ("llama", 8_000_000_000, 16_000_000_000)
    assert (original.gated, original.downloads, original.quantized) == (True, 2_100_000, "")
    assert (tagged.quantized, tagged.gated) == ("gptq", False)
    assert packed.quantized == "quantized"
    assert (bare.parameters, bare.nbytes, bare.arch) == (None, None, "")


def test_offline_is_a_network_error_with_a_sentence() -> None:
    with pytest.raises(NetworkError, match="HF_HUB_OFFLINE"):
        hub_catalog.search_hub("llama")


def test_a_model_on_the_hub_is_described_by_its_headers_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    tensors = {
        "model.layers.0.mlp.up_proj.weight": TensorInfo("BF16", [256, 128], (0, 65536)),
        "model.norm.weight": TensorInfo("BF16", [128], (65536, 65792)),
    }
    shard = SafetensorsFileMetadata({}, tensors)
    found = SafetensorsRepoMetadata(None, False, {}, {"model.safetensors": shard})
    asked: list[tuple[str, str | None]] = []

    def metadata(api: HfApi, repo: str, *, revision: str | None = None) -> SafetensorsRepoMetadata:
        asked.append((repo, revision))
        return found

    monkeypatch.setattr(HfApi, "get_safetensors_metadata", metadata)
    checkpoint = hub_catalog.open_checkpoint(Entry(Where.HUB, "org/m", "org/m@v1", arch="llama"))
    assert asked == [("org/m", "v1")]
    assert (checkpoint.nbytes, checkpoint.parameters, checkpoint.model_type) == (65792, 32896, "llama")
    details = look_into(Entry(Where.HUB, "org/m", "org/m"), None)
    assert [preset for preset, _ in details.forecasts] == list(Preset)
    assert details.group_size == 128


def test_a_hub_model_that_cannot_be_read_says_why() -> None:
    (problem,) = look_into(Entry(Where.HUB, "org/m", "org/m"), None).problems
    assert "HF_HUB_OFFLINE" in problem


def test_a_scan_stops_at_its_budget(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalog, "MAX_FOLDERS", 3)
    for number in range(9):
        model_folder(tmp_path / f"m{number}", {"w": (1,)})
    assert len(catalog.find_model_folders(tmp_path)) <= 3


def test_weights_alone_are_listed_as_unusable(tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "model.safetensors").write_bytes(safetensors(llama_shapes()))
    (entry,) = catalog.folder_entries([tmp_path])
    assert "config.json" in entry.problem


def test_limits_of_the_parameters_and_the_licence_narrow_the_list() -> None:
    entry = Entry(Where.HUB, "org/Big", "org/Big", parameters=7_600_000_000, licence="apache-2.0")
    assert all(entry.matches(query) for query in ("<8b", ">500m big", "<7.7B >7.5B", "apache"))
    assert not any(entry.matches(query) for query in (">8b", "<500m", "big >9b", "mit"))
    assert not Entry(Where.HUB, "x", "x").matches("<8b")
    assert catalog.without_limits("qwen <8b 2.5 >1b") == "qwen 2.5"


def test_the_licence_of_a_folder_is_in_its_card(tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "m")
    assert catalog.describe_folder(folder, Where.DISK).licence == ""
    (folder / "README.md").write_text("---\nlanguage: en\nlicense: apache-2.0\n---\nlicense: mit\n")
    assert catalog.describe_folder(folder, Where.DISK).licence == "apache-2.0"
