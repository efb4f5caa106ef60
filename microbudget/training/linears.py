"""What the linear maps of a transformer's layers are called."""

import re
from collections.abc import Sequence

from torch import nn

from ..core.errors import TrainingError
from .adapters import config_of
from .parts import is_head

# names of a layer's linear maps, from the architectures' own modules
_BERT = {"q": ["query"], "k": ["key"], "v": ["value"], "o": ["attention.output.dense"],
         "f": ["intermediate.dense", r"layer\.\d+\.output\.dense"]}  # fmt: skip
_LLAMA = {"q": ["q_proj"], "k": ["k_proj"], "v": ["v_proj"], "o": ["o_proj"],
          "f": ["gate_proj", "up_proj", "down_proj"]}  # fmt: skip
LINEARS = {"bert": _BERT, "roberta": _BERT, "llama": _LLAMA}


def targets_of(model: nn.Module, targets: str | Sequence[str]) -> list[str]:
    """Regular expressions for the ends of the names of the maps to be adapted."""
    if isinstance(targets, str):
        known = linears_of(model)
        if not targets or (strange := set(targets) - set(known)):
            raise TrainingError(
                f"targets={targets!r}: use letters of {''.join(known)!r}, or a list of "
                f"names, not {sorted(strange) if targets else 'nothing'}."
            )
        endings = [ending for letter in targets for ending in known[letter]]
    else:
        endings = [re.escape(target) for target in targets]
    linears = [n for n, m in model.named_modules() if isinstance(m, nn.Linear)]
    linears = [re.sub(r"\.base_layer$", "", n) for n in linears if not is_head(n)]
    for ending in endings or ["(nothing)"]:
        if not any(re.fullmatch(rf"(.*\.)?{ending}", name) for name in linears):
            there = sorted({n.rpartition(".")[2] for n in linears})
            raise TrainingError(
                f"No linear layer's name ends in {ending!r}. There are: "
                f"{', '.join(there)}."
            )
    return endings


def linears_of(model: nn.Module) -> dict[str, list[str]]:
    kind = config_of(model).model_type
    if kind not in LINEARS:
        raise TrainingError(
            f"The linear maps of a {kind} aren't known here: give targets as a list of "
            "module names (see model.named_modules())."
        )
    return LINEARS[kind]
