"""Weights as small whole numbers: grids, GPTQ, packing, checkpoints, GGUF."""
