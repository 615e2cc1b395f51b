"""One training step can be read: docs/architecture.md names the files in which it happens, and it crosses few lines."""

import inspect
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import CodeType, FrameType

import numpy as np
import pytest
from PIL import Image

import openjepa
from openjepa.data.sources import open_source
from openjepa.engine.precision import Precision
from openjepa.recipe.edit import with_changes
from openjepa.recipe.files import load_recipe
from openjepa.training.build import make_batches, make_trainer

ROOT = Path(openjepa.__file__).parent
PAGE = (ROOT.parent / "docs/architecture.md").read_text()
MOST_FILES, MOST_LINES = 12, 1300
LEAST_SHARE = 0.7  # of the lines that a step crosses, in the files of the list; the others hold a line or two each


@contextmanager
def entered() -> Iterator[set[CodeType]]:
    """The functions of openjepa that are called meanwhile."""
    found: set[CodeType] = set()

    def note(frame: FrameType, event: str, _argument: object) -> None:
        if event == "call" and frame.f_code.co_filename.startswith(str(ROOT)):
            found.add(frame.f_code)

    before = sys.getprofile()
    sys.setprofile(note)
    try:
        yield found
    finally:
        sys.setprofile(before)


def count_lines(functions: set[CodeType]) -> dict[str, int]:
    """Lines of source by file, those of a function within another once."""
    lines: dict[str, set[int]] = {}
    for code in functions:
        source, first = inspect.getsourcelines(code)
        file = Path(code.co_filename).relative_to(ROOT).with_suffix("").as_posix()
        lines.setdefault(file, set()).update(range(first, first + len(source)))
    return {file: len(numbers) for file, numbers in lines.items()}


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_step_of_the_paper_s_recipe_crosses_few_lines_in_the_files_that_the_page_lists(tmp_path: Path, precision: Precision):
    for number in range(4):
        pixels = np.random.default_rng(number).integers(0, 256, (80, 90, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{number}.jpg")
    changes = {"data.batch_size": 2, "data.workers": 0, "model.encoder": "tiny", "model.depth": 1}
    recipe = with_changes(load_recipe("paper_vit_base_16"), changes)
    trainer = make_trainer(recipe, [0.5] * 3, [0.2] * 3, 10, precision)
    source = open_source(str(tmp_path), 3)
    with entered() as functions:
        next(trainer.steps(make_batches(recipe, source, 0, 1)))
    lines = count_lines(functions)
    listed = re.findall(r"^\| \d+ \| `([\w/]+)`", PAGE, re.MULTILINE)
    assert len(listed) <= MOST_FILES
    assert set(listed) <= set(lines), "the page lists what a step does not cross"
    assert sum(lines.values()) <= MOST_LINES, lines
    if precision == "fp32":  # a CPU's bf16 has layers of its own, nn/unpadded
        assert sum(lines[file] for file in listed) >= LEAST_SHARE * sum(lines.values()), lines
