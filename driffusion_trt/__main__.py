"""`python -m driffusion_trt`: the same as the `driffusion-trt` command."""

from __future__ import annotations

import sys

from .cli import main

if __name__ == "__main__":
    sys.exit(main())
