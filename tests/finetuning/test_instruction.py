"""Dialogues and the LLM that learns from them."""

import json

import peft
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from sentences import llama

from microbudget import assets
from microbudget.core import precision
from microbudget.core.errors import AssetError, DataError
from microbudget.data import dialogue
from microbudget.finetuning import instruction, methods
from microbudget.models import smollm as models
from microbudget.training.text_classifier import FinetuneConfig


@pytest.fixture(scope="module")
def tokenizer():
    folder = assets.fetch("smollm2-135m-instruct")
    return transformers.AutoTokenizer.from_pretrained(folder)


@pytest.fixture(scope="module")
def data(tokenizer):
    return dialogue.Dialogues(tokenizer, dialogue.load().train[:12])


@pytest.fixture
def tiny(tokenizer):
    return models.Llm("tiny", llama(), tokenizer)


def test_the_courses_answers_have_the_shape_they_teach():
    style = dialogue.load()
    assert len(style.train) >= 200
    assert len(style.test) >= 30
    for pair in style.train + style.test:
        assert dialogue.follows_format(pair.answer), pair
        assert pair.question.endswith("?")
    questions = [p.question.lower() for p in style.train + style.test]
    assert len(set(questions)) == len(questions)


@pytest.mark.parametrize(
    "text", ["Do: it.", "Do: a\nCost: b", "Do: a\nCost: b\nCheck: c\nMore", "", "Do"]
)
def test_other_shapes_are_told_apart(text):
    assert not dialogue.follows_format(text)


def test_only_the_answer_is_to_be_learnt(tokenizer, data):
    pair = dialogue.load().train[3]
    ids, labels = data[3]
    asked = dialogue.prompt(tokenizer, pair.question)
    assert ids[: len(asked)] == asked
    assert labels[: len(asked)] == [-100] * len(asked)
    assert tokenizer.decode(labels[len(asked) : -1]) == pair.answer
    assert labels[-1] == ids[-1] == tokenizer.eos_token_id
    assert tokenizer.decode(asked).rstrip().endswith("assistant")


def test_the_loss_is_transformers_own(tiny, data, monkeypatch):
    """Scores computed for answers only, and the same number."""
    monkeypatch.setattr(precision, "use_bf16", lambda *_: False)
    ids, mask, labels = data.collate([data[i] for i in range(5)])
    expected = tiny.model(ids, attention_mask=mask, labels=labels).loss
    found = instruction.answer_loss(tiny.model, (ids, mask, labels))
    torch.testing.assert_close(found, expected)


def test_held_out_loss_is_over_tokens_not_over_batches(tiny, data):
    one = instruction.held_out_loss(tiny, data, batch_size=1)
    many = instruction.held_out_loss(tiny, data, batch_size=5)
    assert one == pytest.approx(many, rel=2e-2)  # bfloat16, where that is faster


def test_it_learns(tiny, data):
    config = peft.LoraConfig(r=4, lora_alpha=11, target_modules="all-linear")
    methods.apply_(tiny.model, config)
    before = instruction.held_out_loss(tiny, data)
    history = instruction.train_llm(
        tiny, data, FinetuneConfig(lr=3e-2, epochs=4, batch_size=4)
    )
    assert len(history.losses) == 12
    assert instruction.held_out_loss(tiny, data) < before


def test_answers_dont_depend_on_the_batch(tiny, monkeypatch):
    monkeypatch.setattr(precision, "use_bf16", lambda *_: False)
    questions = [p.question for p in dialogue.load().test[:3]]
    together = instruction.answer(tiny, questions, max_tokens=5)
    alone = [instruction.answer(tiny, [q], max_tokens=5) for q in questions]
    assert [[answer] for answer in together] == alone
    with pytest.raises(DataError, match="empty question"):
        instruction.answer(tiny, ["  "])


def test_a_question_that_leaves_no_room_is_refused(tokenizer):
    pair = dialogue.Pair("why " * 400 + "?", "Because.")
    with pytest.raises(DataError, match="no room"):
        dialogue.Dialogues(tokenizer, (pair,))


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("not json", "JSONDecodeError"),
        ('{"question": "a?"}', "KeyError"),
        ('{"question": " ", "answer": "b"}', "an empty text"),
    ],
)
def test_bad_lines_are_named(tmp_path, monkeypatch, line, says):
    path = tmp_path / "dialogue" / "train.jsonl"
    path.parent.mkdir()
    path.write_text('{"question": "a?", "answer": "b"}\n' + line + "\n")
    monkeypatch.setenv("MICROBUDGET_DATA", str(tmp_path))
    with pytest.raises(DataError, match=f"line 2.*{says}"):
        dialogue.load()


def test_pairs_of_ones_own(tmp_path, monkeypatch):
    folder = tmp_path / "dialogue"
    folder.mkdir()
    for name in ("train", "test"):
        row = {"question": f"{name}?", "answer": "yes"}
        (folder / f"{name}.jsonl").write_text(json.dumps(row) + "\n")
    monkeypatch.setenv("MICROBUDGET_DATA", str(tmp_path))
    style = dialogue.load()
    assert style.train == (dialogue.Pair("train?", "yes"),)
    assert not style.is_course_data


def test_an_llms_folder(tmp_path, tokenizer):
    with pytest.raises(AssetError, match=r"config\.json"):
        models.load(folder=tmp_path)
    llama().save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    assert models.load(folder=tmp_path).model.config.model_type == "llama"
    path = tmp_path / "model.safetensors"
    state = load_file(path)
    state["model.norm.weight"][0] = float("nan")
    whole = path.read_bytes()
    save_file(state, path, metadata={"format": "pt"})
    with pytest.raises(AssetError, match=r"norm\.weight holds numbers that are not"):
        models.load(folder=tmp_path)
    path.write_bytes(whole[:-100])
    with pytest.raises(AssetError, match="Delete the folder"):
        models.load(folder=tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(AssetError, match="not a Llama"):
        models.load(folder=tmp_path)
