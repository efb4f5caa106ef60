"""A GGUF file's tokenizer: llama.cpp reads the tokens that transformers reads."""

import json

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


def an_expression(content) -> None:
    split = {"type": "Split", "pattern": {"Regex": "x"}, "behavior": "Isolated",
             "invert": False}  # fmt: skip
    steps = [split, splitting()]
    content["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": steps}


@pytest.mark.parametrize(
    "change",
    [
        joined_digits,
        an_expression,
        lambda c: no_digits(c, add_prefix_space=True),
        lambda c: c.update(normalizer={"type": "Lowercase"}),
        lambda c: c.update(pre_tokenizer={"type": "Whitespace"}),
    ],
    ids=["joined digits", "expression", "prefix space", "lower case", "no bytes"],
)
def test_tokenizers_that_llama_cpp_doesnt_have(tmp_path, change):
    llm = Llm("tiny", model(), changed(change))
    with pytest.raises(QuantizationError, match="splits words in a way that isn't"):
        gguf.write_gguf(llm, tmp_path / "m.gguf")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("change", [no_digits, two_digits])
def test_other_tokenizers_are_read_alike(tmp_path, change):
    pytest.importorskip("cyllama")
    tokenizer, path = changed(change), tmp_path / "m.gguf"
    gguf.write_gguf(Llm("tiny", model(len(tokenizer)), tokenizer), path)
    with llama_cpp.Model(path) as theirs:
        for text in (*TEXTS, "\n     12 the lay"):
            found = theirs._vocabulary.tokenize(text, False, True)
            assert found == ids_of(tokenizer, text), text


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
