"""The command line as tests call it."""

from __future__ import annotations

import contextlib
import io
import re
import subprocess
from pathlib import Path

from openjepa import cli
from tests.zygote import start


def openjepa(
    *arguments: str | Path, check: bool = True, cwd: Path | None = None, process: bool = False
) -> subprocess.CompletedProcess[str]:
    """What a command prints and its exit status: in this process, or in one of its own."""
    words = [str(argument) for argument in arguments]
    run = _run_apart if process else _run_here
    result = run(words, cwd)
    assert not check or result.returncode == 0, result.stderr
    return result


def _run_apart(words: list[str], cwd: Path | None) -> subprocess.CompletedProcess[str]:
    process = start(*words, cwd=cwd)
    stdout, stderr = process.communicate()
    return subprocess.CompletedProcess(words, process.wait(), stdout, stderr)


def _run_here(words: list[str], cwd: Path | None) -> subprocess.CompletedProcess[str]:
    stdout, stderr, status = io.StringIO(), io.StringIO(), 0
    with contextlib.redirect_stdout(stdout), contextlib.redirect_stderr(stderr), contextlib.chdir(cwd or Path.cwd()):
        try:
            cli.main(words)
        except SystemExit as stop:
            status = stop.code if isinstance(stop.code, int) else 1 if stop.code else 0
    return subprocess.CompletedProcess(words, status, stdout.getvalue(), stderr.getvalue())


def assert_refused(result: subprocess.CompletedProcess[str], *words: str) -> None:
    """One clear line, exit status 2."""
    assert result.returncode == 2, (result.returncode, result.stderr)
    assert "Traceback" not in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1, result.stderr
    for word in words:
        assert word in result.stderr


def read_tables(markdown: str) -> list[dict[str, dict[str, str]]]:
    """The tables of a text in order: cells by the row's first cell and the heading, as Markdown shows them."""
    tables: list[dict[str, dict[str, str]]] = []
    head: list[str] = []
    for line in markdown.splitlines():
        cells = [cell.strip().replace("\\|", "|").replace("\\\\", "\\") for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        if not line.startswith("|"):
            head = []
        elif not head:
            head = cells
            tables.append({})
        elif set(line) - set("|-:"):
            tables[-1][cells[0]] = dict(zip(head, cells, strict=True))
    return tables
