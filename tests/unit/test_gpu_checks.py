"""The GPU checks can be asked: here of a CPU, the fastest ones."""

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def ask(*names: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"DEVICE": "cpu", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "benchmarks/gpu_checks.py", *names]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment, timeout=300)


def test_each_question_is_one_line_with_its_answer():
    done = ask("precision", "momentum_update", "fp16_overflows")
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [line["check"] for line in lines] == ["precision", "fp16_overflows", "momentum_update"]
    assert [line["passed"] for line in lines] == [None, True, True]
    for line in lines:
        assert line["card"] == "cpu" and line["versions"]["torch"]
        assert line["question"].endswith("?") and line["expected"]


def test_a_question_that_is_not_there_is_named():
    done = ask("presicion")
    assert done.returncode == 1 and "presicion" in done.stderr and "step_time" in done.stderr
