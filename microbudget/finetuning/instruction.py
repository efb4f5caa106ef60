"""Teaching an LLM by example answers, and hearing what it says."""

from collections.abc import Sequence

import torch
from torch.nn import functional as F

from ..core.precision import autocast, of_training
from ..data import dialogue
from ..data.batching import batches
from ..models import bitsandbytes
from ..models.smollm import Llm
from ..training.loop import History, TrainConfig, fit
from ..training.text_classifier import optimizer


def answer_loss(model, batch) -> torch.Tensor:
    """Mean cross entropy of the answers' tokens.

    Scores over the vocabulary are computed where there is an answer only: elsewhere
    they would be the largest tensor of the step, for nothing.

    Args:
        batch: ids, mask, labels, each (batch, tokens); labels of the question -100.
    """
    ids, mask, labels = batch
    wanted = labels[:, 1:]  # token t predicts token t + 1
    taught = wanted != -100
    with autocast():
        states = model.model(input_ids=ids, attention_mask=mask).last_hidden_state
        logits = model.lm_head(states[:, :-1][taught])  # (answer tokens, vocabulary)
    return F.cross_entropy(logits.float(), wanted[taught])


def train(
    llm: Llm,
    data: dialogue.Dialogues,
    *,
    lr: float,
    epochs: int = 1,
    batch_size: int = 8,
    seed: int = 0,
) -> History:
    """Train what a method of ``finetuning`` has left free of an LLM, in place.

    The loss is a mean over a batch's answer tokens, so batches can't be accumulated.

    Raises:
        TrainingError: as ``training.fit``.
    """
    bitsandbytes.keep_trainable_(llm.model)
    return fit(
        llm.model,
        data,
        answer_loss,
        TrainConfig(
            epochs=epochs,
            batch_size=batch_size,
            optimizer=optimizer(llm.model, lr),
            schedule="linear",
            warmup=0.1,
            precision=of_training(),
            lengths=data.lengths,
            seed=seed,
            max_grad_norm=1.0,
            description="LLM",
        ),
    )


@torch.inference_mode()
def held_out_loss(llm: Llm, data: dialogue.Dialogues, batch_size: int = 8) -> float:
    """Mean cross entropy over all answer tokens of a data set, in nats a token."""
    llm.model.eval()
    device, total, count = llm.model.device, 0.0, 0
    order = sorted(range(len(data)), key=lambda i: data.lengths[i])
    for rows in batches(len(order), batch_size):
        batch = data.collate([data[i] for i in order[rows]])
        taught = int((batch[2][:, 1:] != -100).sum())
        loss = answer_loss(llm.model, [t.to(device) for t in batch])
        total, count = total + float(loss) * taught, count + taught
    return total / count


@torch.inference_mode()
def answer(
    llm: Llm, questions: Sequence[str], max_tokens: int = 64, batch_size: int = 8
) -> list[str]:
    """Greedy answers: always the likeliest token, so the same ones every time.

    Raises:
        DataError: an empty question.
    """
    llm.model.eval()
    prompts = [dialogue.prompt(llm.tokenizer, question) for question in questions]
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    answers = [""] * len(prompts)
    pad, device = llm.tokenizer.pad_token_id, llm.model.device
    for rows in batches(len(order), batch_size):
        own = [prompts[i] for i in order[rows]]
        longest = max(map(len, own))
        ids = torch.tensor([[pad] * (longest - len(p)) + p for p in own], device=device)
        mask = torch.tensor(
            [[0] * (longest - len(p)) + [1] * len(p) for p in own], device=device
        )
        with autocast():
            written = llm.model.generate(
                ids, attention_mask=mask, max_new_tokens=max_tokens, do_sample=False,
                pad_token_id=pad,
            )[:, longest:]  # fmt: skip
        texts = llm.tokenizer.batch_decode(written, skip_special_tokens=True)
        for i, text in zip(order[rows], texts, strict=True):
            answers[i] = text.strip()
    return answers
