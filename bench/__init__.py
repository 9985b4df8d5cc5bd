"""Reproducible measurements; each says what it measures and writes to bench/results."""

import driffusion_trt  # noqa: F401 - before ONNX Runtime, whose telemetry it turns off
