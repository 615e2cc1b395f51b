"""`openjepa pretrain`: from images and a recipe to a run folder and a verdict. The main job."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from rich.console import Console

from openjepa.commands.auto import choose
from openjepa.data.inspect import check_number
from openjepa.data.sources import open_labelled, open_source
from openjepa.engine.fp8 import require_fp8
from openjepa.engine.precision import pick_device
from openjepa.evals.probe import Probe
from openjepa.health.verdict import Verdict
from openjepa.masks import check_masks
from openjepa.nn.encoder import Encoder
from openjepa.recipe.files import AUTO, build_recipe, load_recipe
from openjepa.recipe.sections import Recipe
from openjepa.runs.folder import RunFolder, read_json
from openjepa.runs.lock import lock_run
from openjepa.training.hooks import ProbeEncoder
from openjepa.training.memory import find_batch_size, with_batch_size
from openjepa.training.prepare import describe_run, reopen_run
from openjepa.training.session import Session
from openjepa.weights.initial import open_initial


def pretrain(
    data: str,
    recipe: Recipe | str | None = None,
    out: str | Path = "runs/run",
    *,
    init: str | Path | None = None,
    batch: Literal["auto"] | None = None,
    resume: bool = False,
    accept_changes: bool = False,
    probe_train: str | None = None,
    probe_test: str | None = None,
    console: Console | None = None,
) -> Verdict:
    """Pretrain on images and give the verdict; everything else is in the run folder `out`.

    data: a folder, `sample:train`, or `fashion-mnist:FOLDER:train`. recipe: a Recipe, auto, a shipped name or a YAML file; on
    resume None and auto take the recorded one. init: a checkpoint or run whose weights a new run starts from. batch: auto takes
    the largest that fits in place of the recipe's. probe_train and probe_test: labelled data for a 20-NN probe while training.
    Raises ValueError (bad input), OSError (disk), ArithmeticError (ten non-finite steps in a row), Interrupted.
    """
    console = console or Console(stderr=True, soft_wrap=True)
    folder = RunFolder(out)
    if recipe == AUTO:
        recipe = None if resume else choose(data)[0]
    recipe = load_recipe(recipe) if isinstance(recipe, str) else recipe
    if (probe_train is None) != (probe_test is None):
        raise ValueError("a probe needs both --probe-train and --probe-test")
    if resume and init is not None:
        raise ValueError("a resumed run goes on from its own weights: drop --init, or choose another --out and drop --resume")
    if resume:
        recorded = build_recipe(folder.read_run()["recipe"], where=str(folder.run_json))
    elif folder.exists():
        raise ValueError(f"{folder.path} already holds a run; add --resume to go on, or choose another --out")
    elif recipe is None:
        raise ValueError("a new run needs --recipe auto, NAME or FILE; `openjepa recipes` lists them")
    folder.check_place()
    asked = recipe or recorded
    check_masks(asked.mask, asked.grid)
    if asked.train.fp8:
        require_fp8(pick_device(asked.train.device))
    source = open_source(data, asked.data.channels)
    check_number(len(source), source.spec)
    labelled = [open_labelled(spec, asked.data.channels) for spec in (probe_train, probe_test) if spec]

    def make_probe(untrained: Encoder) -> ProbeEncoder:
        return Probe(labelled[0], labelled[1], asked.data.size, asked.data.channels, untrained).measure

    if batch == "auto":
        if resume:
            raise ValueError("a resumed run keeps its batch size: drop --batch auto")
        asked = with_batch_size(asked, find_batch_size(asked, len(source)))
        console.print(f"The largest batch that fits: {asked.data.batch_size} images.", highlight=False, markup=False)
    initial = open_initial(init, asked) if init is not None else None
    # Whatever can be refused is found out before anything is written.
    if resume:
        with lock_run(folder.path):
            session = Session(asked, source, folder, reopen_run(recipe, source, folder, accept_changes), console)
            session.measure_untrained(make_probe if labelled else None)
            session.resume()
            if session.start_step >= session.total_steps:
                session.say(f"{folder.path} is already trained to its last step, {session.total_steps}.")
                return Verdict(**read_json(folder.verdict_json))
            session.write_facts()
            return session.train()
    session = Session(asked, source, folder, describe_run(asked, source, initial), console)
    session.measure_untrained(make_probe if labelled else None)
    if initial is not None:
        session.start_from(initial)
    folder.create()
    with lock_run(folder.path):
        if folder.exists():
            raise ValueError(f"{folder.path} already holds a run, started a moment ago; choose another --out")
        session.write_facts()
        return session.train()
