# SPDX-License-Identifier: Apache-2.0
"""Average the weights of checkpoints of one student that come from one another, or from one common start.

usage: python3 -m training.average runs/a/last.pt runs/b/last.pt --weights 0.7 0.3 --out runs/average.pt

Trainings that weigh what moves and what stands differently each lose something; their average keeps most of both.
Source: Wortsman et al. 2022, "Model soups", arXiv:2203.05482. The result is for inference or for --start of
training.train; it has no optimiser state.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
import torch

from training.learning.checkpoint import POLICIES, Checkpoint, load_checkpoint
from zeroflow_ros.errors import ConfigError, ModelError, ZeroFlowError


def average(checkpoints: dict[str, Checkpoint], weights: list[float]) -> Checkpoint:
    """Return the checkpoint whose weights are the weighted mean of those of checkpoints, named by their files.

    weights: one per checkpoint, positive; they are scaled so that they add up to 1.
    Raises: ConfigError when weights do not fit; ModelError for checkpoints of different students, or of students that
    were trained for different frames, ground or direction.
    """
    if len(weights) != len(checkpoints) or not all(np.isfinite(w) and w > 0 for w in weights):
        raise ConfigError(f'Expected {len(checkpoints)} positive weights, one per checkpoint, got {weights}.')
    (name, first), *others = checkpoints.items()
    for other, checkpoint in others:
        if checkpoint.student != first.student:
            raise ModelError(
                f'{name} is a {first.student} and {other} a {checkpoint.student}; only weights of one student can be '
                'averaged.'
            )
        if different := [policy for policy in POLICIES if checkpoint.policies[policy] != first.policies[policy]]:
            raise ModelError(f'{name} and {other} differ in {", ".join(different)}, so their average means nothing.')
    shares = np.array(weights) / sum(weights)
    state_dict = {
        key: _mean([checkpoint.state_dict[key] for checkpoint in checkpoints.values()], shares)
        for key in first.state_dict
    }
    parts = [
        {'name': name, 'share': round(float(share), 4), 'provenance': checkpoint.provenance}
        for (name, checkpoint), share in zip(checkpoints.items(), shares, strict=True)
    ]
    return Checkpoint(first.student, state_dict, first.provenance | {'averaged': parts})


def _mean(tensors: list[torch.Tensor], shares: np.ndarray) -> torch.Tensor:
    """Return the weighted mean of tensors; the first one if they are counters."""
    if not tensors[0].is_floating_point():
        return tensors[0]
    total = sum(tensor.double() * share for tensor, share in zip(tensors, shares, strict=True))
    return total.to(tensors[0].dtype)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog='python3 -m training.average',
        description=__doc__.split('usage:')[0],
        epilog=__doc__.split('\n\n')[-1],
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument('checkpoints', nargs='+', type=Path, metavar='CHECKPOINT', help='last.pt of a training')
    parser.add_argument('--weights', nargs='+', type=float, help='one per checkpoint; default: all the same')
    parser.add_argument('--out', type=Path, required=True, help='file to write; an existing one is refused')
    options = parser.parse_args(arguments)
    try:
        if options.out.exists():
            raise ConfigError(f'{options.out} exists; give another --out, or remove it.')
        found = {str(path): load_checkpoint(path) for path in options.checkpoints}
        if len(found) < 2:
            raise ConfigError('Expected two or more different checkpoints.')
        average(found, options.weights or [1.0] * len(found)).save(options.out)
    except ZeroFlowError as error:
        print(f'error: {error}', file=sys.stderr)
        return 1
    print(f'Written to {options.out}. Score it: python3 -m training.evaluate --estimator {options.out} --dataset ...')
    return 0


if __name__ == '__main__':
    sys.exit(main())
