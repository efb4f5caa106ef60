"""A GGUF file's tokenizer: llama.cpp reads the tokens that transformers reads."""

import json
from types import SimpleNamespace

import pytest
import sentences
import tiny_llm
import tokenizers
import transformers
from hypothesis import given
from hypothesis import strategies as st
from tiny_llm import ids_of

from microbudget import assets
from microbudget.core.errors import QuantizationError
from microbudget.data import prose
from microbudget.llm import gguf
from microbudget.llm.engines import llama_cpp
from microbudget.models import smollm as llms
from microbudget.models.smollm import Llm

TEXTS = (
    "The small model reads the whole prompt.", "Weights: 12345, 3.14 and 1e-9!",
    " a  b   c\n\n\td ", "naïve café – 日本語 😀👍🏽", "don't we'll I'M", "a1b22c333",
    "٣ ½ Ⅷ ² １２", "<|im_start|>user\nhi<|im_end|>\n", "x  12", "\n   7\n", "",
    "\x00\x7f", "1 2", "re\u0301sume\u0301", "<|im_start", "<|endoftext|><|endoftext|>",
)  # fmt: skip


def model(vocabulary: int = tiny_llm.VOCABULARY):
    return tiny_llm.llama(hidden=64, layers=1, vocab_size=vocabulary)


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    """llama.cpp's tokenizer."""
    pytest.importorskip("cyllama")
    path = tmp_path_factory.mktemp("gguf") / "m.gguf"
    gguf.write_gguf(Llm("tiny", model(), tiny_llm.tokenizer()), path)
    with llama_cpp.Model(path) as theirs:
        yield theirs._vocabulary


@pytest.mark.parametrize("text", TEXTS)
def test_llama_cpp_reads_the_same_tokens(words, text):
    assert words.tokenize(text, False, True) == ids_of(tiny_llm.tokenizer(), text)


@given(st.text(max_size=30) | st.text(" \n\t1a.é’", max_size=12))
def test_any_text_is_read_alike(words, text):
    assert words.tokenize(text, False, True) == ids_of(tiny_llm.tokenizer(), text)


def changed(change):
    """The tiny tokenizer with another recipe."""
    content = json.loads(tiny_llm.tokenizer().backend_tokenizer.to_str())
    change(content)
    own = tokenizers.Tokenizer.from_str(json.dumps(content))
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=own, eos_token=tiny_llm.SPECIAL[2]
    )


def splitting(**options) -> dict:
    return {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True,
            "use_regex": True, **options}  # fmt: skip


def no_digits(content, **options) -> None:
    content["pre_tokenizer"] = splitting(**options)


def two_digits(content) -> None:
    no_digits(content)
    content["model"]["vocab"]["12"] = tiny_llm.VOCABULARY
    content["model"]["merges"].append(["1", "2"])


def joined_digits(content) -> None:
    two_digits(content)
    digits = {"type": "Digits", "individual_digits": False}
    content["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [
        digits, splitting()
    ]}  # fmt: skip


@pytest.mark.parametrize(
    "change",
    [
        no_digits,
        joined_digits,
        lambda c: no_digits(c, add_prefix_space=True),
        lambda c: c.update(normalizer={"type": "Lowercase"}),
        two_digits,
    ],
    ids=["no digits", "joined digits", "prefix space", "lower case", "two digits"],
)
def test_other_tokenizers_are_read_alike_or_refused(tmp_path, change):
    pytest.importorskip("cyllama")
    tokenizer, path = changed(change), tmp_path / "m.gguf"
    try:
        gguf.write_gguf(Llm("tiny", model(len(tokenizer)), tokenizer), path)
    except QuantizationError:
        assert not list(tmp_path.iterdir())
        return
    with llama_cpp.Model(path) as theirs:
        for text in (*TEXTS, "\n     12 the lay"):
            found = theirs._vocabulary.tokenize(text, False, True)
            assert found == ids_of(tokenizer, text), text


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda c: c["model"].update(type="WordPiece"), "A WordPiece tokenizer can't"),
        (lambda c: c.update(pre_tokenizer={"type": "Whitespace"}), "only byte-level"),
        (
            lambda c: c.update(pre_tokenizer={"type": "Sequence", "pretokenizers": [
                {"type": "Split", "pattern": {"Regex": "x"}, "behavior": "Isolated",
                 "invert": False}, splitting()]}),
            "splits words in a way that isn't known",
        ),
        (lambda c: c["model"]["vocab"].update(gap=1000), "ids have gaps"),
    ],
    ids=["word pieces", "no bytes", "expression", "gaps"],
)  # fmt: skip
def test_tokenizers_that_llama_cpp_doesnt_have(tmp_path, change, says):
    content = json.loads(tiny_llm.tokenizer().backend_tokenizer.to_str())
    change(content)
    backend = SimpleNamespace(to_str=lambda: json.dumps(content))
    llm = Llm("tiny", model(), SimpleNamespace(backend_tokenizer=backend))
    with pytest.raises(QuantizationError, match=says):
        gguf.write_gguf(llm, tmp_path / "m.gguf")
    assert not list(tmp_path.iterdir())


def test_the_courses_tokenizer_on_the_courses_text(tmp_path):
    """What is evaluated through llama.cpp and through torch must be the same tokens."""
    pytest.importorskip("cyllama")
    if (folder := assets.locate(llms.DEFAULT)) is None:
        pytest.skip("the small LLM isn't here")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    llm = Llm("tiny", sentences.llama(), tokenizer)
    path = gguf.write_gguf(llm, tmp_path / "m.gguf")
    with llama_cpp.Model(path) as theirs:
        for text in (*TEXTS, prose.load().calibration):
            assert theirs._vocabulary.tokenize(text, False, True) == ids_of(
                tokenizer, text
            )
