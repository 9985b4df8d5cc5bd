"""What modes and baselines take and give on this machine, measured side by side: `driffusion-trt bench`."""
