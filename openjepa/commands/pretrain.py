"""`openjepa pretrain`: from images and a recipe to a run folder and a verdict. The main job."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from openjepa.commands.auto import choose, told_reading, word_choices
from openjepa.data.annotations import open_for
from openjepa.data.depth import settle
from openjepa.data.fingerprint import describe_difference, fingerprint
from openjepa.data.inspect import check_number, describe_pages, describe_windows
from openjepa.data.left_out import describe_left_out, describe_skipped, write_left_out
from openjepa.data.reading import keep_levels, reading_of
from openjepa.data.skipped import SkippedFiles
from openjepa.data.sources import ImageSource, absolute_spec, open_labelled
from openjepa.engine.fp8 import require_fp8
from openjepa.engine.precision import pick_device
from openjepa.engine.world import current, join
from openjepa.evals.probe import Probe
from openjepa.health.verdict import Verdict
from openjepa.nn.encoder import Encoder
from openjepa.recipe.check import build_recipe
from openjepa.recipe.edit import with_changes
from openjepa.recipe.files import AUTO, list_recipes, load_recipe
from openjepa.recipe.sections import Recipe
from openjepa.runs.folder import RunFolder, read_json
from openjepa.runs.launch import read_launch
from openjepa.runs.lock import lock_run
from openjepa.runs.log import RunConsole
from openjepa.training.build import check_views, count_classes
from openjepa.training.hooks import ProbeEncoder
from openjepa.training.memory import settle_batch_size
from openjepa.training.prepare import describe_run, read_recorded, reopen_run
from openjepa.training.session import Session
from openjepa.weights.initial import open_initial


def pretrain(
    data: str,
    recipe: Recipe | str | None = None,
    out: str | Path = "runs/run",
    *,
    changes: Mapping[str, Any] | None = None,
    init: str | Path | None = None,
    init_encoder: str | None = None,
    resume: bool = False,
    accept_changes: bool = False,
    words: Sequence[str] = (),
    console: Console | None = None,
) -> Verdict:
    """Pretrain on images and give the verdict; everything else is in the run folder `out`.

    data: a folder, `sample:train`, or `fashion-mnist:FOLDER:train`. recipe: a Recipe, auto, a shipped name or a YAML file; on
    resume None and auto take the recorded one. changes: values of dotted keys in place of the recipe's. init: a checkpoint or
    run whose weights a new run starts from; init_encoder: the one of its encoders to start from, and nothing else. words: lines
    to say once nothing can be refused any more. Of several processes that torchrun started (docs/scale.md), the first prepares,
    writes and shows, and all train. Raises ValueError (bad input), OSError (disk), ArithmeticError (ten non-finite steps in a
    row), Interrupted.
    """
    with join() as world:
        if not world.is_first:
            return _follow(data, RunFolder(out))
        folder = RunFolder(out)
        if read_launch().restarts and folder.exists() and not resume:  # with what was asked for when it was started
            recipe, changes, init, init_encoder, resume, words = None, None, None, None, True, ()
        return _lead(
            data, recipe, folder, changes or {}, init, init_encoder, resume, accept_changes, words, console or RunConsole()
        )  # fmt: skip


def _lead(
    data: str,
    recipe: Recipe | str | None,
    folder: RunFolder,
    changes: Mapping[str, Any],
    init: str | Path | None,
    init_encoder: str | None,
    resume: bool,
    accept_changes: bool,
    words: Sequence[str],
    console: Console,
) -> Verdict:
    """Prepare the run, train, and say what came of it."""
    if resume:
        folder.require()
    if resume and init is not None:
        raise ValueError("a resumed run goes on from its own weights: drop --init, or choose another --out and drop --resume")
    if not resume and folder.exists():
        raise ValueError(f"{folder.path} already holds a run; add --resume to go on, or choose another --out")
    asked, reasons = _find_recipe(data, recipe, folder if resume else None, changes)
    folder.check_place()
    check_views(asked)
    if asked.train.fp8:
        require_fp8(pick_device(asked.train.device))
    asked, source = _open_images(data, asked, read_recorded(folder) if resume else None, console)
    check_number(len(source), source.spec)
    count_classes(asked, source)
    make_probe = _open_probe(asked)
    if asked.data.batch_size == "auto":
        if resume:
            raise ValueError("a resumed run keeps its batch size: drop data.batch_size=auto")
        asked = settle_batch_size(asked, source)
        console.print(f"The largest batch that fits: {asked.batch_size} images.", highlight=False, markup=False)
    check_world(asked)
    initial = open_initial(init, asked, init_encoder) if init is not None else None
    for line in (*words, *reasons):
        console.print(line, highlight=False, markup=False)
    # Whatever can be refused is found out before anything is written.
    if resume:
        with lock_run(folder.path):
            session = Session(asked, source, folder, reopen_run(asked, source, folder, accept_changes), console)
            session.measure_untrained(make_probe)
            session.resume()
            if session.start_step >= session.total_steps:
                session.say(f"{folder.path} is already trained to its last step, {session.total_steps}.")
                session.world.meet()
                return Verdict(**session.world.share([None, read_json(folder.verdict_json)])[1])
            session.write_facts()
            write_left_out(source, folder.left_out)
            return _train(session, folder)
    session = Session(asked, source, folder, describe_run(asked, source, initial), console)
    session.measure_untrained(make_probe)
    if initial is not None:
        session.start_from(initial)
    folder.create()
    with lock_run(folder.path):
        if folder.exists():
            raise ValueError(f"{folder.path} already holds a run, started a moment ago; choose another --out")
        session.write_facts()
        write_left_out(source, folder.left_out)
        return _train(session, folder)


def _train(session: Session, folder: RunFolder) -> Verdict:
    """Train to the end with the processes that follow, and say what could not be read on the way."""
    session.world.meet()
    session.world.share([session.recipe.model_dump(mode="json"), session.facts])
    session.share_state()
    verdict = session.train()
    skipped = SkippedFiles(folder.skipped, len(session.source)).reasons
    for line in describe_skipped(list(skipped.items()), len(session.source), folder.skipped):
        session.say(line)
    return verdict


def _follow(data: str, folder: RunFolder) -> Verdict:
    """Train with the first process, on what it has prepared and with its weights; its verdict if nothing is left to train."""
    world, silent = current(), Console(quiet=True)
    world.meet()
    values, facts = world.share([{}, {}])  # the first one's
    if values is None:
        return Verdict(**facts)
    asked = build_recipe(values)
    _, source = _open_images(data, asked, asked, silent)
    if len(source) != facts["num_images"] or describe_difference(facts["fingerprint"], fingerprint(source)):
        raise ValueError(f"{source.spec} holds other images here than where rank 0 runs; every machine must see the same")
    session = Session(asked, source, folder, facts, silent)
    session.share_state()
    return session.train()


def check_world(recipe: Recipe) -> None:
    """ValueError if the processes that are here cannot share the recipe's batch, or have no GPU each."""
    size, launch, device = current().size, read_launch(), pick_device(recipe.train.device)
    parts = size * recipe.train.accumulation_steps
    if recipe.batch_size % parts:
        less = recipe.batch_size // parts * parts
        raise ValueError(
            f"data.batch_size {recipe.batch_size} cannot be shared evenly by {size} processes with train.accumulation_steps "
            f"{recipe.train.accumulation_steps}; try {f'{less} or ' if less else ''}{less + parts}"
        )
    if size > 1 and device.type == "cuda" and (device.index is not None or launch.local_size > torch.cuda.device_count()):
        gpus = torch.cuda.device_count()
        raise ValueError(
            f"{launch.local_size} processes run here on {gpus} GPUs with train.device {recipe.train.device}: start one process "
            "for each GPU, with train.device auto or cuda"
        )


def _open_images(data: str, asked: Recipe, recorded: Recipe | None, console: Console) -> tuple[Recipe, ImageSource]:
    """The images, and the recipe with the white level that was measured on them, or on those that a resumed run began with."""
    settings = asked.data if recorded is None else keep_levels(asked.data, recorded.data)
    opened = open_for(asked.method, data, settings.channels, reading_of(settings))
    settings, source, lines = settle(settings, opened)
    for line in (*lines, *describe_left_out(source), *describe_pages(source), *describe_windows(source)):
        console.print(line[0].upper() + line[1:], highlight=False, markup=False)
    return asked.model_copy(update={"data": settings}), source


def _find_recipe(
    data: str, recipe: Recipe | str | None, resumed: RunFolder | None, changes: Mapping[str, Any]
) -> tuple[Recipe, list[str]]:
    """What is asked for: a recipe by whatever name, or a resumed run's own, with the user's changes; and what auto says of it."""
    if isinstance(recipe, Recipe):
        base = recipe
    elif resumed is not None and recipe in (None, AUTO):
        base = read_recorded(resumed)
    elif recipe == AUTO:
        base, choices = choose(data, changes.get("train.device", "auto"), told_reading(changes))
        chosen = with_changes(base, changes)
        return _with_absolute_paths(chosen), [base.description, *word_choices(choices, chosen)]
    elif recipe is None:
        raise ValueError(
            "a new run needs --recipe auto, which chooses for the images, or --recipe NAME or FILE; shipped: "
            f"{', '.join(list_recipes())}"
        )
    else:
        base = load_recipe(recipe)
    return _with_absolute_paths(with_changes(base, changes) if changes else base), []


def _with_absolute_paths(recipe: Recipe) -> Recipe:
    """The recipe with data that means the same wherever the run is resumed from."""
    if (probe := recipe.health.probe) is None:
        return recipe
    specs = {f"health.probe.{part}": absolute_spec(getattr(probe, part)) for part in ("train", "test")}
    return with_changes(recipe, specs)


def _open_probe(recipe: Recipe) -> Callable[[Encoder], ProbeEncoder] | None:
    """The probe that the recipe asks for, from the untrained encoder; None for none. ValueError if its data has no labels."""
    if (probe := recipe.health.probe) is None:
        return None
    train, test = (open_labelled(spec, recipe.data.channels, reading_of(recipe.data)) for spec in (probe.train, probe.test))
    return lambda untrained: Probe(train, test, recipe.data.size, recipe.data.channels, untrained).measure
