"""Students of a large classifier: a copy with fewer layers, a BiLSTM.

Both take the tokens the large one takes and have its ``heads`` and ``task``, so that
``training.text_classifier`` trains and evaluates them as well.
"""

import copy
from collections.abc import Sequence

import torch
from torch import nn

from ..core import settings
from ..core.errors import TrainingError
from ..data.batching import masked_mean
from ..models.bert import Classifier


class BiLstm(nn.Module):
    """An LSTM in each direction (Hochreiter and Schmidhuber 1997), and a linear head.

    The sentence's vector is the mean over its tokens, as in ``bert.Classifier``. Two
    LSTMs and a reversed order compute what torch's bidirectional one does on packed
    sequences, in half the time.

    Attributes:
        heads: task -> linear layer; ``task`` says which one answers.
    """

    def __init__(self, vocabulary: int, classes: int, width: int, hidden: int):
        super().__init__()
        self.embeddings = nn.Embedding(vocabulary, width)
        self.forwards = nn.LSTM(width, hidden, batch_first=True)
        self.backwards = nn.LSTM(width, hidden, batch_first=True)
        self.heads = nn.ModuleDict({"task": nn.Linear(2 * hidden, classes)})
        self.task = "task"

    def states(self, ids: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """ids, mask (batch, tokens) -> (batch, tokens, width) of the embeddings and
        (batch, tokens, 2·hidden) of the LSTMs.

        The backward LSTM begins at each sentence's own last token, not in the padding;
        what stands at padded positions means nothing.
        """
        x = self.embeddings(ids)  # (batch, tokens, width)
        tokens, last = ids.shape[1], mask.sum(1, keepdim=True) - 1
        # Position t takes what stands at last − t. Doing so twice gives the old order.
        reverse = (last - torch.arange(tokens, device=ids.device)) % tokens
        reverse = reverse.unsqueeze(-1)  # (batch, tokens, 1)
        forwards, _ = self.forwards(x)  # (batch, tokens, hidden)
        backwards, _ = self.backwards(x.gather(1, reverse.expand_as(x)))
        backwards = backwards.gather(1, reverse.expand_as(backwards))
        return x, torch.cat([forwards, backwards], -1)

    def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """ids, mask (batch, tokens) -> logits (batch, classes)."""
        return logits_and_states(self, ids, mask)[0]


def bilstm(
    vocabulary: int,
    classes: int,
    *,
    width: int = 128,
    hidden: int = 128,
    table: torch.Tensor | None = None,
    seed: int = 0,
) -> BiLstm:
    """A new BiLSTM on the course's device, every parameter of it trainable.

    Args:
        width: of the embeddings. hidden: of each direction.
        table: (vocabulary, width) to begin the embeddings with, as ``pca_table`` makes;
            default: normally distributed numbers. All other weights are the same.
    """
    torch.manual_seed(seed)
    model = BiLstm(vocabulary, classes, width, hidden)
    if table is not None:
        with torch.no_grad():
            model.embeddings.weight.copy_(table)
    return model.to(settings.device())


def keep_layers(
    teacher: Classifier,
    layers: Sequence[int],
    *,
    new_head: bool = False,
    seed: int = 0,
) -> Classifier:
    """A copy of a classifier with some of its encoder's layers, all of it trainable.

    Sanh et al. 2019, DistilBERT (arXiv:1910.01108), section 3, begin with every other
    layer of the teacher.

    Args:
        layers: the teacher's layers to keep, from 0, in increasing order.
        new_head: drawn with ``seed``; otherwise the head is a copy of the teacher's.

    Raises:
        TrainingError: layers that aren't there or out of order.
    """
    require_layers(layers, len(teacher.encoder.encoder.layer))
    student = copy.deepcopy(teacher).requires_grad_(True)
    kept = [student.encoder.encoder.layer[i] for i in layers]
    student.encoder.encoder.layer = nn.ModuleList(kept)
    student.encoder.config.num_hidden_layers = len(kept)
    head = student.heads[student.task]
    student.heads = nn.ModuleDict({student.task: head})
    if new_head:
        torch.manual_seed(seed)
        student.add_head(student.task, head.out_features)
    # The name under which adapters are saved: another student's don't fit.
    student.base_id = f"{teacher.base_id} layers {list(layers)}"
    return student


def require_layers(layers: Sequence[int], count: int) -> None:
    """``layers`` must be some of 0 to ``count`` − 1, in increasing order."""
    if not layers or list(layers) != sorted(set(layers) & set(range(count))):
        raise TrainingError(
            f"layers={list(layers)}: name some of 0 to {count - 1}, "
            "each once, in order."
        )


def word_table(teacher: Classifier) -> torch.Tensor:
    """The teacher's word embeddings, float32 (vocabulary, d), on the CPU."""
    weight = teacher.encoder.get_input_embeddings().weight
    return weight.detach().float().cpu()


def pca_table(table: torch.Tensor, width: int) -> torch.Tensor:
    """Embeddings reduced to ``width`` numbers by principal component analysis.

    Words that the teacher found alike stay alike. The result is scaled to a standard
    deviation of 1, that of an embedding drawn at random, so that only the directions
    differ from it.

    Args:
        table: (vocabulary, d), ``width`` at most d.

    Returns:
        float32 (vocabulary, width), the first column has the largest variance.
    """
    centred = table.double() - table.double().mean(0)
    _, vectors = torch.linalg.eigh(centred.T @ centred)  # the largest comes last
    components = centred @ vectors[:, -width:].flip(1)  # (vocabulary, width)
    return (components / components.std()).float()


def logits_and_states(
    model: Classifier | BiLstm, ids: torch.Tensor, mask: torch.Tensor
) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
    """Logits (batch, classes), and every layer's hidden states on the way to them.

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
    mean = masked_mean(states[-1].float(), mask, 1)  # (batch, d)
    return model.heads[model.task](mean), states


def state_widths(model: Classifier | BiLstm) -> list[int]:
    """The length of a token's vector in each of ``logits_and_states``' states."""
    if isinstance(model, BiLstm):
        return [model.embeddings.embedding_dim, 2 * model.forwards.hidden_size]
    config = model.encoder.config
    return [config.hidden_size] * (config.num_hidden_layers + 1)
