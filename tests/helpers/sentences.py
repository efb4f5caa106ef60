"""A tiny BERT and its sentences: real architecture, real tokenizer, random weights."""

from functools import cache

import torch
import transformers

from microbudget import assets
from microbudget.data import text
from microbudget.models.bert import Classifier

POSITIVE = ("a warm and funny film", "great acting", "I loved every minute of it",
            "what a delight, from beginning to end")  # fmt: skip
NEGATIVE = ("a dull and empty film", "bad acting", "I hated every minute of it",
            "what a mess, from beginning to end")  # fmt: skip


def labelled(repeats: int = 2) -> text.Labelled:
    rows = [(t, 1) for t in POSITIVE] + [(t, 0) for t in NEGATIVE]
    return text.Labelled(*zip(*(rows * repeats), strict=True))


@cache
def tokenizer():
    return transformers.AutoTokenizer.from_pretrained(assets.fetch("minilm-l6"))


def sentences(repeats: int = 2) -> text.Sentences:
    return text.Sentences(tokenizer(), labelled(repeats))


def bert(seed: int = 0, layers: int = 2):
    torch.manual_seed(seed)
    config = transformers.BertConfig(
        vocab_size=30522, hidden_size=48, num_hidden_layers=layers,
        num_attention_heads=4, intermediate_size=96, hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0, attn_implementation="eager",
    )  # fmt: skip
    return transformers.BertModel(config, add_pooling_layer=False).eval()


def classifier(seed: int = 0, classes: int = 2, **options) -> Classifier:
    model = Classifier(bert(seed, **options), "tiny-bert:1").eval()
    torch.manual_seed(seed)
    model.add_head("task", classes)
    return model


def llama(seed: int = 0):
    torch.manual_seed(seed)
    config = transformers.LlamaConfig(
        vocab_size=49152, hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, intermediate_size=64, tie_word_embeddings=True,
        attn_implementation="eager", bos_token_id=1, eos_token_id=2, pad_token_id=2,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config).eval().requires_grad_(False)
