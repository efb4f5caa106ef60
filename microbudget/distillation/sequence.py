"""A language model with fewer layers learns to write what the whole one writes.

Sequence-level distillation (Kim and Rush 2016, arXiv:1606.07947, section 3.2): the
teacher answers every prompt once, and the student is trained on these answers as if
people had written them. The probabilities behind them aren't needed, so the teacher may
be anything that writes.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

from ..core.errors import TrainingError
from ..core.precision import autocast, of_training
from ..core.progress import bar
from ..data.batching import batches
from ..evaluation.perplexity import PerplexityResult
from ..models.smollm import Llm
from ..training import text_classifier
from ..training.loop import History, TrainConfig, fit
from ..training.losses import IGNORE


@dataclass(frozen=True)
class Written:
    """Prompts, each with a text that goes on from it.

    Attributes:
        ids: int64 (texts, tokens), prompt and text.
        prompt: how many of the tokens are the prompt's.
        ends: int64 (texts,), where each text ends: what is after it counts for nothing.
    """

    ids: torch.Tensor
    prompt: int
    ends: torch.Tensor

    def labels(self) -> torch.Tensor:
        """int64 (texts, tokens): the text's tokens, ``IGNORE`` elsewhere."""
        place = torch.arange(self.ids.shape[1])
        counts = (place >= self.prompt) & (place < self.ends[:, None])
        return torch.where(counts, self.ids, IGNORE)


def found(windows: torch.Tensor, prompt: int) -> Written:
    """Windows of a text as they are: people have gone on from the prompts.

    Args:
        windows: int64 (texts, tokens).
        prompt: tokens of each that are the prompt.

    Raises:
        TrainingError: nothing would be left on one side.
    """
    if windows.ndim != 2 or not 0 < prompt < windows.shape[1]:
        raise TrainingError(f"prompt={prompt} of windows {tuple(windows.shape)}.")
    ends = torch.full((len(windows),), windows.shape[1])
    return Written(windows, prompt, ends)


@torch.no_grad()  # not inference mode: students are trained on the texts
def write(
    llm: Llm, prompts: torch.Tensor, new_tokens: int, batch_size: int = 16
) -> Written:
    """Let a model go on from prompts, greedily: always the likeliest token.

    Kim and Rush take the teacher's best sequence by beam search; greedy search is its
    beam of one.

    Args:
        prompts: int64 (texts, tokens), all of one length.
    """
    if prompts.ndim != 2 or not prompts.numel() or new_tokens < 1:
        raise TrainingError("Prompts (texts, tokens) and a new token are needed.")
    model, end = llm.model.eval(), llm.tokenizer.eos_token_id
    filler = llm.tokenizer.pad_token_id
    filler = end if filler is None else filler
    length = prompts.shape[1]
    rows = []
    with autocast(), bar(None, "the teacher writes", total=len(prompts)) as shown:
        for part in batches(len(prompts), batch_size):
            own = prompts[part].to(model.device)
            ids = model.generate(
                own, attention_mask=torch.ones_like(own), max_new_tokens=new_tokens,
                do_sample=False, pad_token_id=filler,
            ).cpu()  # fmt: skip
            short = length + new_tokens - ids.shape[1]
            rows.append(F.pad(ids, (0, short), value=filler))
            shown.update(len(own))
    ids = torch.cat(rows)
    ends = model.generation_config.eos_token_id  # one, several, or none
    ends = {end, *(ends if isinstance(ends, list | tuple) else [ends])} - {None}
    ended = torch.isin(ids[:, length:], torch.tensor(sorted(ends))).int()
    before = torch.where(ended.any(1), ended.argmax(1) + 1, new_tokens)
    return Written(ids, length, length + before)


def shortened(llm: Llm, layers: Sequence[int], train: Sequence[int] = ()) -> Llm:
    """A copy with some of the layers. Embeddings and output map are the teacher's own
    tensors, frozen, not copied.

    Args:
        layers: to keep, from 0, in increasing order.
        train: those of them (by the teacher's numbers) that are free; default: all.

    Raises:
        TrainingError: layers that aren't there, or to be trained but not kept.
    """
    every = llm.model.model.layers
    layers, train = list(layers), list(train) or list(layers)
    if not layers or layers != sorted(set(layers) & set(range(len(every)))):
        raise TrainingError(
            f"layers={layers}: name some of 0 to {len(every) - 1}, each once, in order."
        )
    if strange := set(train) - set(layers):
        raise TrainingError(f"Layers {sorted(strange)} can't learn: they aren't kept.")
    model = llm.model
    shared = [model.get_input_embeddings(), model.get_output_embeddings()]
    dropped = [layer for i, layer in enumerate(every) if i not in layers]
    memo = {id(p): p for module in shared for p in module.parameters()}
    memo |= {id(layer): nn.Identity() for layer in dropped}
    student = copy.deepcopy(model, memo)
    student.model.layers = nn.ModuleList(student.model.layers[i] for i in layers)
    student.config.num_hidden_layers = student.model.config.num_hidden_layers = len(
        layers
    )
    student.base_id = f"{getattr(model, 'base_id', '')} layers {layers}"
    student.requires_grad_(False).eval()
    for place, (i, layer) in enumerate(zip(layers, student.model.layers, strict=True)):
        layer.self_attn.layer_idx = place  # its place in the cache of keys and values
        layer.requires_grad_(i in train)
    return Llm(f"{llm.name}, {len(layers)} layers", student, llm.tokenizer, llm.card)


def text_loss(model: nn.Module, batch: tuple[torch.Tensor, torch.Tensor]):
    """Mean cross-entropy of the texts' tokens, in nats.

    Args:
        batch: ids and labels, each (batch, tokens).
    """
    ids, labels = batch
    logits, wanted = _predictions(model, ids, labels)
    return F.cross_entropy(logits, wanted)


def train(
    student: Llm,
    texts: Written,
    *,
    lr: float,
    epochs: int = 1,
    batch_size: int = 8,
    seed: int = 0,
) -> History:
    """Train a student's free layers on texts, whoever wrote them, in place.

    Raises:
        TrainingError: as ``training.fit``.
    """
    return fit(
        student.model,
        (texts.ids, texts.labels()),
        text_loss,
        TrainConfig(
            epochs=epochs,
            batch_size=batch_size,
            optimizer=text_classifier.optimizer(student.model, lr),
            schedule="linear",
            warmup=0.1,
            precision=of_training(),
            seed=seed,
            max_grad_norm=1.0,
            description="LLM",
        ),
    )


@torch.inference_mode()
def judge(llm: Llm, texts: Written, batch_size: int = 8) -> PerplexityResult:
    """How well a model foresees texts, given each one's true beginning.

    Returns:
        The losses of the texts' tokens, and ``agrees``: whether its first choice is the
        token that stands there; ``divergence`` isn't known.
    """
    llm.model.eval()
    labels, device = texts.labels(), llm.model.device
    losses, agrees = [], []
    for rows in batches(len(labels), batch_size):
        pair = texts.ids[rows].to(device), labels[rows].to(device)
        logits, wanted = _predictions(llm.model, *pair)
        losses.append(F.cross_entropy(logits, wanted, reduction="none").cpu())
        agrees.append((logits.argmax(-1) == wanted).cpu())
    return PerplexityResult(torch.cat(losses), None, torch.cat(agrees))


def _predictions(model, ids, labels) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits (n, vocabulary) before each token that counts, and these tokens (n,).

    Scores over the vocabulary are the largest tensor of a step: no others are computed.
    """
    wanted = labels[:, 1:]  # token t predicts token t + 1
    counts = wanted != IGNORE
    with autocast():
        states = model.model(input_ids=ids, use_cache=False).last_hidden_state
        logits = model.lm_head(states[:, :-1][counts])
    return logits.float(), wanted[counts]
