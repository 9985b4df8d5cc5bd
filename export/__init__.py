"""Checkpoints to ONNX: the only stage that imports torch and diffusers."""
