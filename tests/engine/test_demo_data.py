"""The demo model inside the package: it loads offline in silence, is small and trained, and has a chat template."""

import math
import warnings
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from transformers import AutoModelForCausalLM, AutoTokenizer

from awq_engine import builtin_text

DEMO_MODEL = builtin_text.DATA / "demo-model"
MEGABYTE = 1_000_000


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(DEMO_MODEL, local_files_only=True)


@pytest.fixture(scope="module")
def model():
    return AutoModelForCausalLM.from_pretrained(DEMO_MODEL, local_files_only=True, dtype=torch.float32).eval()


def loss_of(model, ids: list[int]) -> float:
    """Mean nats per token over whole windows of 256 tokens."""
    windows = torch.tensor(ids[: len(ids) // 256 * 256]).view(-1, 256)
    with torch.no_grad():
        logits = model(windows).logits
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), windows[:, 1:].flatten()).item()


def test_the_whole_folder_is_small():
    """The model ships in the wheel, so it stays under 12 MB."""
    assert sum(path.stat().st_size for path in DEMO_MODEL.iterdir()) < 12 * MEGABYTE


def test_it_loads_without_warnings(capsys, caplog):
    """transformers finds nothing to complain about."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        AutoTokenizer.from_pretrained(DEMO_MODEL, local_files_only=True)
        AutoModelForCausalLM.from_pretrained(DEMO_MODEL, local_files_only=True)
    assert not [record for record in caplog.records if record.levelname in ("WARNING", "ERROR")]
    assert "warn" not in capsys.readouterr().err.lower()


def test_every_linear_input_divides_by_128(model):
    """Group size 128 must fit, and there is grouped-query attention to fold through."""
    inputs = {m.in_features for n, m in model.named_modules() if isinstance(m, torch.nn.Linear) and "lm_head" not in n}
    assert all(width % 128 == 0 for width in inputs)
    assert model.config.num_key_value_heads < model.config.num_attention_heads
    assert model.config.max_position_embeddings == 512


def test_the_chat_template_writes_turns(tokenizer):
    """Speakers are named, replies end with the end-of-sequence token, and a reply is begun on request."""
    messages = [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": " Tell me a story. "},
        {"role": "assistant", "content": "Once there was a dog."},
        {"role": "user", "content": "More?"},
    ]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert text == "<s>Be kind.\nUser: Tell me a story.\nTeller:\nOnce there was a dog.</s>\nUser: More?\nTeller:\n"
    ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    assert ids.count(tokenizer.bos_token_id) == 1
    assert ids.count(tokenizer.eos_token_id) == 1


def test_the_chat_template_refuses_other_roles(tokenizer):
    """A role the model was never trained on is an error, not silence."""
    with pytest.raises(Exception, match="not tool"):
        tokenizer.apply_chat_template([{"role": "tool", "content": "42"}], tokenize=False)


def test_it_was_really_trained(tokenizer, model):
    """On stories of ours it has never seen it is far better than chance, and order matters to it."""
    stories = "\n\n".join(builtin_text.read_texts(builtin_text.DATA / "evaluation" / "stories.txt"))
    ids = tokenizer.encode(stories, add_special_tokens=False)
    shuffled = torch.tensor(ids)[torch.randperm(len(ids), generator=torch.Generator().manual_seed(0))].tolist()
    assert loss_of(model, ids) < 0.6 * math.log(len(tokenizer))
    assert loss_of(model, ids) < loss_of(model, shuffled) - 1.0


def test_the_card_names_licence_and_recipe():
    """Whoever finds the folder learns what it is."""
    card = Path(DEMO_MODEL / "README.md").read_text(encoding="utf-8")
    assert "license: apache-2.0" in card
    assert "public domain" in card
