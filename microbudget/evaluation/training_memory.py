"""What training keeps in memory: weights, gradients, moments, activations.

Counted from the tensors themselves, and predicted by formula.
"""

from collections.abc import Callable
from dataclasses import astuple, dataclass

import torch
from torch import nn

# NF4 with double quantization, bytes a weight: 4 bits, an 8-bit scale for 64 weights,
# and a 32-bit one for 256 of those (Dettmers et al. 2023, QLoRA, section 3)
NF4_BYTES = 0.5 + 1 / 64 + 4 / (64 * 256)


@dataclass(frozen=True)
class TrainingMemory:
    """Bytes, by what they are for.

    Attributes:
        optimizer: AdamW's two moments.
        activations: what the forward pass keeps for the backward pass.
    """

    weights: float
    gradients: float
    optimizer: float
    activations: float

    @property
    def total(self) -> float:
        return sum(astuple(self))

    def __str__(self) -> str:
        names = ("weights", "gradients", "moments", "activations")
        sizes = zip(names, astuple(self), strict=True)
        texts = [f"{name} {size / 1e6:,.1f}" for name, size in sizes]
        return f"{' + '.join(texts)} = {self.total / 1e6:,.1f} MB"


def measure_training_memory(
    model: nn.Module,
    loss: Callable[[], torch.Tensor],
    optimizer: Callable[[list[nn.Parameter]], torch.optim.Optimizer],
) -> TrainingMemory:
    """Count every tensor's bytes over one step; changes the weights by that step.

    Args:
        loss: computes the loss of one batch with ``model``.
        optimizer: trainable parameters -> Optimizer.
    """
    model.train()
    trainable = [p for p in model.parameters() if p.requires_grad]
    optim = optimizer(trainable)
    weights = _weights(model)
    own = {t.untyped_storage().data_ptr() for t in weights}
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        # Autograd calls this for every tensor that it keeps for the backward pass.
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()  # views count once
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        value = loss()
    value.backward()
    gradients = sum(p.grad.nbytes for p in trainable if p.grad is not None)
    optim.step()
    moments = sum(
        tensor.nbytes
        for state in optim.state.values()
        for tensor in state.values()
        if isinstance(tensor, torch.Tensor) and tensor.ndim
    )
    optim.zero_grad(set_to_none=True)
    model.eval()
    stored = sum(tensor.nbytes for tensor in weights)
    return TrainingMemory(stored, gradients, moments, sum(kept.values()))


def predict_training_memory(
    weights: float,
    trainable: float,
    activations: float,
    *,
    in_nf4: float = 0,
    bytes_each: tuple[int, int, int] = (4, 4, 8),
) -> TrainingMemory:
    """The same by formula: so many bytes a number.

    Args:
        weights, trainable: how many parameters there are, and are trainable.
        activations: bytes, such as ``encoder_activation_bytes`` says.
        in_nf4: how many of the weights are stored in NF4.
        bytes_each: of a weight, a gradient, and both moments together.
    """
    weight, gradient, moments = bytes_each
    stored = (weights - in_nf4) * weight + in_nf4 * NF4_BYTES
    return TrainingMemory(
        stored, trainable * gradient, trainable * moments, activations
    )


def encoder_activation_bytes(
    config, batch: int, tokens: int, *, frozen: bool = False
) -> int:
    """Bytes that a BERT without dropout keeps for the backward pass, in float32.

    Korthikanti et al. 2022, Reducing Activation Recomputation (arXiv:2205.05198),
    section 4.1, without the masks of dropout. Numbers per token and layer: queries,
    keys and values 3·d; the input of both layer norms 2·d; what goes into the
    activation function ``inner``; the probabilities of attention heads·tokens. A linear
    layer keeps its input only to compute its own weights' gradient: the input of the
    three projections d, of the output projection d, of the feed-forward's two
    d + inner. A frozen one doesn't.

    Args:
        config: transformers' ``BertConfig``.
        frozen: all linear layers are, but for LoRA on queries and values, which keep d.
    """
    d, inner = config.hidden_size, config.intermediate_size
    always = 3 * d + 2 * d + inner + config.num_attention_heads * tokens
    of_linears = d if frozen else d + d + d + inner
    return batch * tokens * config.num_hidden_layers * (always + of_linears) * 4


def _weights(model: nn.Module) -> list[torch.Tensor]:
    """Parameters, and the scales that four-bit ones carry along."""
    tensors = list(model.parameters())
    for parameter in model.parameters():
        state = getattr(parameter, "quant_state", None)
        while state is not None:  # with double quantization, the scales have their own
            tensors.append(state.absmax)
            state = getattr(state, "state2", None)
    return tensors
