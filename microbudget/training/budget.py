"""How good a model is after how much work: accuracy over processor seconds."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from torch import nn


@dataclass
class BudgetCurve:
    """A training's score after each epoch, over the work so far; for ``fit``.

    ``fit(…, evaluate=curve)`` fills it. Evaluation itself isn't charged.

    Attributes:
        score: model -> its score, such as accuracy.
        spent: processor seconds (of all threads) before the training began, such as
            those of its features.
        seconds, scores: one entry an epoch.
    """

    score: Callable[[nn.Module], float]
    spent: float = 0.0
    seconds: list[float] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    _since: float = field(default_factory=time.process_time)

    def __call__(self, model: nn.Module) -> dict[str, float]:
        self.spent += time.process_time() - self._since
        self.seconds.append(self.spent)
        self.scores.append(self.score(model))
        self._since = time.process_time()
        return {"score": self.scores[-1]}
