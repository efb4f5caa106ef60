"""The sentence classifier: means over real tokens, whole weights, clear errors."""

import json
import shutil

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from sentences import classifier, sentences, tokenizer

from microbudget import assets
from microbudget.core.errors import AssetError
from microbudget.evaluation.sizes import count_parameters
from microbudget.finetuning import bottleneck, methods, saving
from microbudget.models import bert


@pytest.fixture(scope="module")
def minilm():
    return bert.load()


def test_padding_changes_nothing():
    model, data = classifier(), sentences()
    rows = [data[i] for i in range(8)]
    ids, mask, _ = data.collate(rows)
    with torch.inference_mode():
        together = model(ids, mask)
        alone = torch.cat([model(*data.collate([row])[:2]) for row in rows])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)


def test_it_is_sentence_transformers_mean(minilm):
    """Mean pooling over real tokens, from transformers' own model."""
    reference = transformers.BertModel.from_pretrained(minilm.folder).eval()
    texts = ["A man is eating food.", "He eats."]
    batch = minilm.tokenizer(texts, padding=True, return_tensors="pt")
    with torch.inference_mode():
        states = reference(**batch).last_hidden_state
        lengths = batch["attention_mask"].sum(1).tolist()
        expected = torch.stack(
            [s[:n].mean(0) for s, n in zip(states, lengths, strict=True)]
        )
        model = minilm.classifier(2).eval()
        found = model.embed(batch["input_ids"], batch["attention_mask"])
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_minilm_knows_what_sentences_mean(minilm):
    """The weights are the real ones: like meanings are near, unlike ones far."""
    model = minilm.classifier(2).eval()
    texts = ["The cat sits on the mat.", "A kitten is sitting on a rug.", "Taxes rose."]
    batch = minilm.tokenizer(texts, padding=True, return_tensors="pt")
    with torch.inference_mode():
        found = model.embed(batch["input_ids"], batch["attention_mask"])
    near, far = torch.nn.functional.cosine_similarity(found[:1], found[1:]).tolist()
    assert near > 0.5 > 0.2 > far


def test_the_seed_decides_the_head_and_nothing_else(minilm):
    a, b, c = (minilm.classifier(3, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(a.heads["task"].weight, b.heads["task"].weight)
    assert not torch.equal(a.heads["task"].weight, c.heads["task"].weight)
    first = next(a.encoder.parameters())
    assert torch.equal(first, next(c.encoder.parameters()))
    assert first.data_ptr() != next(b.encoder.parameters()).data_ptr()


def test_four_bits_are_four_bits(minilm):
    model = minilm.classifier(2, four_bit=True)
    whole = minilm.classifier(2)
    assert count_parameters(model).total == count_parameters(whole).total
    packed = [p for p in model.parameters() if hasattr(p, "quant_state")]
    weights = sum(p.quant_state.shape.numel() for p in packed)
    assert weights == 6 * (4 * 384 * 384 + 2 * 384 * 1536)
    assert sum(p.nbytes for p in packed) == weights / 2
    texts = minilm.tokenizer(["a fine film"], return_tensors="pt")
    with torch.inference_mode():
        inputs = (texts["input_ids"], texts["attention_mask"])
        a, b = model.embed(*inputs), whole.embed(*inputs)
    assert 0.9 < torch.nn.functional.cosine_similarity(a, b).item() < 0.9999


@pytest.fixture
def folder(tmp_path):
    """A tiny encoder on disk."""
    classifier().encoder.save_pretrained(tmp_path / "e")
    tokenizer().save_pretrained(tmp_path / "e")
    return tmp_path / "e"


def test_a_folder_of_ones_own(folder):
    own = bert.load(folder)
    assert own.name == "e"
    copy = bert.load(shutil.copytree(folder, folder.with_name("copy")))
    assert copy.base_id == own.base_id  # the weights decide, not the name
    model = copy.classifier(2)
    methods.apply_(model, methods.BitFitConfig())
    path = saving.save(model, folder / "biases")
    saving.load_(own.classifier(2), path)


def test_a_roberta_reads_padded_sentences_alike():
    """Its positions count from the padding token's id."""
    torch.manual_seed(0)
    config = transformers.RobertaConfig(
        vocab_size=100, hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
        intermediate_size=64, pad_token_id=1, attn_implementation="eager",
    )  # fmt: skip
    model = bert.Classifier(transformers.RobertaModel(config, False)).eval()
    model.add_head("task", 2)
    methods.apply_(model, methods.BottleneckConfig(4))
    short, long = [0, 5, 6, 2], [0, 7, 8, 9, 10, 2]
    ids = torch.tensor([[*short, 1, 1], long])
    with torch.inference_mode():
        together = model(ids, (ids != 1).long())
        alone = model(torch.tensor([short]), torch.ones(1, 4, dtype=torch.long))
    torch.testing.assert_close(together[:1], alone, rtol=1e-4, atol=1e-5)
    sites = [n for n, m in model.named_modules() if isinstance(m, bottleneck.Adapted)]
    assert len(sites) == 4


@pytest.mark.parametrize("file", ["config.json", "model.safetensors", "tokenizer.json"])
def test_a_missing_file_is_named(folder, file):
    (folder / file).unlink()
    with pytest.raises(AssetError, match=file):
        bert.load(folder)


def test_another_kind_of_model_is_refused(folder):
    (folder / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    with pytest.raises(AssetError, match="holds a gpt2"):
        bert.load(folder)


def test_nan_weights_are_refused(folder):
    state = load_file(folder / "model.safetensors")
    state["embeddings.LayerNorm.weight"][3] = float("nan")
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(
        AssetError, match=r"LayerNorm\.weight holds numbers that are not"
    ):
        bert.load(folder).classifier(2)


def test_a_truncated_file_is_refused(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(AssetError, match="Delete the folder"):
        bert.load(folder).classifier(2)


def test_the_card_says_where_it_comes_from(minilm):
    assert minilm.card == assets.get("minilm-l6").card()
    assert "MiniLM" in minilm.card
