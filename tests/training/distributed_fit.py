"""Run by test_training under `accelerate launch`: the same fit, on two processes."""

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import torch
from accelerate import PartialState
from test_loop import run
from torch import nn

if __name__ == "__main__":
    model, history = run()
    state = PartialState()
    if state.is_main_process:
        weights = [p.double().sum().item() for p in model.parameters()]
        result = {
            "processes": state.num_processes,
            "losses": history.losses,
            "weights": weights,
        }
        Path(sys.argv[1]).write_text(json.dumps(result))
    # scores that differ between processes: the main one's must count for all
    wobble = iter([0.5 + 0.1 * (-1) ** state.process_index * e for e in range(6)])
    torch.manual_seed(0)
    normed = nn.Sequential(nn.Linear(12, 8), nn.BatchNorm1d(8), nn.Linear(8, 4))
    _, history = run(
        model=normed, epochs=6, evaluate=lambda m: {"accuracy": -next(wobble)}
    )
    result = {
        "accuracy": [epoch["accuracy"] for epoch in history.epochs],
        "buffers": [b.double().sum().item() for b in normed.buffers()],
        "weights": [p.double().sum().item() for p in normed.parameters()],
    }
    Path(f"{sys.argv[1]}.{state.process_index}").write_text(json.dumps(result))
    # a process that exits while another still talks to it may abort that one
    state.wait_for_everyone()
    state.destroy_process_group()
