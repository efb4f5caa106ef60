"""Instruction tuning: an LLM trained on example answers, and what it answers then."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch.nn import functional as F

from ..core.precision import autocast
from ..data import dialogue
from ..data.batching import batches
from ..models import bitsandbytes
from ..models.smollm import Llm
from ..training.loop import History, fit
from ..training.text_classifier import FinetuneConfig


def answer_loss(model, batch) -> torch.Tensor:
    """Mean cross entropy of the answers' tokens.

    Logits over the vocabulary are computed only where there is an answer: elsewhere
    they would be the largest tensor of the step, for nothing.

    Args:
        batch: ids, mask, labels, each (batch, tokens); labels of the question -100.
    """
    ids, mask, labels = batch
    targets = labels[:, 1:]  # token t predicts token t + 1
    in_answer = targets != -100
    with autocast():
        states = model.model(input_ids=ids, attention_mask=mask).last_hidden_state
        logits = model.lm_head(states[:, :-1][in_answer])  # (answer tokens, vocabulary)
    return F.cross_entropy(logits.float(), targets[in_answer])


def train_llm(llm: Llm, data: dialogue.Dialogues, config: FinetuneConfig) -> History:
    """Train the parameters of an LLM that require gradients on dialogues, in place.

    Raises:
        TrainingError: as ``training.fit``.
    """
    bitsandbytes.keep_trainable_(llm.model)
    config = replace(config, description="LLM")
    return fit(llm.model, data, answer_loss, config.for_fit(llm.model, data.lengths))


@torch.inference_mode()
def held_out_loss(llm: Llm, data: dialogue.Dialogues, batch_size: int = 8) -> float:
    """Mean cross entropy over all answer tokens of a data set, in nats a token."""
    llm.model.eval()
    total, count = 0.0, 0
    for rows in batches(len(data), batch_size):
        batch = data.collate([data[i] for i in range(len(data))[rows]])
        tokens = int((batch[2][:, 1:] != -100).sum())
        loss = answer_loss(llm.model, [t.to(llm.model.device) for t in batch])
        total, count = total + float(loss) * tokens, count + tokens
    return total / count


@torch.inference_mode()
def answer(llm: Llm, questions: Sequence[str], max_tokens: int = 64) -> list[str]:
    """Greedy answers: always the likeliest token, so the same ones every time.

    The questions form one batch: ask thousands in several calls.

    Raises:
        DataError: an empty question.
    """
    llm.model.eval()
    prompts = [dialogue.prompt(llm.tokenizer, question) for question in questions]
    # On the left, so that every answer begins where the batch's prompts end.
    batch = llm.tokenizer.pad(
        {"input_ids": prompts}, padding_side="left", return_tensors="pt"
    ).to(llm.model.device)  # ids and mask (questions, tokens)
    with autocast():
        written = llm.model.generate(
            **batch, max_new_tokens=max_tokens, do_sample=False,
            pad_token_id=llm.tokenizer.pad_token_id,
        )[:, batch["input_ids"].shape[1] :]  # fmt: skip
    texts = llm.tokenizer.batch_decode(written, skip_special_tokens=True)
    return [text.strip() for text in texts]
