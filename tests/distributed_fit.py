"""Run by test_training under `accelerate launch`: the same fit, on two processes."""

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from accelerate import PartialState
from test_training import run

if __name__ == "__main__":
    model, history = run(accumulate=2)
    state = PartialState()
    if state.is_main_process:
        weights = [p.double().sum().item() for p in model.parameters()]
        result = {
            "processes": state.num_processes,
            "losses": history.losses,
            "weights": weights,
        }
        Path(sys.argv[1]).write_text(json.dumps(result))
