"""One file format: what is saved comes back, and what can't be read says so."""

import json

import pytest
import torch
from safetensors.torch import save_file

from microbudget.core.checkpoint import load_tensors, save_tensors
from microbudget.core.errors import MicrobudgetError


def test_tensors_and_metadata_come_back(tmp_path):
    weight = torch.randn(3, 4)
    tensors = {
        "head.weight": weight,
        "embedding.weight": weight,  # tied
        "slice": weight[:, 1:],  # not contiguous
        "codes": torch.arange(-3, 3, dtype=torch.int8),
        "low": torch.randn(2).bfloat16(),
        "empty": torch.empty(0, 2),
        "none": torch.empty(0, 2),
    }
    metadata = {"classes": ["rose", "Löwenzahn"], "shape": {"heads": [1, 2]}}
    path = save_tensors(tmp_path / "new" / "model.safetensors", tensors, **metadata)
    found, notes = load_tensors(path)
    assert notes == metadata
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert torch.equal(found[name], tensor) and found[name].dtype == tensor.dtype
    assert found["head.weight"] is found["embedding.weight"]


@pytest.mark.parametrize("bad", [{"x": torch.tensor([float("nan")])}, {}])
def test_what_cannot_be_saved_leaves_the_old_file(bad, tmp_path):
    path = save_tensors(tmp_path / "m.safetensors", {"x": torch.ones(2)}, note="old")
    metadata = {} if bad else {"note": object()}
    with pytest.raises(MicrobudgetError, match=r"NaN or infinity|plain text"):
        save_tensors(path, bad, **metadata)
    assert load_tensors(path)[1] == {"note": "old"}
    assert list(tmp_path.iterdir()) == [path]


def test_files_that_are_not_ours_are_one_clear_error(tmp_path):
    path = tmp_path / "m.safetensors"
    with pytest.raises(MicrobudgetError, match="There is no file"):
        load_tensors(path)
    save_file({"x": torch.ones(1)}, path)
    with pytest.raises(MicrobudgetError, match="can't be read"):
        load_tensors(path)
    save_file({"x": torch.ones(1)}, path, metadata={"microbudget": json.dumps([])})
    with pytest.raises(MicrobudgetError, match="can't be read"):
        load_tensors(path)
    save_tensors(path, {"x": torch.ones(1000)})
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(MicrobudgetError, match="can't be read"):
        load_tensors(path)
