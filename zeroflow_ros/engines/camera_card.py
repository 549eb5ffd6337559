# SPDX-License-Identifier: Apache-2.0
"""Read the JSON of the model cards of cameras: which fields there are, and of which type."""

import dataclasses
import json
import reprlib

from zeroflow_ros.errors import ModelError

REMEDY = "Write a model file with 'python3 -m export.to_onnx CHECKPOINT --out MODEL.onnx'."
MAX_SIZE = 8192  # px, of either side of the images: they set the memory use


def read_fields(text: str, card_class: type, types: dict[str, type], noun: str) -> dict:
    """Return the fields of a card by name.

    card_class: a dataclass. types: of fields that must have exactly one. noun: of the card, after 'The'.
    Raises: ModelError that names missing or unknown fields, or fields of the wrong type.
    """
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ModelError(f'The {noun} is not JSON: {error}. {REMEDY}') from error
    if not isinstance(values, dict):
        raise ModelError(f'The {noun} should be a JSON object, got {type(values).__name__}. {REMEDY}')
    known = {f.name for f in dataclasses.fields(card_class)}
    missing, unknown = sorted(known - set(values)), [name[:40] for name in sorted(set(values) - known)[:5]]
    if missing or unknown:
        raise ModelError(f'The {noun} lacks {missing} and has the unknown fields {unknown}. {REMEDY}')
    for name, kind in types.items():
        if type(values[name]) is not kind:
            raise ModelError(
                f'The {noun} has {name} {reprlib.repr(values[name])}, expected a {kind.__name__}. {REMEDY}'
            )
    return values
