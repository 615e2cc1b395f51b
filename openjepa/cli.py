"""The command line: verbs only. Parse, call, print; flags and help come from the types.

Mistakes of the user end in one line on stderr and exit status 2; an interrupted run exits with 128 + the signal's number.
"""

from __future__ import annotations

import io
import os
import re
import shlex
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated, Any, Literal, NoReturn

import tyro
from tyro.conf import Positional, arg

from openjepa.recipe import edit, files, methods, sections
from openjepa.runs.folder import to_json
from openjepa.runs.launch import read_launch
from openjepa.runs.machine import limit_threads
from openjepa.runs.paths import expand_word, user_path
from openjepa.runs.stop import Interrupted

if TYPE_CHECKING:
    from openjepa.commands.auto import Choice

DataSpec = Annotated[Positional[str], arg(metavar="DATA")]
RunPath = Annotated[Positional[str], arg(metavar="RUN")]
EncoderName = Literal["context", "target"]


def make_pretrain(changes: dict[str, Any]) -> Callable[..., None]:
    """The pretrain command with the recipe keys that the command line changes."""

    def pretrain(
        images: DataSpec,
        out: Path | None = None,
        recipe: str | None = None,
        init: Path | None = None,
        resume: bool = False,
        accept_changes: bool = False,
    ) -> None:
        """Pretrain I-JEPA, or the recipe's method, on images and say whether it learns.

        KEY=VALUE, or --KEY VALUE, changes a value of the recipe, as in train.length=30minutes optim.lr=1e-3. Groups of keys:
        data, views, model, method, optim, train, checkpoint, health; `openjepa keys` explains every key.

        Args:
            images: A folder of images (any nesting), sample:train, or fashion-mnist:FOLDER:train.
            out: The run folder to write; runs/ and the last part of DATA if not given.
            recipe: auto, which chooses for the images and this machine, a shipped recipe's name or a YAML file; see
                `openjepa recipes`. A resumed run keeps its own.
            init: A checkpoint or run folder whose weights the new run starts from; `openjepa import` makes one.
            resume: Go on from the run folder's newest checkpoint.
            accept_changes: Resume although the recipe or the number of images has changed.
        """
        from openjepa.commands.pretrain import pretrain as run_pretrain

        folder = out or default_out(images)
        verdict = run_pretrain(images, recipe, folder, changes=changes, init=init, resume=resume, accept_changes=accept_changes)
        if read_launch().rank:
            return  # the first process speaks
        print(f"{verdict.label}: {verdict.reason} {verdict.advice}")
        named = shlex.quote(str(folder))
        print(f"Next: openjepa report {named}; openjepa embed {named} DATA --out features.parquet")

    return pretrain


def make_evaluate() -> Callable[..., None]:
    """The evaluate command, whose tasks are those of the table."""
    from openjepa.commands.evaluate import evaluate as measure
    from openjepa.evals import TASKS
    from openjepa.evals.task import TaskSettings

    def evaluate(
        spec: Annotated[Positional[str], arg(metavar="ENCODER")],
        task: str,
        test: str,
        train: str | None = None,
        encoder: Literal["context", "target", "random", "pixels"] = "context",
        layers: int = 1,
        train_annotations: str | None = None,
        test_annotations: str | None = None,
        ignore_zero: bool = False,
        pictures: Path | None = None,
        accuracy: float | None = None,
        head: Literal["linear", "upernet"] = "linear",
        seed: int = 0,
        device: str = "auto",
        json: bool = False,
    ) -> None:
        """Measure an encoder on labelled images. The last line is JSON.

        Args:
            spec: A run folder or checkpoint file; random:RECIPE or random:RUN; pixels:SIZE or pixels:RUN; timm:NAME or
                timm:NAME:FILE; hf:FOLDER.
            task: TASKS. detection and instances measure a detector that finetune trained. docs/tasks.md says what each computes.
            test: Labelled data to test on, once.
            train: Labelled data to fit on; class sub-folders give labels. Of detection and instances: nothing is fitted.
            encoder: Which encoder of a run; random is the untrained one, pixels the raw image.
            layers: How many last layers of the encoder pooled features are of; the paper takes 1 or 4.
            train_annotations: Of segmentation: a COCO file, or a folder of label maps, where none lies beside the images.
            test_annotations: The same, of the test images; of anomaly, the folder of label maps of defects.
            ignore_zero: Of segmentation: ignore 0 in label maps (ADE20K), else the background; 255 is always ignored.
            pictures: Of segmentation: a folder for pictures of test images, each beside its truth and its prediction.
            accuracy: What labels-needed asks for, as in 0.9; 95 % of what all labels give if not given.
            head: Of segmentation: linear, or upernet, which sees four scales and costs far more.
            seed: Of what a task draws: held-out images, first weights, labelled images, noise.
            device: auto, cpu, cuda or cuda:N.
            json: Print the JSON line alone.
        """
        settings = TaskSettings(layers, train_annotations, test_annotations, ignore_zero, pictures, accuracy, head)
        record = measure(spec, task, train, test, encoder, layers=layers, settings=settings, seed=seed, device=device)
        if not json:
            if not record.get("unit"):
                interval = "" if record["interval"] is None else " (95 % interval {:.2%} to {:.2%})".format(*record["interval"])
                print(f"{task} {record['main']} of {record['encoder']}: {record[record['main']]:.2%}{interval}")
            if "words" in record:
                print(record["words"])
        print(_to_json(record))

    titles = "; ".join(f"{name}: {row.title}" for name, row in TASKS.items())
    evaluate.__doc__ = (evaluate.__doc__ or "").replace("TASKS", titles)
    choices: Any = Literal[(*TASKS, *methods.DETECTION_TASKS)]
    evaluate.__annotations__["task"] = Annotated[choices, arg(aliases=["--protocol"])]  # what version 0.1 called it
    return evaluate


def describe_evaluate() -> None:
    """Measure an encoder on labelled images. The last line is JSON."""  # without the table of tasks, which takes seconds


def make_finetune(changes: dict[str, Any]) -> Callable[..., None]:
    """The finetune command with the recipe keys that the command line changes."""

    def finetune(
        spec: Annotated[Positional[str], arg(metavar="ENCODER")],
        train: str,
        test: str,
        out: Path,
        task: Literal["classification", "detection", "instances"] = "classification",
        encoder: EncoderName = "context",
        recipe: str = files.AUTO,
        resume: bool = False,
        json: bool = False,
    ) -> None:
        """Train an encoder on labelled images and measure it on others. The last line is JSON.

        KEY=VALUE changes a value of the recipe, as in optim.lr=1e-4; `openjepa keys --recipe finetune` explains them.

        Args:
            spec: A run folder or checkpoint file to start from; random:RECIPE or random:RUN for a fresh encoder of that shape.
            train: Labelled data to train on; class sub-folders give labels. few:10:0:DATA takes 10 images of each class, draw 0.
                Of detection and instances: a folder of images with a COCO file beside or in it; few:100:0:DATA takes 100 images.
            test: Labelled data to measure on, once.
            out: The run folder to write; report, evaluate, embed, export and predict take it.
            task: What to train for: classification, detection (boxes) or instances (boxes and masks).
            encoder: Which encoder of a run.
            recipe: auto, which fits the settings to the number of labels, a shipped recipe's name or a YAML file.
            resume: Go on from the run folder's newest checkpoint.
            json: Print the JSON line alone.
        """
        from openjepa.commands.finetune import finetune as tune

        verdict, record = tune(spec, train, test, out, task, encoder=encoder, recipe=recipe, changes=changes, resume=resume)
        if not json:
            interval = "" if record["interval"] is None else " (95 % interval {:.2%} to {:.2%})".format(*record["interval"])
            print(f"{verdict.label}: {verdict.reason}")
            print(f"{task} {record['main']} on {record['num_test']} test images: {record[record['main']]:.2%}{interval}")
            print(record["words"]) if "words" in record else None
            file = "predictions.csv" if task == "classification" else "found.json"
            print(f"Next: openjepa report {out}; openjepa predict {out} IMAGES --out {file}")
        print(_to_json(record))

    return finetune


def predict(run: RunPath, images: DataSpec, out: Path, device: str = "auto") -> None:
    """Write the class of every image, or the objects in it, by a run of openjepa finetune.

    Args:
        run: A run folder or checkpoint file that holds a classifier or a detector.
        images: A folder of images, sample:train, or fashion-mnist:FOLDER:train.
        out: The file to write. Of a classifier, .csv or .parquet: columns path, label (where the images have one), predicted,
            probability. Of a detector, .json: a COCO file; pictures go into the folder of that name.
        device: auto, cpu, cuda or cuda:N.
    """
    from openjepa.commands.predict import predict as write

    rows = write(run, images, out, device)
    print(f"{rows} {'objects' if out.suffix.lower() == '.json' else 'rows'} in {out}")


def embed(
    run: RunPath, images: DataSpec, out: Path, encoder: EncoderName = "context", layers: int = 1, device: str = "auto"
) -> None:
    """Write one feature vector per image to a Parquet file.

    Args:
        run: A run folder or a checkpoint file.
        images: A folder of images, sample:train, or fashion-mnist:FOLDER:train.
        out: The .parquet file to write: columns path, label, features.
        encoder: Which encoder.
        layers: How many last layers the features are of, one after another.
        device: auto, cpu, cuda or cuda:N.
    """
    from openjepa.commands.embed import embed as write

    rows = write(run, images, out, encoder, device, layers)
    print(f"{rows} rows in {out}")


def energy(
    run: RunPath,
    images: DataSpec,
    out: Path,
    share: float = 0.05,
    most_draws: int = 64,
    maps: int = 24,
    defects: bool = False,
    annotations: str | None = None,
    normal: str | None = None,
    mae: Path | None = None,
    seed: int = 0,
    device: str = "auto",
) -> None:
    """Write how badly a run predicts hidden patches of each image and each patch, averaged over masks, with heat maps.

    Args:
        run: A run folder or checkpoint file of a method that predicts hidden patches: ijepa or mae.
        images: A folder of images, sample:train, or fashion-mnist:FOLDER:train.
        out: The new folder: energy.parquet, patches.parquet and maps/.
        share: Masks are drawn until the standard error of an image's energy is this share of it.
        most_draws: The largest number of masks of an image.
        maps: How many images are drawn, those of the highest energy.
        defects: IMAGES has a class folder normal or good and others, of defects: score how well the energy tells them apart.
        annotations: With --defects, the folder of label maps of defects, where none is found beside IMAGES.
        normal: With --defects, normal training images; the distance to the nearest of them is scored too.
        mae: With --defects, a run of MAE whose energies are scored too.
        seed: Of the masks.
        device: auto, cpu, cuda or cuda:N.
    """
    from openjepa.commands.energy import Defects
    from openjepa.commands.energy import energy as measure
    from openjepa.evals.energy import Drawing

    asked = Defects(annotations, normal, mae)
    if not defects and asked != Defects():
        raise ValueError("--annotations, --normal and --mae are for scores of defects: add --defects")
    drawing = Drawing(share, most_draws, seed)
    for line in measure(run, images, out, drawing=drawing, maps=maps, defects=asked if defects else None, device=device):
        print(line)


def import_weights(
    file: Annotated[Positional[Path], arg(metavar="FILE")],
    out: Path,
    encoder: EncoderName | None = None,
    heads: int | None = None,
    to_float32: bool = False,
) -> None:
    """Make a checkpoint from the release's .pth.tar, a Hugging Face I-JEPA folder or a timm state dict.

    Args:
        file: The file or folder to read; nothing in it is run.
        out: The checkpoint file to write; evaluate, embed, export and pretrain --init take it.
        encoder: Of a release checkpoint, keep this encoder alone (both and the predictor if not given); of a file that holds one
            encoder, which one it is (context if not given).
        heads: Attention heads, where neither the file nor the width tells.
        to_float32: Convert float16 or bfloat16 weights.
    """
    from openjepa.commands.convert import import_weights as bring_in

    for line in bring_in(file, out, encoder=encoder, heads=heads, to_float32=to_float32):
        print(line)


def export(
    run: RunPath, format: Literal["hf", "timm", "onnx", "safetensors"], out: Path, encoder: EncoderName = "context"
) -> None:
    """Write an encoder for another library, and compare its features there with ours on real images.

    Args:
        run: A run folder or a checkpoint file.
        format: hf (a folder for transformers), timm (a state dict), onnx, or safetensors (plain weights).
        out: The file or, for hf, folder to write.
        encoder: Which encoder.
    """
    from openjepa.commands.convert import FORMATS, describe_files
    from openjepa.commands.convert import export as write

    agreement = write(run, format, out, encoder=encoder)
    print(f"{encoder} encoder in {describe_files(format, out)}")
    print(agreement.describe(FORMATS[format].library))


def masks(recipe: str, out: Path, seed: int = 0, batch_size: int = 256) -> None:
    """Draw sampled masks and their measured coverage; no training. Multiblock masks are shown beside the reference release's.

    Args:
        recipe: A shipped recipe's name or a YAML file.
        out: The PNG file to write.
        seed: Of the masks.
        batch_size: Images a process draws at once: the release cuts every context to the shortest of them.
    """
    from openjepa.report.masks import draw_sheets, save_mask_picture

    loaded = files.load_recipe(recipe)
    if loaded.mask is None:
        raise ValueError(f"recipe {loaded.name} hides no patches: method.name {loaded.method.name} has no masks")
    grid = loaded.grid
    sheets, missing = draw_sheets(loaded.mask, grid, seed=seed, batch_size=batch_size)
    save_mask_picture(out, sheets, grid, title=loaded.name)
    print(f"{loaded.name}, {grid[0]} x {grid[1]} patches")
    for sheet in sheets:
        print(f"{sheet.title}: {sheet.caption.replace(chr(0xA0), ' ')}; {sheet.rows}")
    if missing:
        print(missing)
    print(out)


def report(run: RunPath, device: str = "auto", out: Path | None = None) -> None:
    """Write RUN/report.html: verdict, probes, curves, masks, feature maps, neighbours, in one file.

    Args:
        run: A run folder.
        device: auto, cpu, cuda or cuda:N; what computes the features that are drawn.
        out: The HTML file to write in place of RUN/report.html, as for a run in a folder that is not yours to write.
    """
    from openjepa.commands.report import write_report

    print(write_report(run, device, out))


def health(run: RunPath, all: bool = False) -> None:
    """Replay the verdicts of a run from its recorded measurements, by today's rules; the last line is the present one.

    Args:
        run: A run folder.
        all: A line for every measurement, not only where the verdict changes.
    """
    from openjepa.commands.health import replay_verdicts

    for line in replay_verdicts(run, every=all):
        print(line)


def recipes(name: Annotated[Positional[str | None], arg(metavar="NAME")] = None) -> None:
    """List the shipped recipes, or print one fully resolved.

    Args:
        name: A shipped recipe's name or a YAML file.
    """
    if name is not None:
        print(files.to_yaml(files.load_recipe(name)), end="")
        return
    print(f"{files.AUTO:24} Chosen for your images and this machine, with reasons: openjepa doctor DATA --recipe auto.")
    for shipped in files.list_recipes():
        print(f"{shipped:24} {files.load_recipe(shipped).description}")


def keys(prefix: Annotated[Positional[str], arg(metavar="KEY")] = "", recipe: str | None = None) -> None:
    """Explain the keys of recipes: each with its value and what it is. They go into YAML files, or on pretrain's command line.

    Args:
        prefix: A key, or the start of one, as optim or views.main.mask; all keys if not given.
        recipe: A shipped recipe's name or a YAML file, whose values and method's keys are shown; the defaults of all methods if
            not given.
    """
    from openjepa.recipe.explain import explain_keys

    for line in explain_keys(prefix, None if recipe is None else files.load_recipe(recipe)):
        print(line)


def make_doctor(changes: dict[str, Any]) -> Callable[..., None]:
    """The doctor command with the recipe keys that the command line changes."""

    def doctor(images: DataSpec, recipe: str = "demo", sheet: Path | None = None) -> None:
        """Look at the data, check that a recipe fits it, and measure how long and how much memory it takes.

        Draws a contact sheet of the first images as the model will see them. KEY=VALUE changes a value of the recipe, as in
        data.channels=5 or data.layout=channels_first.

        Args:
            images: A folder of images, sample:train, or fashion-mnist:FOLDER:train.
            recipe: auto, a shipped recipe's name or a YAML file.
            sheet: The PNG file of the contact sheet; in runs/, named like the data, if not given. Only an earlier contact sheet
                is overwritten.
        """
        from openjepa.commands.doctor import examine

        folder = default_out(images)
        path = sheet or folder.with_name(f"{folder.name}.contact-sheet.png")
        for line in examine(images, _choose_or_load(recipe, images, changes), path):
            print(line)

    return doctor


def bench(recipe: str = "demo", data: str = "sample:train") -> None:
    """Measure this machine: its peak, a recipe's step and loader, what holds them back, and how long the recipe would take.

    Args:
        recipe: auto, a shipped recipe's name or a YAML file.
        data: Images to measure with: a folder, sample:train, or fashion-mnist:FOLDER:train.
    """
    from openjepa.commands.bench import measure_machine

    for line in measure_machine(data, _choose_or_load(recipe, data)):
        print(line, flush=True)


def pack(
    images: DataSpec,
    out: Annotated[Positional[Path], arg(metavar="OUT")],
    size: int = 384,
    channels: int = 3,
    workers: int | None = None,
    white_level: str = "auto",
    layout: Literal["channels_last", "channels_first"] = "channels_last",
    pages: Literal["first", "all"] = "first",
    window: Literal["file", "ignore"] = "file",
) -> None:
    """Decode images once, for runs of many epochs: OUT then serves as DATA wherever the folder did, and loads faster.

    Args:
        images: A folder of images.
        out: The folder to write; it must not exist.
        size: Longest shorter side in pixels; smaller images stay as they are. 1.5 to 2 times the training view keeps its detail.
        channels: Image channels, 3 for colour and 1 for grey.
        workers: Processes that decode; as many as there are cores for this process if not given.
        white_level: Value shown white in images of more than 8 bits; auto measures it.
        layout: Of .npy arrays of three dimensions: (height, width, channels), or channels first.
        pages: Of TIFF and DICOM files: the first page or frame, or all of them, each an image.
        window: Of DICOM files: shown by the window that each states, or all by the white level.
    """
    from openjepa.data.depth import settle
    from openjepa.data.left_out import describe_left_out, write_left_out
    from openjepa.data.pack import require_new, write_pack
    from openjepa.data.reading import reading_of
    from openjepa.data.sources import open_source
    from openjepa.runs.machine import count_cores

    require_new(out)
    told = {"channels": channels, "white_level": white_level, "layout": layout, "pages": pages, "window": window}
    settings = sections.Data.model_validate(told)
    _, source, lines = settle(settings, open_source(images, channels, reading_of(settings)))
    for line in (*lines, *describe_left_out(source)):
        print(f"openjepa: {source.spec}: {line}", file=sys.stderr)
    packed = write_pack(source, out, size, count_cores() if workers is None else workers)
    write_left_out(source, out / "left_out.txt")
    left_out = f"; {packed.num_skipped} could not be read, see {out / 'skipped.txt'}" if packed.num_skipped else ""
    print(f"{packed.num_images} images, {packed.num_bytes / 1e9:.2f} GB in {out}{left_out}")


def demo(out: Path = Path("runs/demo"), minutes: float | None = None) -> None:
    """Pretrain on the embedded sample, evaluate, report: what `make demo` runs.

    Args:
        out: The run folder to write; an earlier demo there is replaced.
        minutes: Training time; the demo recipe's if not given.
    """
    from openjepa.commands.demo import run_demo

    run_demo(out, minutes)


def make_scenes(
    out: Annotated[Positional[Path], arg(metavar="OUT")],
    train: int = 10_000,
    test: int = 2_000,
    size: int = 64,
    seed: int = 0,
    defects: float = 0.0,
) -> None:
    """Draw a labelled data set of textured scenes, with COCO boxes and masks: docs/scenes.md.

    Args:
        out: The new folder: OUT/train and OUT/test hold one sub-folder a class, OUT/annotations train.json and test.json.
        train: Training images.
        test: Test images; none of them is among the training images.
        size: Pixels a side.
        seed: Of everything that is drawn.
        defects: Share of the test scenes that have a defect in OUT/defects, which holds all of them again, with label maps.
    """
    from openjepa.data.scenes.make import make_scenes as make

    make(out, train=train, test=test, size=size, seed=seed, defects=defects)
    print(f"{train} training and {test} test scenes in {out}")
    print(f"Next: openjepa doctor {out / 'train'}; labels are the folders, boxes and masks are in {out / 'annotations'}")


def make_compare(changes: dict[str, Any], command: str) -> Callable[..., None]:
    """The compare command with the recipe keys that the command line changes in all rows; command: as the user wrote it."""

    def compare(
        rows: Annotated[Positional[tuple[str, ...]], arg(metavar="ROW")],
        data: str,
        out: Path,
        test: str | None = None,
        labels: str | None = None,
        tasks: str = "knn,linear",
        minutes: float | None = None,
        steps: int | None = None,
        images: int | None = None,
        seeds: str = "0,1,2",
        reference: str | None = None,
    ) -> None:
        """Compare recipes, methods, runs and other encoders: same images, encoder, budget, seeds and tasks, in one table.

        The same command goes on with what was interrupted. Rows, seeds, tasks and other test images can be added to OUT; a row
        whose recipe or training images changed is refused. KEY=VALUE changes a value of all rows that are trained.

        Args:
            rows: A recipe's name or file, a method (its small recipe) or auto, each also as NAME,KEY=VALUE,...: trained with
                every seed, all with the encoder of the first. random:ROW and pixels:ROW: what such a row starts from, and sees.
                Only measured: a run folder or checkpoint file, timm:NAME, timm:NAME:FILE, hf:FOLDER.
            data: Images that runs see without labels; class sub-folders give the labels that supervised training and tasks need.
            out: The folder to write: table.md, compare.html, results.parquet, and a run folder for each row and seed.
            test: Labelled images to test on; the test part beside the labels if not given.
            labels: Labelled images to fit tasks on; those of DATA if not given.
            tasks: Tasks of `openjepa evaluate` between commas; linear:4 is of the last four layers.
            minutes: Training time of each run; this or steps or images.
            steps: Optimizer steps of each run.
            images: Images that each run sees.
            seeds: Seeds between commas.
            reference: The row that others are compared with, seed by seed; the first if not given.
        """
        from openjepa.commands.compare import compare as run_rows
        from openjepa.commands.compare import read_seeds
        from openjepa.commands.rows import Budget

        print(run_rows(
            rows, data, out, tasks=tasks, budget=Budget(minutes, steps, images), seeds=read_seeds(seeds), changes=changes,
            labels=labels, test=test, reference=reference, command=command,
            note=lambda line: print(line, file=sys.stderr, flush=True),
        ), end="")  # fmt: skip

    return compare


def ablate(
    table: Annotated[Positional[Literal["masking", "target", "momentum", "predictor", "augmentation"]], arg(metavar="TABLE")],
    data: str,
    out: Path,
    labels: str | None = None,
    test: str | None = None,
    recipe: str = "demo",
    minutes: float | None = None,
    steps: int | None = None,
    seeds: int = 3,
    jobs: int = 1,
) -> None:
    """Run one of the brief's ablations on labelled images and print its table, with spread and the brief's claim beside it.

    Args:
        table: masking, target, momentum, predictor or augmentation.
        data: Images: what the runs are trained on, without labels.
        out: The folder to write: a run folder for each row and seed, and table.md. What is there already is not run again.
        labels: Labelled images to fit the probes on; those of DATA if not given.
        test: Labelled images to test the probes on; the test part beside the labels if not given.
        recipe: The recipe whose keys the rows change: a shipped one's name or a YAML file.
        minutes: Training time of each run.
        steps: Optimizer steps of each run, in place of minutes.
        seeds: Runs of each row.
        jobs: Runs at the same time; they share the machine's cores.
    """
    from openjepa.commands.ablate import ablate as run_rows
    from openjepa.commands.compare import find_test

    base = files.load_recipe(recipe)
    print(run_rows(
        table, base, data, find_test(labels or data, test), out, seeds=seeds, labels=labels, minutes=minutes, steps=steps,
        jobs=jobs, note=lambda line: print(line, file=sys.stderr, flush=True),
    ), end="")  # fmt: skip


def main(argv: list[str] | None = None) -> None:
    """Entry point of the `openjepa` command."""
    arguments = sys.argv[1:] if argv is None else argv
    limit_threads()
    for stream in (sys.stdout, sys.stderr):  # paths may hold bytes that no encoding has
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        arguments = [expand_word(word) for word in arguments]
        verb, words = arguments[0] if arguments else "", shlex.join(["openjepa", *arguments])
        if (launch := read_launch()).size > 1 and verb != "pretrain":
            if launch.rank:
                sys.exit(2)
            _fail(f"{verb or 'openjepa'} runs in one process: start it without torchrun, which is for pretrain")
        arguments, assignments = split_assignments(arguments) if verb in _WITH_RECIPE else (arguments, [])
        commands: dict[str, Callable[..., Any]] = {
            "pretrain": make_pretrain(edit.read_assignments(assignments)),
            "finetune": make_finetune(edit.read_assignments(assignments)), "predict": predict,
            "evaluate": make_evaluate() if verb == "evaluate" else describe_evaluate, "embed": embed,
            "energy": energy,
            "import": import_weights, "export": export, "masks": masks, "report": report, "health": health, "recipes": recipes,
            "keys": keys,
            "doctor": make_doctor(edit.read_assignments(assignments)),
            "bench": bench, "pack": pack, "make-scenes": make_scenes,
            "compare": make_compare(edit.read_assignments(assignments), words), "ablate": ablate, "demo": demo,
        }  # fmt: skip
        shown = {name: command if name == verb else _named_only(command) for name, command in commands.items()}
        tyro.extras.subcommand_cli_from_dict(shown, prog="openjepa", args=arguments, description=_DESCRIPTION)
        print(end="", flush=True)  # here, where a reader that went away can be told from a mistake
    except BrokenPipeError:
        _leave(128 + signal.SIGPIPE)  # the reader of our output went away, as `| head` does
    except (ValueError, OSError, ArithmeticError) as error:
        _fail(str(error))
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):  # which PyTorch raises wherever the program is just then
            raise
        from openjepa.data.workers import WORKER_DIED

        _fail(WORKER_DIED)
    except KeyboardInterrupt:
        _fail("interrupted", status=130)
    except Interrupted as stop:
        how = "the same command goes on" if verb in _REPEATABLE else "add --resume to go on"
        _fail(f"stopped before step {stop.step}, state saved; {how}", status=128 + stop.signal_number)


_DESCRIPTION = "I-JEPA on your own images: from a folder to features, and the truth about whether it is learning."


def _named_only(command: Callable[..., Any]) -> Callable[[], None]:
    """A stand-in with a command's description and none of its flags, which are slow to turn into a parser."""

    def stand_in() -> None:
        raise AssertionError("only the command asked for is called")

    stand_in.__doc__ = (command.__doc__ or "").partition("\n")[0]
    return stand_in


def split_assignments(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """The words of a command line without those that change a recipe, and these as KEY=VALUE.

    `--data.batch-size 64`, `--data.batch-size=64` and `data.batch_size=64` mean the same; `--train.compile` alone means true.
    """
    rest: list[str] = []
    assignments: list[str] = []
    words = list(arguments)
    while words:
        word = words.pop(0)
        key, sign, value = word.removeprefix("--").partition("=")
        if word in _WITH_VALUE:
            rest += [word, *words[:1]]
            del words[:1]
        elif word.startswith("--") and "." in key:
            if not sign:
                value = words.pop(0) if words and not words[0].startswith("--") else "true"
            assignments.append(f"{key}={value}")
        elif sign and _KEY.fullmatch(key) and not word.startswith("-") and not Path(word).exists():
            assignments.append(word)
        else:
            rest.append(word)
    return rest, assignments


_WITH_RECIPE = ("pretrain", "finetune", "compare", "doctor")  # commands that take values of a recipe
_REPEATABLE = ("compare", "ablate")  # commands that go on where they stopped
# Their flags whose next word is the flag's, whatever it looks like.
_WITH_VALUE = (
    "--out", "--recipe", "--init", "--train", "--test", "--task", "--encoder", "--data", "--labels", "--reference", "--sheet"
)  # fmt: skip
_KEY = re.compile(r"[a-z_]+(\.[\w-]+)*")


def default_out(data: str) -> Path:
    """The run folder of data that none is named for: runs/ and the folder's name, or the words of sample:train."""
    path = user_path(data)
    name = path.resolve().name if path.is_dir() else data
    return Path("runs") / (re.sub(r"[^\w.-]+", "-", name).strip("-.") or "run")


def _choose_or_load(recipe: str, data: str, changes: Mapping[str, Any] = MappingProxyType({})) -> sections.Recipe:
    """A recipe by name or file, with changes; auto is chosen for the data, and its choices are printed."""
    if recipe != files.AUTO:
        return edit.with_changes(files.load_recipe(recipe), changes)
    from openjepa.commands.auto import choose, told_reading

    chosen, choices = choose(data, changes.get("train.device", "auto"), told_reading(changes))
    chosen = edit.with_changes(chosen, changes)
    _print_choices(choices, chosen)
    return chosen


def _print_choices(choices: Sequence[Choice], recipe: sections.Recipe) -> None:
    """The choices of recipe auto, a line each; a value that a flag has replaced is said to be."""
    if choices:
        from openjepa.commands.auto import word_choices

        print(recipe.description)
        print("\n".join(word_choices(list(choices), recipe)), flush=True)


def _to_json(record: dict[str, Any]) -> str:
    return to_json({record["main"]: record[record["main"]]} | record)


def _fail(message: str, status: int = 2) -> None:
    """One line on stderr and an exit status."""
    line = " ".join(part for part in re.split(r"[\r\n]+[ \t]*", message) if part)
    try:
        print(f"openjepa: {line}", file=sys.stderr, flush=True)
    except OSError:
        _leave(status)  # the terminal is gone
    sys.exit(status)


def _leave(status: int) -> NoReturn:
    """Exit where nobody reads any longer: Python would complain when it empties what is left to write."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):  # ValueError: the stream has no file
            os.dup2(nowhere, stream.fileno())
    sys.exit(status)


if __name__ == "__main__":
    main()
