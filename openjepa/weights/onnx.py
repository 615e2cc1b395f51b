"""ONNX: one graph from images to features, checked in onnxruntime.

Input `images`, float32 in [0, 1], (batch, C, H, W): the normalization is inside the graph, so that callers cannot forget it. The
graph cannot refuse other values, as our encoder does; the input's description says what it takes, and onnxruntime refuses uint8.
Outputs `pooled` (batch, D) and `patches` (batch, down, across, D). The batch is free, the image size fixed. Weights lie in
PATH.data beside the graph, since a protobuf holds no more than 2 GB.
"""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from openjepa.nn.encoder import Encoder, EncoderOutput

OPSET = 18  # the exporter's own, and what onnxruntime has run since 1.14
INPUT = "float32 in [0, 1], (batch, channels, height, width), not normalised"
TRACED_BATCH = 2  # not 1, which the exporter would take for a constant


def write_onnx(path: Path, encoder: Encoder, facts: dict[str, Any]) -> None:
    """Write the graph, and its weights beside it."""
    _onnxruntime()
    images = torch.zeros(TRACED_BATCH, encoder.channels, *encoder.size)
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with contextlib.redirect_stdout(io.StringIO()), torch.no_grad():  # the exporter prints its progress
        program = torch.onnx.export(
            encoder, (images,), dynamo=True, opset_version=OPSET, verbose=False, input_names=["images"],
            output_names=["pooled", "patches"], dynamic_shapes=({0: torch.export.Dim("batch")},),
        )  # fmt: skip
    assert program is not None
    program.model.metadata_props.update({f"openjepa.{key}": str(value) for key, value in facts.items()})
    program.model.graph.inputs[0].doc_string = INPUT
    program.save(path, external_data=True)


def reload_onnx(path: Path) -> Callable[[Tensor], EncoderOutput]:
    """The features that onnxruntime computes from the written files, as a function of uint8 images."""
    session = _onnxruntime().InferenceSession(path, providers=["CPUExecutionProvider"])

    def features(images: Tensor) -> EncoderOutput:
        pooled, patches = session.run(["pooled", "patches"], {"images": (images.float() / 255).numpy()})
        return EncoderOutput(torch.from_numpy(pooled), torch.from_numpy(patches))

    return features


def _onnxruntime() -> Any:
    try:
        import onnxruntime
        import onnxscript  # noqa: F401 (the exporter's)
    except ImportError:
        raise ValueError("--format onnx needs onnxruntime and onnxscript: pip install 'openjepa[onnx]'") from None
    return onnxruntime
