"""Guessing the last word of a passage: whole words, in batches as one at a time."""

import pytest
import tiny_llm
import torch
from torch.nn import functional as F

from microbudget.core.errors import DataError
from microbudget.data.prose import Passage
from microbudget.evaluation.perplexity import last_words


@pytest.fixture(scope="module")
def score():
    """The tiny Llama's scorer."""
    model = tiny_llm.llama(hidden=64)
    return torch.inference_mode()(lambda ids: model(ids).logits)


def passages(n: int = 12) -> list[Passage]:
    """Of one to four tokens a word, and of all lengths."""
    words = " ".join(tiny_llm.SENTENCES[:4]).split()
    return [Passage(" ".join(words[i : 2 * i + 3]), words[2 * i + 3]) for i in range(n)]


def sure(ids):
    """Of every token that comes."""
    return F.one_hot(ids.roll(-1, 1), tiny_llm.VOCABULARY).float()


def half_knowing(score):
    """The tiny Llama, told the next token at two of three places."""

    def scorer(ids):
        logits = score(ids).clone()
        told = (ids.cumsum(1) % 3 > 0)[..., None]  # what follows plays no part
        return logits + 50 * told * F.one_hot(ids.roll(-1, 1), logits.shape[-1])

    return scorer


def rows_of(passage) -> tuple[list[int], int]:
    own = tiny_llm.tokenizer()
    before = len(tiny_llm.ids_of(own, passage.context))
    return tiny_llm.ids_of(own, f"{passage.context} {passage.word}"), before


def one_at_a_time(scorer, passages, choices: int) -> list[float]:
    """Every token of the word among so many likeliest ones."""
    found = []
    for passage in passages:
        ids, before = rows_of(passage)
        logits = scorer(torch.tensor([ids]))[0]
        best = [logits[i - 1].topk(choices).indices for i in range(before, len(ids))]
        hits = (w in b for w, b in zip(ids[before:], best, strict=True))
        found.append(float(all(hits)))
    return found


@pytest.mark.parametrize("batch_size", [1, 3, 8, 100])
def test_last_words_one_at_a_time(score, batch_size):
    """Neither batches nor filling up change an answer, nor does it change places."""
    scorer, own = half_knowing(score), tiny_llm.tokenizer()
    first, five = last_words(scorer, own, passages(), batch_size)
    assert first.tolist() == one_at_a_time(scorer, passages(), 1)
    assert five.tolist() == one_at_a_time(scorer, passages(), 5)
    assert (five >= first).all()
    assert 0 < first.mean() < 1


def test_the_whole_word_counts():
    """The right first piece and a wrong second one is no word."""
    own, of_two = tiny_llm.tokenizer(), [p for p in passages() if len_of(p) == 2]
    assert of_two

    def with_wrong(passage, place):
        at = torch.tensor([rows_of(passage)[1] - 1 + place])

        def scorer(ids):
            return sure(ids).index_fill(1, at, 0)

        return last_words(scorer, own, [passage])[0][0]

    assert last_words(sure, own, passages())[0].mean() == 1
    for passage in of_two:
        assert with_wrong(passage, 0) == with_wrong(passage, 1) == 0
        assert with_wrong(passage, -1) == 1  # the context isn't judged


def len_of(passage) -> int:
    ids, before = rows_of(passage)
    return len(ids) - before


def test_passages_that_wont_do():
    own = tiny_llm.tokenizer()
    with pytest.raises(DataError, match="can't be told from its context: ' word'"):
        last_words(sure, own, [*passages(), Passage("", "word")])

    def melting(text, **_):  # "the" and "the end" share no token
        return {"input_ids": [len(text)]}

    with pytest.raises(DataError, match="from its context: 'the end'"):
        last_words(sure, melting, [Passage("the", "end")])
