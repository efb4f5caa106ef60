"""Text to calibrate and to evaluate on: Python's own, WikiText-2, LAMBADA."""

import json
import re

import pytest
import torch

from microbudget.assets.convert import text as texts
from microbudget.core.errors import AssetError, DataError
from microbudget.data import prose

HEADING = " = Robert Boulter = "


@pytest.fixture
def data(home, tmp_path, monkeypatch):
    """MICROBUDGET_DATA with both texts."""
    folder = tmp_path / "data"
    for name, text in {
        "wikitext2/valid.txt": f"{HEADING}\n \n Robert acts . \n = = Life = = \n",
        "wikitext2/test.txt": " \n The = sign stays . \n Another line . \n",
        "lambada/x.jsonl": '{"text": "I gave it to the old man"}\n'
        '{"text": " he said hello "}\n',
    }.items():
        path = folder / "text" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    monkeypatch.setenv("MICROBUDGET_DATA", str(folder))
    return folder / "text"


def paragraphs(text: str) -> list[str]:
    return [" ".join(p.split()) for p in re.split(r"\n\s*\n", text) if p.strip()]


def test_pythons_documentation(home):
    found = prose.load()
    assert found.is_course_data
    assert (found.name, prose.load()) == ("Python's documentation", found)  # always
    assert "PSF-2.0" in found.card
    for text in (found.calibration, found.held_out):
        assert len(text) > 100_000
        assert text == text.strip() != ""
    both = set(paragraphs(found.calibration)) & set(paragraphs(found.held_out))
    assert not both


def test_passages_of_pythons_documentation(home):
    name, found = prose.last_words(10**6)
    assert name == "Python's documentation"
    assert len(found) == len(set(found)) > 100
    held_out = paragraphs(prose.load().held_out)
    calibration = " ".join(prose.load().calibration.split())
    for passage in found:
        assert re.fullmatch("[a-z]{4,}", passage.word)
        assert len(passage.context.split()) >= 20
        assert passage.context == passage.context.strip()
        assert passage.context not in calibration
        text = f"{passage.context} {passage.word}."
        assert any(p.startswith(text) for p in held_out), text


class Numbered:
    """The n-th word is token n."""

    def __call__(self, text, **_):
        return {"input_ids": list(range(len(text.split())))}


def test_windows_dont_overlap():
    found = prose.windows(Numbered(), "a " * 400, 6, 50)
    assert torch.equal(found.flatten(), torch.arange(300))
    with pytest.raises(DataError, match=r"7,000 tokens wanted.*has 400"):
        prose.windows(Numbered(), "a " * 400, 7, 1000)


@pytest.mark.parametrize("words", [10_000, 256])
def test_calibration_is_spread_evenly_and_may_use_a_text_up(words):
    found = prose.calibration_ids(Numbered(), "a " * words, 8, 32)
    assert (found.shape, found.dtype) == ((8, 32), torch.int64)
    starts = found[:, 0]
    assert (found == starts[:, None] + torch.arange(32)).all()
    assert (starts[0], found[-1, -1]) == (0, words - 1)  # from the first to the last
    steps = starts.diff()
    assert steps.max() - steps.min() <= 1
    with pytest.raises(DataError, match=rf"79,992 .* has {words:,}: use fewer"):
        prose.calibration_ids(Numbered(), "a " * words, 8, 9999)


def words(n: int) -> str:
    return " ".join(f"word{'abcdefghij'[i % 10]}" for i in range(n))


def test_sentences_by_hand():
    early = f"It ends. {words(30)} here. Then {words(9)} there. More."
    text = f"{early}\n\n{words(20)} short.\n \n{words(31)}\nbroken\nline."
    first, second = prose.sentences_of(text)
    assert (first.context, first.word) == (f"It ends. {words(30)}", "here")
    assert (second.context, second.word) == (f"{words(31)} broken", "line")


@pytest.mark.parametrize(
    "end", ["abc.", "Word.", "word", "word,", "word.x", "word. lower", "wor4.", "e.g."]
)
def test_no_sentence_ends_there(end):
    assert prose.sentences_of(f"{words(40)} {end}") == []


def test_a_folder_of_ones_own(data):
    found = prose.load()
    assert (found.name, found.is_course_data) == ("WikiText-2", False)
    assert found.calibration == " Robert acts . "
    assert found.held_out == " The = sign stays . \n Another line . "
    assert "Wikipedia" in found.card
    name, passages = prose.last_words(10**6)
    assert name == "LAMBADA"
    assert passages == (("I gave it to the old", "man"), ("he said", "hello"))
    assert prose.last_words(1)[1] == passages[:1]


@pytest.mark.parametrize(
    ("content", "says"),
    [(None, r"lambada holds 0 \.jsonl files"), (b"", "line 1: expected"),
     (b'{"text": "caf\xe9 man"}\n', "can't be read"),
     (b'{"text": "a b"}\n\n{"text": "c', "line 3: expected .*JSONDecodeError"),
     (b'{"context": "a b"}', "line 1: expected .*KeyError"),
     (b'{"text": 3}', "expected .*AttributeError"), (b"[1]", "expected .*TypeError"),
     (b'{"text": "word"}', "line 1: a passage needs two words"),
     (b'{"text": " "}', "line 1: expected .*an empty text")],
)  # fmt: skip
def test_passages_that_wont_do(data, content, says):
    path = data / "lambada" / "x.jsonl"
    path.unlink() if content is None else path.write_bytes(content)
    with pytest.raises(DataError, match=says):
        prose.last_words(8)


def test_a_line_separator_within_a_passage(data):
    line = json.dumps({"text": "one\u2028two three"}, ensure_ascii=False)
    (data / "lambada" / "x.jsonl").write_text(line + "\n", encoding="utf-8")
    assert prose.last_words(10**6)[1][0].word == "three"


@pytest.mark.parametrize(
    ("content", "says"),
    [(None, "can't be read"), (b"", "is empty"), (b"\xff\xfe\xfa", "can't be read"),
     (f"\n \n{HEADING}\n".encode(), r"valid\.txt is empty")],
    ids=["missing", "empty", "not UTF-8", "headings only"],
)  # fmt: skip
def test_texts_that_wont_do(data, content, says):
    path = data / "wikitext2" / "valid.txt"
    path.unlink() if content is None else path.write_bytes(content)
    with pytest.raises(DataError, match=says):
        prose.load()


def test_the_full_profile_wants_the_real_texts(home, monkeypatch):
    monkeypatch.setenv("MICROBUDGET_PROFILE", "full")
    monkeypatch.setenv("MICROBUDGET_OFFLINE", "1")
    for ask in (prose.load, lambda: prose.last_words(8)):
        with pytest.raises(AssetError, match="MICROBUDGET_OFFLINE"):
            ask()


def test_wikitexts_parquet_files_become_texts(tmp_path):
    import datasets

    lines = ["", f"{HEADING}\n", *[f" Line {i} – é , \t 😀 . \n" for i in range(3000)]]
    raw, ready = tmp_path / "wikitext-2-raw-v1", tmp_path / "ready"
    for folder in (raw, ready):
        folder.mkdir()
    for name in ("validation", "test"):
        path = str(raw / f"{name}-00000-of-00001.parquet")
        datasets.Dataset.from_dict({"text": lines}).to_parquet(path)
    texts.wikitext(tmp_path, ready)
    assert sorted(p.name for p in ready.iterdir()) == ["test.txt", "valid.txt"]
    expected = "".join(line.rstrip("\n") + "\n" for line in lines)
    assert (ready / "valid.txt").read_text("utf-8") == expected
    kept = prose.read(ready / "test.txt").split("\n")
    assert kept == [line.rstrip("\n") for line in lines[2:]]
