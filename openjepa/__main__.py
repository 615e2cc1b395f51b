"""`python -m openjepa`, which is how torchrun starts it: `torchrun --nproc-per-node=8 -m openjepa pretrain ...`."""

from __future__ import annotations

from openjepa.cli import main

if __name__ == "__main__":
    main()
