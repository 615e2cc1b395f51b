"""The table of agreement in docs/fidelity.md: how far every quantity is from the release, or from the equations, on this machine.

    python -m benchmarks.fidelity [--shared FOLDER] [--write docs/fidelity.md]

Prints Markdown; --write puts it between the file's two marks instead. The comparisons are those of tests/parity, which hold them
to their tolerances. Without the folder of golden tensors only our own golden steps are compared.
"""

from __future__ import annotations

import argparse
import platform
from pathlib import Path

import torch

from openjepa.methods.parity import PARITY
from tests.parity import agreement
from tests.parity.agreement import Agreement

BEGIN, END = "<!-- begin: python -m benchmarks.fidelity -->", "<!-- end -->"
BEGIN_METHODS = "<!-- begin: the methods, python -m benchmarks.fidelity -->"
# Batches drawn for each row of the release's mask statistics, so many that its own sampling error is most of the difference's.
MASK_BATCHES = {(14, 1): 30_000, (14, 64): 4000, (14, 256): 1500, (16, 64): 4000}


def measure_step(golden: agreement.Golden) -> list[Agreement]:
    """Every quantity of one golden step."""
    gradients = agreement.compare_gradients(golden)
    return [*agreement.compare_forward(golden), gradients, *agreement.compare_step(golden)]


def to_table(title: str, unit: str, rows: list[Agreement]) -> str:
    """A Markdown table of rows; those beyond their tolerance are in bold."""
    lines = [f"**{title}**", "", f"| quantity | compared | tolerance | largest {unit} | where |", "|---|---:|---:|---:|---|"]
    for row in rows:
        difference = f"{row.difference:.2f}" if row.tolerance >= 1 else f"{row.difference:.1e}"
        shown = difference if row.difference <= row.tolerance else f"**{difference}**"
        lines.append(f"| {row.quantity} | {row.compared} | {row.tolerance:g} | {shown} | {row.where} |")
    return "\n".join(lines)


def make_tables(shared: Path) -> str:
    """Everything that can be compared here."""
    unit, tables = "relative difference", []
    if (shared / "golden").is_dir():
        golden, facts = agreement.load_release(shared)
        tables.append(to_table("The release's step, paper recipe", unit, measure_step(golden)))
        between = agreement.compare_release_with_equations(golden)
        tables.append(to_table("The release's step itself, against the equations in float64", unit, between))
        tables.append(to_table("The release's schedules", unit, agreement.compare_schedules(facts)))
        for expected in facts["mask_statistics"]:
            grid, batch = expected["grid"], expected["batch"]
            title = f"The release's masks, {grid} x {grid} patches, batches of {batch}"
            rows, _ = agreement.compare_masks(expected, MASK_BATCHES[grid, batch])
            tables.append(to_table(title, "difference in standard errors", rows))
    for name in ("paper", "brief"):
        tables.append(to_table(f"The equations in float64, {name} recipe", unit, measure_step(agreement.load_own(name))))
    made = f"Measured with torch {torch.__version__} on {platform.machine()}, one thread, in float32."
    return "\n\n".join([made, *tables])


def list_methods() -> str:
    """How far each method was checked, as openjepa/methods/parity.py has it."""
    lines = ["| method | (a) equations | (b) another library | (c) recipe | test |", "|---|---|---|---|---|"]
    return "\n".join([*lines, *(f"| {name} | {a} | {b} | {c} | `{test}` |" for name, (a, b, c, test) in PARITY.items())])


def put_between(page: str, begin: str, text: str) -> str:
    """The page with another text between a mark and the next end. ValueError without them."""
    before, found, rest = page.partition(begin)
    _, end, after = rest.partition(END)
    if not (found and end):
        raise ValueError(f"the page lacks the marks {begin} and {END}")
    return f"{before}{begin}\n{text}\n{END}{after}"


def main() -> None:
    """Print the tables, or write them into a page."""
    parser = argparse.ArgumentParser(description="The table of agreement with the release and with the equations.")
    parser.add_argument(
        "--shared", type=Path, default=Path(__file__).resolve().parents[2] / "shared", help="golden tensors' folder"
    )
    parser.add_argument("--write", type=Path, help="a page with the two marks")
    options = parser.parse_args()
    torch.set_num_threads(1)
    tables = make_tables(options.shared)
    if options.write is None:
        print(f"{tables}\n\n{list_methods()}")
        return
    page = put_between(options.write.read_text("utf-8"), BEGIN, tables)
    options.write.write_text(put_between(page, BEGIN_METHODS, list_methods()), "utf-8")
    print(f"{options.write} rewritten")


if __name__ == "__main__":
    main()
