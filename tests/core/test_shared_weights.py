"""Two names for one tensor or module: every step leaves outputs as they should be."""

import copy

import peft
import pytest
import tiny_llm
import torch
from torch import nn

from microbudget import finetuning, pruning, quantization
from microbudget.core.modules import is_shared, names_of
from microbudget.low_rank.convolution import named_convolutions
from microbudget.models.vision import fold_batchnorm
from microbudget.pruning.masks import make_permanent_


class Tied(nn.Module):
    """Two linear layers that share one weight."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 8)
        self.b.weight = self.a.weight

    def forward(self, x):
        return self.b(torch.relu(self.a(x)))


class Twice(nn.Module):
    """One layer under two names."""

    def __init__(self, layer):
        super().__init__()
        self.a = self.b = layer

    def forward(self, x):
        return self.b(torch.relu(self.a(x)))


def networks():
    torch.manual_seed(0)
    yield Tied(), torch.randn(4, 8)
    yield Twice(nn.Linear(8, 8)), torch.randn(4, 8)


def test_who_shares():
    (tied, _), (twice, _) = networks()
    assert is_shared(tied, tied.a) and is_shared(twice, twice.a)
    assert names_of(twice, twice.a) == ["a", "b"]
    assert not is_shared(nn.Sequential(nn.Linear(2, 2)), nn.Linear(2, 2))


@pytest.mark.parametrize("case", [0, 1])
@torch.no_grad()
def test_masks_made_permanent_change_no_output(case):
    model, x = list(networks())[case]
    masks = pruning.l1_masks(pruning.prunable_weights(model), 0.5)
    pruning.mask_(model, {"a": masks["a"]})
    masked = model(x)
    make_permanent_(model)
    torch.testing.assert_close(model(x), masked)


@pytest.mark.parametrize("tied", [True, False])
def test_lora_merged_into_a_head_leaves_the_embedding(tied):
    model = tiny_llm.llama(hidden=64, tie_word_embeddings=tied)
    table = model.get_input_embeddings().weight.clone()
    finetuning.apply_(model, peft.LoraConfig(r=4, target_modules=["lm_head"]))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.1)
    with torch.no_grad():
        before = model(tiny_llm.ids()).logits
        finetuning.merge_(model)
        torch.testing.assert_close(model(tiny_llm.ids()).logits, before)
    assert torch.equal(model.get_input_embeddings().weight, table)
    assert not model.config.tie_word_embeddings


@torch.no_grad()
def test_a_layer_under_two_names_is_quantized_under_both():
    _, (twice, x) = networks()
    found = quantization.fake_quantize(twice, bits=2, input_bits=0)
    by_hand = copy.deepcopy(twice)
    by_hand.a.weight.copy_(found.a.weight_mapping().fake_quantize(twice.a.weight))
    torch.testing.assert_close(found(x), by_hand(x))


class WithAndWithoutNorm(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3)

    def forward(self, x):
        return self.norm(self.conv(x)) + self.conv(x)


class Branching(nn.Module):
    """Can't be traced: it looks at its input."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3)

    def forward(self, x):
        return self.norm(self.conv(x)) if len(x) > 0 else x


@pytest.mark.parametrize(
    ("make", "folds"),
    [
        (lambda: nn.Sequential(nn.Conv2d(3, 3, 3), nn.BatchNorm2d(3)), True),
        (WithAndWithoutNorm, False), (Branching, True),
        (lambda: Twice(nn.Conv2d(3, 3, 3, padding=1)), False),
    ],
)  # fmt: skip
@torch.no_grad()
def test_folding_changes_no_output(make, folds):
    torch.manual_seed(0)
    model, x = make().eval(), torch.randn(2, 3, 8, 8)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.2, 3)
    folded = fold_batchnorm(model)
    torch.testing.assert_close(folded(x), model(x), rtol=1e-4, atol=1e-5)
    norms = [m for m in folded.modules() if isinstance(m, nn.BatchNorm2d)]
    assert (not norms) == (folds or isinstance(model, Twice))


def test_a_shared_convolution_is_not_factorized():
    network = nn.Sequential(Twice(nn.Conv2d(4, 4, 3, padding=1)), nn.Conv2d(4, 4, 1))
    assert list(named_convolutions(network)) == ["1"]
