"""Accuracy over work: evaluations are recorded and not charged."""

import time

import torch

from microbudget.training import BudgetCurve, TrainConfig, fit


def busy(seconds):
    end = time.process_time() + seconds
    while time.process_time() < end:
        pass


def test_a_curve_has_a_point_an_epoch_and_evaluation_is_free():
    model = torch.nn.Linear(3, 1)
    data = (torch.randn(8, 3), torch.randn(8, 1))

    def score(_):
        busy(0.2)
        return 0.5

    def loss(model, batch):
        return (model(batch[0]) - batch[1]).square().mean()

    curve = BudgetCurve(score, spent=3.0)
    fit(model, data, loss, TrainConfig(epochs=4, batch_size=8), evaluate=curve)
    assert curve.scores == [0.5] * 4
    assert curve.seconds == sorted(curve.seconds) and curve.seconds[0] > 3
    # three scores lie between the first epoch's point and the last one's
    assert curve.seconds[-1] - curve.seconds[0] < 3 * 0.2
