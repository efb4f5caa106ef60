"""A language model with fewer layers is trained on texts that the whole one generates.

Sequence-level distillation (Kim and Rush 2016, arXiv:1606.07947, section 3.2): the
teacher answers every prompt once, and the student is trained on these answers as if
people had written them. The probabilities behind them aren't needed, so the teacher may
be anything that generates text.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

from ..core.precision import autocast
from ..core.progress import bar
from ..data.batching import batches
from ..evaluation.perplexity import PerplexityResult
from ..models.smollm import Llm
from ..training.loop import History, fit
from ..training.losses import IGNORE
from ..training.text_classifier import FinetuneConfig
from .students import require_layers


@dataclass(frozen=True)
class Continuations:
    """Prompts, each with a text that goes on from it.

    Attributes:
        ids: int64 (texts, tokens), prompt and text.
        prompt_length: how many of the tokens are the prompt's.
        ends: int64 (texts,), where each text ends: what is after it is padding.
    """

    ids: torch.Tensor
    prompt_length: int
    ends: torch.Tensor

    def labels(self) -> torch.Tensor:
        """int64 (texts, tokens): the text's tokens, ``IGNORE`` elsewhere."""
        position = torch.arange(self.ids.shape[1])
        counts = (position >= self.prompt_length) & (position < self.ends[:, None])
        return torch.where(counts, self.ids, IGNORE)


def from_windows(windows: torch.Tensor, prompt_length: int) -> Continuations:
    """Windows of a text as they are: people have gone on from the prompts.

    Args:
        windows: int64 (texts, tokens).
    """
    ends = torch.full((len(windows),), windows.shape[1])
    return Continuations(windows, prompt_length, ends)


@torch.no_grad()  # not inference mode: students are trained on the texts
def generate(
    llm: Llm, prompts: torch.Tensor, new_tokens: int, batch_size: int = 16
) -> Continuations:
    """Let a model continue prompts greedily: always the likeliest token.

    Kim and Rush take the teacher's best sequence by beam search; greedy search is its
    beam of one.

    Args:
        prompts: int64 (texts, tokens), all of one length.
    """
    model, end = llm.model.eval(), llm.tokenizer.eos_token_id
    length, rows = prompts.shape[1], []
    with autocast(), bar(None, "generating", total=len(prompts)) as shown:
        for part in batches(len(prompts), batch_size):
            own = prompts[part].to(model.device)
            ids = model.generate(
                own, attention_mask=torch.ones_like(own), max_new_tokens=new_tokens,
                do_sample=False, pad_token_id=end,
            ).cpu()  # fmt: skip
            # A batch whose texts have all ended is shorter than the others.
            missing = length + new_tokens - ids.shape[1]
            rows.append(F.pad(ids, (0, missing), value=end))
            shown.update(len(own))
    ids = torch.cat(rows)  # (texts, tokens)
    ends = model.generation_config.eos_token_id  # one, several, or none
    ends = {end, *(ends if isinstance(ends, list | tuple) else [ends])} - {None}
    is_end = torch.isin(ids[:, length:], torch.tensor(sorted(ends)))
    # argmax of 0 and 1 is the first 1: the end belongs to the text.
    new = torch.where(is_end.any(1), is_end.int().argmax(1) + 1, new_tokens)
    return Continuations(ids, length, length + new)


def keep_layers(llm: Llm, layers: Sequence[int], trainable: Sequence[int]) -> Llm:
    """A copy with some of the layers. Embeddings and output layer are the teacher's
    own tensors, frozen, not copied.

    Args:
        layers: to keep, from 0, in increasing order.
        trainable: those of them (by the teacher's numbers) that are; others are frozen.

    Raises:
        TrainingError: layers that aren't there or out of order.
    """
    model, every = llm.model, llm.model.model.layers
    require_layers(layers, len(every))
    shared = [model.get_input_embeddings(), model.get_output_embeddings()]
    # What deepcopy finds in this table it doesn't copy.
    memo = {id(p): p for module in shared for p in module.parameters()}
    memo |= {id(every[i]): nn.Identity() for i in range(len(every)) if i not in layers}
    student = copy.deepcopy(model, memo)
    student.model.layers = nn.ModuleList(student.model.layers[i] for i in layers)
    for config in (student.config, student.model.config):
        config.num_hidden_layers = len(layers)
    student.base_id = f"{getattr(model, 'base_id', '')} layers {list(layers)}"
    student.requires_grad_(False).eval()
    for index, (i, layer) in enumerate(zip(layers, student.model.layers, strict=True)):
        layer.self_attn.layer_idx = index  # where its keys and values are cached
        layer.requires_grad_(i in trainable)
    return Llm(f"{llm.name}, {len(layers)} layers", student, llm.tokenizer, llm.card)


def train(student: Llm, texts: Continuations, config: FinetuneConfig) -> History:
    """Train a student's trainable layers on texts, whoever wrote them, in place."""
    return fit(
        student.model,
        (texts.ids, texts.labels()),
        lambda model, batch: F.cross_entropy(*_logits_and_targets(model, *batch)),
        config.for_fit(student.model, None),
    )


@torch.inference_mode()
def evaluate(llm: Llm, texts: Continuations, batch_size: int = 8) -> PerplexityResult:
    """How well a model predicts texts, given the true beginning of each.

    Returns:
        The losses of the texts' tokens, and ``agrees``: whether its first choice is the
        token that stands there; ``divergence`` isn't known.
    """
    llm.model.eval()
    labels, device = texts.labels(), llm.model.device
    losses, agrees = [], []
    for rows in batches(len(labels), batch_size):
        ids, own = texts.ids[rows].to(device), labels[rows].to(device)
        logits, targets = _logits_and_targets(llm.model, ids, own)
        losses.append(F.cross_entropy(logits, targets, reduction="none").cpu())
        agrees.append((logits.argmax(-1) == targets).cpu())
    return PerplexityResult(torch.cat(losses), None, torch.cat(agrees))


def _logits_and_targets(model, ids, labels) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits (n, vocabulary) before each token that counts, and these tokens (n,).

    Scores over the vocabulary are the largest tensor of a step: no others are computed.
    """
    targets = labels[:, 1:]  # token t predicts token t + 1
    counts = targets != IGNORE
    with autocast():
        states = model.model(input_ids=ids, use_cache=False).last_hidden_state
        logits = model.lm_head(states[:, :-1][counts])
    return logits.float(), targets[counts]
