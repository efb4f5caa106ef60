"""Small classifiers that learn from a large one: a copy with fewer layers, a BiLSTM.

Both take the tokens the large one takes and have its ``heads`` and ``task``, so that
``classification.train``, ``predict`` and ``score`` work on them.
"""

import copy
from collections.abc import Sequence

import torch
from torch import nn

from ..core import settings
from ..core.errors import TrainingError
from ..models.bert import Classifier


class BiLstm(nn.Module):
    """An LSTM in each direction (Hochreiter and Schmidhuber 1997), and a linear head.

    The sentence's vector is the mean over its tokens, as in ``encoder.Classifier``.

    Attributes:
        heads: task -> linear layer; ``task`` says which one answers.
    """

    def __init__(self, vocabulary: int, width: int = 128, hidden: int = 128):
        super().__init__()
        self.embeddings = nn.Embedding(vocabulary, width)
        self.there = nn.LSTM(width, hidden, batch_first=True)
        self.back = nn.LSTM(width, hidden, batch_first=True)
        self.heads, self.task = nn.ModuleDict(), ""

    def add_head(self, task: str, classes: int) -> None:
        """A new head, drawn from torch's generator; it becomes the active one."""
        head = nn.Linear(self.there.hidden_size + self.back.hidden_size, classes)
        self.heads[task] = head.to(self.embeddings.weight.device)
        self.task = task

    def states(self, ids: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """ids, mask (batch, tokens) -> (batch, tokens, width) of the embeddings and
        (batch, tokens, 2·hidden) of the LSTMs.

        The way back begins at each sentence's own last token, not in the padding; what
        stands at padded places means nothing.
        """
        x = self.embeddings(ids)
        last = mask.sum(1, keepdim=True) - 1
        turned = (last - torch.arange(ids.shape[1], device=ids.device)) % ids.shape[1]
        turned = turned.unsqueeze(
            -1
        )  # (batch, tokens, 1): turning twice changes nothing
        there, _ = self.there(x)
        back, _ = self.back(x.gather(1, turned.expand_as(x)))
        back = back.gather(1, turned.expand_as(back))
        return x, torch.cat([there, back], -1)

    def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """ids, mask (batch, tokens) -> logits (batch, classes)."""
        states = self.states(ids, mask)[-1]
        return self.heads[self.task](mean_over_tokens(states, mask))


def bilstm(
    vocabulary: int,
    classes: int,
    *,
    width: int = 128,
    hidden: int = 128,
    table: torch.Tensor | None = None,
    task: str = "task",
    seed: int = 0,
) -> BiLstm:
    """A new BiLSTM on the course's device, every weight of it free.

    Args:
        width: of the embeddings. hidden: of each direction.
        table: (vocabulary, width) to begin the embeddings with, as ``pca_table`` makes;
            default: normally distributed numbers. All other weights are the same.
        seed: of the first weights.

    Raises:
        TrainingError: a table of another shape.
    """
    torch.manual_seed(seed)
    model = BiLstm(vocabulary, width, hidden)
    model.add_head(task, classes)
    if table is not None:
        if table.shape != model.embeddings.weight.shape:
            raise TrainingError(
                f"The table is {tuple(table.shape)}, the student's embeddings are "
                f"{tuple(model.embeddings.weight.shape)}: they must be alike."
            )
        with torch.no_grad():
            model.embeddings.weight.copy_(table)
    return model.to(settings.device())


def truncated(
    teacher: Classifier, layers: Sequence[int], *, head: str = "copied", seed: int = 0
) -> Classifier:
    """A copy of a classifier with some of its encoder's layers, every weight free.

    Sanh et al. 2019, DistilBERT (arXiv:1910.01108), section 3, begin with every other
    layer of the teacher.

    Args:
        layers: the teacher's layers to keep, from 0, in increasing order.
        head: ``"copied"`` from the teacher, or ``"new"``, drawn with ``seed``.

    Raises:
        TrainingError: layers that aren't there or out of order, another ``head``.
    """
    there = len(teacher.encoder.encoder.layer)
    layers = list(layers)
    if not layers or layers != sorted(set(layers) & set(range(there))):
        raise TrainingError(
            f"layers={layers}: name some of 0 to {there - 1}, each once, in order."
        )
    if head not in ("copied", "new"):
        raise TrainingError(f"head={head!r}: use 'copied' or 'new'.")
    if not len(teacher.heads):
        raise TrainingError("The teacher has no head: add_head(task, classes).")
    student = copy.deepcopy(teacher).requires_grad_(True)
    kept = [student.encoder.encoder.layer[i] for i in layers]
    student.encoder.encoder.layer = nn.ModuleList(kept)
    student.encoder.config.num_hidden_layers = len(kept)
    own = student.heads[student.task]
    student.heads = nn.ModuleDict({student.task: own})
    if head == "new":
        torch.manual_seed(seed)
        student.add_head(student.task, own.out_features)
    student.base_id = f"{teacher.base_id} layers {layers}"  # no adapter of another fits
    return student


def word_table(teacher: Classifier) -> torch.Tensor:
    """The teacher's word embeddings, float32 (vocabulary, d), on the CPU."""
    weight = teacher.encoder.get_input_embeddings().weight
    return weight.detach().float().cpu()


def pca_table(table: torch.Tensor, width: int) -> torch.Tensor:
    """Embeddings squeezed to ``width`` numbers by principal component analysis.

    Words that the teacher found alike stay alike. The result is scaled to a standard
    deviation of 1, that of an embedding drawn at random, so that only the directions
    differ from it.

    Args:
        table: (words, d), ``width`` at most d.

    Returns:
        float32 (words, width), the first column has the largest variance.

    Raises:
        TrainingError: ``width`` outside 1…d, or fewer words than that.
    """
    if table.ndim != 2 or not 1 <= width <= min(table.shape):
        raise TrainingError(
            f"width={width}: a table {tuple(table.shape)} has at most "
            f"{min(table.shape)} components."
        )
    x = table.double() - table.double().mean(0)
    _, vectors = torch.linalg.eigh(x.T @ x)  # the largest comes last
    found = x @ vectors[:, -width:].flip(1)
    return (found / found.std()).float()


def read(
    model: Classifier | BiLstm, ids: torch.Tensor, mask: torch.Tensor
) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
    """Logits (batch, classes), and what every layer said on the way to them.

    Returns:
        The logits that ``model(ids, mask)`` gives, and states (batch, tokens, d): the
        embeddings', then each layer's.
    """
    if isinstance(model, BiLstm):
        states = model.states(ids, mask)
    else:
        states = model.encoder(
            input_ids=ids, attention_mask=mask, output_hidden_states=True
        ).hidden_states
    return model.heads[model.task](mean_over_tokens(states[-1], mask)), states


def mean_over_tokens(states: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """states (batch, tokens, d), mask (batch, tokens) -> float32 (batch, d)."""
    weights = mask.unsqueeze(-1).float()
    return (states.float() * weights).sum(1) / weights.sum(1)


def widths(model: Classifier | BiLstm) -> list[int]:
    """The length of a token's vector in each of ``read``'s states."""
    if isinstance(model, BiLstm):
        hidden = model.there.hidden_size + model.back.hidden_size
        return [model.embeddings.embedding_dim, hidden]
    config = model.encoder.config
    return [config.hidden_size] * (config.num_hidden_layers + 1)
