# SPDX-License-Identifier: Apache-2.0
"""Writes an ONNX graph with its model card as one file."""

import dataclasses
import os
from pathlib import Path

from zeroflow_ros.engines.model_card import METADATA_KEY, NO_CHECKSUM, ModelCard, stamp_checksum
from zeroflow_ros.engines.mono_card import MonoCard
from zeroflow_ros.engines.stereo_card import StereoCard

Card = ModelCard | StereoCard | MonoCard


def write_model(proto, card: Card, path: Path, *, key: str = METADATA_KEY) -> Card:
    """Write a graph (onnx.ModelProto) with its card inside, atomically; return the card with the checksum.

    key: of the card in the metadata.
    """
    import onnx

    card = dataclasses.replace(card, checksum=NO_CHECKSUM)
    graph = proto.graph
    for part in (proto, graph, *graph.node, *graph.value_info, *graph.input, *graph.output, *graph.initializer):
        del part.metadata_props[:]  # torch stores local source paths here
    entry = proto.metadata_props.add()
    entry.key, entry.value = key, card.to_json()
    onnx.checker.check_model(proto)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f'.{path.name}.{os.getpid()}.tmp')
    try:
        onnx.save(proto, temporary)
        card = stamp_checksum(temporary, card)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return card
