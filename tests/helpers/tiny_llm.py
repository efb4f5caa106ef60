"""A tiny Llama with a byte-level BPE: real architecture, real tokenizer, no files."""

import itertools
from functools import cache

import tokenizers
import torch
import transformers
from tokenizers import decoders, models, pre_tokenizers, trainers

from microbudget.models.smollm import Llm

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
VOCABULARY = 384
SENTENCES = (
    "The small model reads the whole prompt and writes one token after another.",
    "A heavy book lay on the table, and the old cat slept beside it all day.",
    "Weights are numbers; rounding them to fewer bits makes the model smaller.",
    "In the morning the river was quiet, and the boats were still at the bridge.",
    "for i in range(10):\n    if i > 3:\n        total = total  +  i\n\n\nprint(total)",
)
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@cache
def tokenizer(individual_digits: bool = True):
    """Splits words as SmolLM2's does; all 256 bytes are tokens of their own."""
    own = tokenizers.Tokenizer(models.BPE())
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    digits = pre_tokenizers.Digits(individual_digits=individual_digits)
    own.pre_tokenizer = pre_tokenizers.Sequence([digits, byte_level])
    own.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=[*SPECIAL], show_progress=False,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    )  # fmt: skip
    own.train_from_iterator(SENTENCES * 2, trainer)
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=own, bos_token=SPECIAL[1], eos_token=SPECIAL[2],
        pad_token=SPECIAL[2], unk_token=SPECIAL[0], chat_template=TEMPLATE,
    )  # fmt: skip


def llama(seed: int = 0, hidden: int = 256, layers: int = 2, **options):
    """Weights that float16 holds exactly; two heads share keys and values."""
    torch.manual_seed(seed)
    config = transformers.LlamaConfig(**{
        "vocab_size": VOCABULARY, "hidden_size": hidden, "num_hidden_layers": layers,
        "intermediate_size": 2 * hidden, "num_attention_heads": 4,
        "num_key_value_heads": 2, "max_position_embeddings": 512,
        "tie_word_embeddings": True, "initializer_range": 0.1,
        "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2, **options,
    })  # fmt: skip
    model = transformers.LlamaForCausalLM(config).eval().requires_grad_(False)
    for parameter in model.parameters():
        parameter.copy_(parameter.half())
    return model


def llm(seed: int = 0, **options) -> Llm:
    return Llm("tiny", llama(seed, **options), tokenizer())


def parrot(prompt: str, answer: str, own=None) -> Llm:
    """After a prompt's last token it writes an answer, and ends; always, and surely.

    Args:
        answer: in which no token stands twice.
    """
    own = own or tokenizer()
    chain = [ids_of(own, prompt)[-1], *ids_of(own, answer), own.eos_token_id]
    assert len(set(chain)) == len(chain)
    model = llama(hidden=64, layers=1, vocab_size=len(own), tie_word_embeddings=False)
    layer = model.model.layers[0]
    for linear in (layer.self_attn.o_proj, layer.mlp.down_proj, model.lm_head):
        linear.weight.zero_()
    rows = model.model.embed_tokens.weight
    rows.copy_(torch.randn_like(rows).half())
    for now, then in itertools.pairwise(chain):
        model.lm_head.weight[then] = rows[now]
    return Llm("parrot", model, own)


def ids(tokens: int = 24, batch: int = 2, seed: int = 1) -> torch.Tensor:
    """Token ids (batch, tokens) of nothing in particular, without special tokens."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(3, VOCABULARY, (batch, tokens), generator=generator)


def ids_of(tokenizer, text: str) -> list[int]:
    """Tokens without those that a tokenizer puts around a text."""
    return tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
