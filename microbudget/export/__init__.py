"""Trained networks as files that other engines run: ONNX Runtime, OpenVINO."""
