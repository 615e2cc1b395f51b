"""Names of the reference release's weights (facebookresearch/ijepa at 52c1ae9) and ours."""

from __future__ import annotations

PREDICTOR_NAMES = {
    "predictor_embed.": "input_proj.",
    "predictor_blocks.": "blocks.",
    "predictor_norm.": "norm.",
    "predictor_proj.": "output_proj.",
    "predictor_pos_embed": "pos_embed",
    "mask_token": "mask_token",
}


def our_name(official: str) -> str:
    """Our name for one of the release's: `encoder.x` is `context_encoder.x`; the predictor's parts are in the table above."""
    part, _, name = official.partition(".")
    if part == "encoder":
        return f"context_encoder.{name}"
    if part == "predictor":
        for theirs, ours in PREDICTOR_NAMES.items():
            if name.startswith(theirs):
                return f"predictor.{ours}{name.removeprefix(theirs)}"
    return official
