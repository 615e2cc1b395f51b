"""docs/fidelity.md tells the truth: its table is the one that is measured, and every test and switch it names is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from benchmarks.fidelity import BEGIN, BEGIN_METHODS, END, list_methods, make_tables
from openjepa.methods.parity import PARITY, Parity
from openjepa.recipe.check import recipe_keys
from openjepa.recipe.files import list_recipes
from openjepa.recipe.methods import SECTIONS

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "fidelity.md").read_text("utf-8")


def read_rows(text: str) -> list[tuple[str, str, str, float]]:
    """(quantity, compared, tolerance, difference) of every row of every table of agreement."""
    rows = re.findall(r"^\| (.+?) \| (\d+) \| (\S+) \| \**([\d.e+-]+)\** \| .+ \|$", text, re.MULTILINE)
    return [(quantity, compared, tolerance, float(difference)) for quantity, compared, tolerance, difference in rows]


def test_the_table_is_the_one_that_is_measured():
    """Same quantities and tolerances, in order, and each within its tolerance: here those that need no golden tensors."""
    table = PAGE.partition(BEGIN)[2].partition(END)[0]
    written, measured = read_rows(table), read_rows(make_tables(Path("nowhere")))
    assert len(measured) == 22 and len(written) == 22 + 11 + 3 + 3 + 4 * 5
    assert [row[:3] for row in written[-22:]] == [row[:3] for row in measured]
    for quantity, _, tolerance, difference in [*written, *measured]:
        assert difference <= float(tolerance), quantity


def test_every_method_says_how_far_it_was_checked():
    assert PARITY.keys() == SECTIONS.keys()
    assert PAGE.partition(BEGIN_METHODS)[2].partition(END)[0].strip() == list_methods()
    for parity in PARITY.values():
        place = parity.test if "/" in parity.test else f"tests/parity/{parity.test}"
        assert (ROOT / place).is_file(), place


def test_a_status_claims_no_more_than_was_checked():
    assert Parity("no", "no; not yet", "no", "").status == "not checked"
    assert Parity("yes", "no", "partly from memory", "").status == "equations, recipe in part"
    assert Parity("loss alone", "yes: lightly", "no", "").status == "equations in part, another library"


def test_what_the_page_names_is_there():
    tests = re.findall(r"`(tests/[\w/]+\.py)`", PAGE)
    assert len(set(tests)) > 8
    for path in {*tests, *re.findall(r"\]\(\.\./([\w/.]+)\)", PAGE)}:
        assert (ROOT / path).is_file(), path
    sources = "".join(path.read_text("utf-8") for path in (ROOT / "tests").rglob("test_*.py"))
    for name in re.findall(r"`(test_\w+)`", PAGE):
        assert f"def {name}(" in sources, name


@pytest.mark.parametrize("switch", sorted(set(re.findall(r"`((?:mask|views|model|method|optim)(?:\.\w+)+)`", PAGE))))
def test_every_switch_is_a_key_of_a_recipe(switch: str):
    assert switch in recipe_keys()


def test_every_recipe_the_page_names_is_shipped():
    for name in re.findall(r"`((?:brief|paper)_\w+)`", PAGE):
        assert name in list_recipes()
