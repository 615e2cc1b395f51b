"""Recipes in the words of earlier versions: files of differences, and the whole recipes of run.json and checkpoints.

Version 0.1 recorded none; there one section held every method's keys, one mask and one view stood at the top, and the length
of a run was three keys. Options that its studies found to be of no use have gone: they read as what replaced them. What is
not of the type that it was is left where it is, to be refused where recipes are checked.
"""

from __future__ import annotations

from typing import Any, TypeGuard

Values = dict[str, Any]

_LEVELS: dict[str, Values] = {  # data.augmentation; all but none cropped and mirrored
    "none": {"crop_scale": None, "flip": 0.0, "colour": 0.0, "blur": 0.0, "solarize": 0.0},
    "minimal": {"colour": 0.0, "blur": 0.0, "solarize": 0.0},
    "moderate": {"colour": 0.8, "blur": 0.0, "solarize": 0.0},
    "strong": {"colour": 0.8, "blur": 0.5, "solarize": 0.2},
}
TODAY = {  # keys of version 0.1, and where they are now
    "mask": "views.main.mask",
    "momentum": "method.momentum",
    "data.augmentation": "views.main.crop_scale",
    "data.crop_scale": "views.main.crop_scale",
    "data.flip_probability": "views.main.flip",
    "model.predictor_width": "method.predictor.width",
    "model.predictor_depth": "method.predictor.depth",
    "model.predictor_heads": "method.predictor.heads",
    "model.predictor_positions": "method.predictor.positions",
    "method.regularizer_weight": "method.regularizer.weight",
    "method.regularizer_on": "method.regularizer.acts_on",
    "optim.warmup_epochs": "optim.warmup_frac",
    "train.epochs": "train.length",
    "train.max_steps": "train.length",
    "train.max_minutes": "train.length",
}
_WHOLE_METHOD = {  # keys of every recipe that version 0.1 recorded: it left none out
    "name", "targets", "target_input", "target_norm", "target_layers", "predict", "loss",
    "regularizer", "regularizer_on", "regularizer_weight",
}  # fmt: skip
_PIXELS = ("pixels", "pca")  # targets that were I-JEPA's as well


def migrate(values: Values, base: Values | None = None) -> Values:
    """Values of any version in today's words; those of today come back unchanged.

    base: values, in today's words, that a file of differences goes over: what version 0.1 would have found there.
    """
    if values.get("version") == 3 or not _is_old(values):
        return values
    old = {key: dict(value) if isinstance(value, dict) else value for key, value in values.items()}
    new: Values = {key: value for key, value in old.items() if key != "version"}
    _move_method(old, new, base or {})
    _move_views(old, new, base or {})
    _move_length(old, new, base or {})
    _fit_rates(new)
    return {key: value for key, value in new.items() if value != {} or key in values}


def _section(values: Values, name: str) -> dict[Any, Any]:
    """A section's values; none where there is no section."""
    found = values.get(name)
    return dict(found) if isinstance(found, dict) else {}


def _under(old: Any, today: Any) -> Any:
    """Values of an old key under those that stand at its place in today's words already, which win."""
    if today is None or not isinstance(old, dict) or not isinstance(today, dict):
        return old if today is None else today
    return old | {key: _under(old.get(key), value) for key, value in today.items()}


def _put(new: Values, name: str, section: Values) -> None:
    """Set a section, unless something that is none stands in its place."""
    if isinstance(new.get(name, {}), dict):
        new[name] = section


def _is_old(values: Values) -> bool:
    """Whether a key is there that only earlier versions had."""
    old = {
        "data": {"augmentation", "crop_scale", "flip_probability"},
        "model": {"predictor_width", "predictor_depth", "predictor_heads", "predictor_positions", "residual_rescale"},
        "method": {"target_layers", "regularizer_on", "regularizer_weight"},
        "optim": {"warmup_epochs"},
        "train": {"epochs", "max_steps", "max_minutes"},
    }
    method = _section(values, "method")
    return (
        bool({"mask", "momentum"} & values.keys())
        or any(keys & _section(values, name).keys() for name, keys in old.items())
        or isinstance(method.get("regularizer"), str)
        or _is_one_of(method.get("targets"), ("features", "pooled"))
        or (method.get("name") == "mae" and "target_norm" in method)
    )


def _is_one_of(value: Any, names: tuple[str, ...]) -> bool:
    return isinstance(value, str) and value in names


def _move_method(old: Values, new: Values, base: Values) -> None:
    """The method's own section, with its predictor, momentum and regulariser."""
    method = _section(old, "method")
    if method.get("name") == "mae" and method.keys() >= _WHOLE_METHOD and not _is_one_of(method["targets"], _PIXELS):
        method["targets"] = "pixels"  # which version 0.1 computed, and did not record
    if _is_one_of(method.get("targets"), _PIXELS):
        method["name"] = "mae"
    targets, norm = method.pop("targets", None), method.pop("target_norm", None)
    if method.get("name") == "mae":
        if targets == "pixels" or (targets is None and _is_one_of(norm, ("none", "layer"))):
            method["targets"] = "pixels" if norm == "none" else "normalised_pixels"
        elif targets is not None:
            method["targets"] = targets
        if norm is not None and not _is_one_of(norm, ("none", "layer")):
            method["target_norm"] = norm
        method.pop("target_input", None)
        new.pop("momentum", None)  # there was one for nothing
    else:
        if _is_one_of(targets, ("features", "pooled")):
            method["pool_targets"] = targets == "pooled"
        elif targets is not None:
            method["targets"] = targets
        if norm is not None:
            method["target_norm"] = "layer" if norm == "batch" else norm
        if "momentum" in new:
            method["momentum"] = _under(new.pop("momentum"), method.get("momentum"))
    method.pop("target_layers", None)
    _move_regularizer(method, _section(_section(base, "method"), "regularizer"))
    model = _section(old, "model")
    model.pop("residual_rescale", None)
    if predictor := {key.removeprefix("predictor_"): model.pop(key) for key in list(model) if key.startswith("predictor_")}:
        method["predictor"] = _under(predictor, method.get("predictor"))
    _put(new, "method", method)
    _put(new, "model", model)


def _move_regularizer(method: Values, base: Values) -> None:
    """Three keys that went together are one group, or none. It acted on pooled features where nothing else was said."""
    if isinstance(method.get("regularizer"), dict):
        return
    name, weight, place = (method.pop(key, None) for key in ("regularizer", "regularizer_weight", "regularizer_on"))
    if name == "none" or (weight == 0 and weight is not None):
        method["regularizer"] = None
    elif (name, weight, place) != (None, None, None):
        if place is None and not base:
            place = "pooled"
        found = {"name": name, "weight": weight, "acts_on": "tokens" if place == "predictions" else place}
        method["regularizer"] = {key: value for key, value in found.items() if value is not None}


def _move_views(old: Values, new: Values, base: Values) -> None:
    """The one view and its mask."""
    data, views = _section(old, "data"), _section(old, "views")
    main: Values = {}
    if "crop_scale" in data:
        main["crop_scale"] = data.pop("crop_scale")
    if "flip_probability" in data:
        main["flip"] = data.pop("flip_probability")
    if _is_one_of(data.get("augmentation"), tuple(_LEVELS)):
        level = data.pop("augmentation")
        before = _section(_section(base, "views"), "main")
        if level != "none" and "crop_scale" in before and before["crop_scale"] is None:
            main = {"crop_scale": [0.3, 1.0], "flip": 0.5} | main  # version 0.1's, which its base did not use
        main |= _LEVELS[level]
    if "mask" in new:
        main["mask"] = new.pop("mask")
    _put(new, "data", data)
    if main:
        _put(new, "views", views | {"main": _under(main, views.get("main"))})


def _move_length(old: Values, new: Values, base: Values) -> None:
    """Minutes ended a run first, then steps, then epochs. Warm-up was in epochs."""
    train, optim = _section(old, "train"), _section(old, "optim")
    epochs, steps, minutes = (train.pop(key, None) for key in ("epochs", "max_steps", "max_minutes"))
    for amount, unit in ((minutes, "minutes"), (steps, "steps"), (epochs, "epochs")):
        if amount is not None and "length" not in train:
            train["length"] = f"{amount:.12g}{unit}" if _is_number(amount) else f"{amount} {unit}"
            break
    warmup = optim.get("warmup_epochs")
    if epochs is None and str(length := _section(base, "train").get("length", "")).endswith("epochs"):
        epochs = float(length.removesuffix("epochs"))
    if _is_number(warmup) and _is_number(epochs) and epochs > 0:
        del optim["warmup_epochs"]
        optim["warmup_frac"] = min(warmup / epochs, 1.0)
    elif _is_number(warmup) and epochs is None:
        raise ValueError(
            f"optim.warmup_epochs {warmup} is a key of version 0.1: today optim.warmup_frac is the share of the run, "
            "which is not known without train.epochs beside it"
        )
    _put(new, "train", train)
    _put(new, "optim", optim)


def _fit_rates(new: Values) -> None:
    """What version 0.1 accepted and computed otherwise: rates above optim.lr, and parts of a batch that its loss needs whole."""
    optim, method, train = (_section(new, name) for name in ("optim", "method", "train"))
    lr = optim.get("lr")
    for key in ("start_lr", "final_lr"):
        if _is_number(lr) and _is_number(optim.get(key)):
            optim[key] = min(optim[key], lr)
    _put(new, "optim", optim)
    needs_whole_batch = method.get("regularizer") or method.get("targets") == "pca"
    if needs_whole_batch and "accumulation_steps" in train:
        _put(new, "train", train | {"accumulation_steps": 1})
    momentum = _section(method, "momentum")
    start, end = momentum.get("start"), momentum.get("end")
    if momentum.get("schedule") != "fixed" and _is_number(start) and _is_number(end):
        _put(new, "method", method | {"momentum": momentum | {"end": max(start, end)}})


def _is_number(value: Any) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool)
