"""Every kind of TIFF that tests/unit/test_tiff.py can write: how many show what was written, and how many are refused by name.

    python benchmarks/tiff_sweep.py

Any other outcome is an error. Prints one JSON line for docs/reliability.md; takes a minute.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from tests.unit.test_tiff import check, sweep


def main() -> None:
    """Try them all."""
    with tempfile.TemporaryDirectory() as folder:
        outcomes = Counter(check(Path(folder), *case) for cases in sweep() for case in cases)
    print(json.dumps({"files": outcomes.total(), **outcomes}))


if __name__ == "__main__":
    main()
