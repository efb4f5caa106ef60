"""llama.cpp in this process writes what transformers writes; how fast both are."""

import subprocess
import sys

import pytest
import test_gguf_tokens
import tiny_llm
import torch

from microbudget.core.errors import EngineError
from microbudget.evaluation.generation import Speed
from microbudget.llm import gguf
from microbudget.llm.engines import llama_cpp

pytest.importorskip("cyllama")
PROMPT = "The small model"
SPLIT = "é,€😀;."  # characters of two, three and four tokens


@pytest.fixture(scope="module")
def llm():
    return tiny_llm.llm(hidden=64)


@pytest.fixture(scope="module")
def model(llm, tmp_path_factory):
    path = gguf.write_gguf(llm, tmp_path_factory.mktemp("gguf") / "m.gguf")
    with llama_cpp.Model(path) as model:
        yield model


@pytest.fixture
def parrot(tmp_path):
    """A model that writes what it is told to; closed in the end."""
    made = []

    def of(answer: str, own=None) -> llama_cpp.Model:
        path = tmp_path / f"{len(made)}.gguf"
        gguf.write_gguf(tiny_llm.parrot(PROMPT, answer, own), path)
        made.append(llama_cpp.Model(path))
        return made[-1]

    yield of
    for model in made:
        model.close()


def greedy(llm, prompt: str, tokens: int) -> list[int]:
    """transformers' greedy answer."""
    ids = torch.tensor([tiny_llm.ids_of(llm.tokenizer, prompt)])
    mask = torch.ones_like(ids)
    with torch.inference_mode():
        found = llm.model.generate(
            ids, attention_mask=mask, max_new_tokens=tokens, do_sample=False
        )
    return found[0, ids.shape[1] :].tolist()


def whole(text: str) -> str:
    """Without the half of a character that stands at the end."""
    return text.rstrip("�")


@pytest.mark.parametrize("prompt", [PROMPT, "A heavy book", "é 123 <|im_end|>\n"])
def test_greedy_answers_are_transformers(llm, model, prompt):
    wanted = llm.tokenizer.decode(greedy(llm, prompt, 12))
    found = "".join(model.stream(prompt, 12))
    assert found.lstrip() == whole(wanted).lstrip()
    assert model.speed.prompt_tokens == len(tiny_llm.ids_of(llm.tokenizer, prompt))
    assert model.speed.new_tokens == 11  # after the one that came with the prompt


def test_scores_are_torchs(llm, model):
    ids = tiny_llm.ids(40, 3)
    found = model.scorer(ids)
    assert (found.shape, found.dtype) == ((3, 40, tiny_llm.VOCABULARY), torch.float32)
    with torch.inference_mode():
        wanted = llm.model(ids).logits
    assert (found - wanted).abs().max() < 0.03 * wanted.std()
    assert (found.argmax(-1) == wanted.argmax(-1)).double().mean() > 0.95
    assert torch.equal(model.scorer(ids[1:2]), found[1:2])  # rows know of no other


def test_characters_are_never_cut_in_half(parrot):
    pieces = list(parrot(SPLIT).stream(PROMPT, 64))
    assert "".join(pieces) == SPLIT
    assert not any("�" in piece for piece in pieces)
    assert {"é", "€", "😀"} <= set(pieces)
    tokens = len(tiny_llm.ids_of(tiny_llm.tokenizer(), SPLIT))
    assert len(pieces) == tokens - 1 - 2 - 3


def test_half_a_character_at_the_end_is_left_out(parrot):
    """All that is whole comes, and nothing is yielded twice."""
    model, ids = parrot(SPLIT), tiny_llm.ids_of(tiny_llm.tokenizer(), SPLIT)
    for n in range(1, len(ids) + 1):
        expected = whole(tiny_llm.tokenizer().decode(ids[:n]))
        assert "".join(model.stream(PROMPT, n)) == expected


@pytest.mark.parametrize("answer", ["a ,b", "12 .", " + a", "\n a"])
def test_white_space_is_part_of_the_answer(parrot, answer):
    own = test_gguf_tokens.changed(test_gguf_tokens.two_digits)
    assert "".join(parrot(answer, own).stream(PROMPT)) == answer


def test_the_end_is_not_written(parrot):
    model = parrot("a b")
    assert "".join(model.stream(PROMPT, 64)) == "a b"
    assert model.speed.new_tokens == 2  # "b" and the end: passes after the prompt's
    assert list(parrot("").stream(PROMPT)) == []  # at once


def test_an_answer_nobody_wants_is_dropped(model):
    expected = list(model.stream(PROMPT, 12))
    next(model.stream("A heavy book", 12))
    assert list(model.stream(PROMPT, 12)) == expected


def test_prompts_that_wont_do(model):
    tokens = len(tiny_llm.ids_of(tiny_llm.tokenizer(), PROMPT))
    for prompt in ("", "  \n"):
        with pytest.raises(EngineError, match="The prompt is empty"):
            next(model.stream(prompt))
    says = f"{tokens} tokens of prompt and 1022 of answer.*context of 1024"
    with pytest.raises(EngineError, match=says):
        next(model.stream(PROMPT, 1022))
    assert len(list(model.stream(PROMPT, 1024 - tokens))) <= 1024 - tokens
    with pytest.raises(EngineError, match="1025 tokens, but a context of 1024"):
        model.scorer(torch.zeros(1, 1025, dtype=torch.long))


@pytest.mark.slow
def test_a_closed_model_says_so(model):
    code = (
        "import sys; from microbudget.llm.engines import llama_cpp\n"
        "model = llama_cpp.Model(sys.argv[1]); model.close()\n"
        "try: list(model.stream('a'))\n"
        "except llama_cpp.EngineError: print('closed')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(model.file.path)], capture_output=True
    )
    assert (done.returncode, done.stdout) == (0, b"closed\n")


def test_a_file_that_llama_cpp_doesnt_know(model, tmp_path):
    content = model.file.path.read_bytes()
    path = tmp_path / "m.gguf"
    path.write_bytes(content.replace(b"blk.1.attn_q.weight", b"blk.1.attn_Q.weight"))
    with pytest.raises(EngineError, match=r"llama\.cpp can't load m\.gguf: is it a"):
        llama_cpp.Model(path)


def test_speeds_are_tokens_over_seconds():
    speed = Speed(prompt_tokens=100, prefill_s=0.5, new_tokens=30, decode_s=2.0)
    assert (speed.prefill, speed.decode) == (200, 15)
    assert str(speed) == "reads 200 tokens/s (100), writes 15.0 tokens/s (30)"
    assert Speed(3, 0.0, 0, 0.0).decode == 0  # an answer of one token


def test_a_call_to_be_timed_reads_and_writes(llm, tmp_path):
    path = gguf.write_gguf(llm, tmp_path / "m.gguf")
    call = llama_cpp.generation_call(str(path), prompt_tokens=3, new_tokens=4)
    assert call() is None is call()  # again and again, from an empty cache
