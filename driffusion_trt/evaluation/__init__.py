"""How good pictures are: the metrics behind `driffusion-trt eval`; torch is loaded by those that need it."""
