"""Lanes: the places that predict one noise at a time, on CPU threads or on GPUs."""
