# SPDX-License-Identifier: Apache-2.0
"""The ReLU network of the optimised teachers, computed for active neurons only.

At a high learning rate most neurons of a layer are inactive for all points of a neighbourhood. Their output and their
gradient are 0, so skipping them, per block of points, changes only the time.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import torch
from torch import nn

_BLOCK = 4096  # points: 128 features of a block take 2 MB, about a core's second-level cache


class CoordinateNetwork(nn.Module):
    """Flow as a function of position: (N, 3) [m] to (N, 3) [m].

    width: neurons per layer. depth: number of hidden layers.
    map_blocks: a function like `map`; `map` of a thread pool uses several cores.
    seed: of the initial weights, drawn as nn.Linear draws them.
    Source: NSFP, 8 x 128 ReLU; ZeroFlow leaves the initial weights to nn.Linear.
    """

    def __init__(self, width: int = 128, depth: int = 8, map_blocks: Callable = map, *, seed: int = 0):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.layers = nn.ModuleList(nn.Linear(width if i else 3, width) for i in range(depth))
            self.layers.append(nn.Linear(width, 3))
        self.map_blocks = map_blocks

    def forward(self, points: torch.Tensor) -> torch.Tensor:
        """Return the flow of points (N, 3); it is fast when points near each other have nearby rows."""
        return _Blocks.apply(points.t(), self.map_blocks, *self.parameters()).t()

    def dense(self, points: torch.Tensor) -> torch.Tensor:
        """Return the same flow by plain dense layers."""
        for layer in self.layers[:-1]:
            points = layer(points).relu()
        return self.layers[-1](points)


@contextmanager
def cores(number: int):
    """Yield a `map` over this many threads; torch uses one core in each.

    Many operations are short. Threads that each process a part of the points wait less for each other than cores that
    share every operation, most of all on a machine under other load.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(number) as pool:
            yield pool.map if number > 1 else map
    finally:
        torch.set_num_threads(before)


class _Blocks(torch.autograd.Function):
    """The network, features in rows: (3, N) to (3, N)."""

    @staticmethod
    def forward(ctx, points, map_blocks, *parameters):
        blocks = points.split(_BLOCK if points.device.type == 'cpu' else max(points.shape[1], 1), 1)
        flows, ctx.traces = zip(*map_blocks(lambda block: _forward(block, parameters), blocks), strict=True)
        ctx.map_blocks = map_blocks
        ctx.save_for_backward(*parameters)
        return torch.cat(flows, 1)

    @staticmethod
    def backward(ctx, gradient):
        parameters = ctx.saved_tensors
        wants_points = ctx.needs_input_grad[0]
        blocks = gradient.split([trace[0][0].shape[1] for trace in ctx.traces], 1)
        results = ctx.map_blocks(
            lambda part: _backward(*part, parameters, wants_points), zip(blocks, ctx.traces, strict=True)
        )
        of_points, sums = [], [torch.zeros_like(parameter) for parameter in parameters]
        for of_block, on_both_sides in results:
            of_points.append(of_block)
            for total, (of_weight, of_bias, rows, columns) in zip(
                zip(sums[::2], sums[1::2], strict=True), on_both_sides, strict=True
            ):
                _add(total[0], of_weight, rows, columns)
                _add(total[1], of_bias, rows, None)
        return torch.cat(of_points, 1) if wants_points else None, None, *sums


@torch.no_grad()  # pool threads do not inherit the no-grad mode of an autograd function
def _forward(points: torch.Tensor, parameters):
    """Return the flow (3, N) and, for each layer, its active inputs and their indices."""
    weights, biases = parameters[::2], parameters[1::2]
    hidden, on = points.contiguous(), None
    trace = [(hidden, on)]
    for weight, bias in zip(weights[:-1], biases[:-1], strict=True):
        before = torch.addmm(bias[:, None], _columns(weight, on), hidden)  # (width, N)
        on = (before.amax(1) > 0).nonzero()[:, 0]  # (K,)
        hidden = before.index_select(0, on).relu_()  # (K, N)
        trace.append((hidden, on))
    return torch.addmm(biases[-1][:, None], _columns(weights[-1], on), hidden), trace


@torch.no_grad()
def _backward(gradient: torch.Tensor, trace, parameters, wants_points: bool):
    """Return the gradient of the points, and of each layer (weight, bias, active rows, active columns)."""
    gradient, rows = gradient.contiguous(), None
    gradients = []
    for (hidden, columns), weight in zip(reversed(trace), reversed(parameters[::2]), strict=True):
        gradients.append((gradient @ hidden.t(), gradient.sum(1), rows, columns))
        if columns is None and not wants_points:
            return None, gradients[::-1]
        part = _columns(weight if rows is None else weight.index_select(0, rows), columns)
        gradient = part.t() @ gradient
        if columns is not None:
            gradient.mul_(hidden > 0)
        rows = columns
    return gradient, gradients[::-1]


def _columns(weight: torch.Tensor, on: torch.Tensor | None) -> torch.Tensor:
    return weight if on is None else weight.index_select(1, on)


def _add(total: torch.Tensor, values: torch.Tensor, rows, columns) -> None:
    """Add values to the active rows and columns of total; None means all."""
    if columns is not None:
        values = values.new_zeros(len(values), total.shape[1]).index_copy_(1, columns, values)
    if rows is None:
        total += values
    else:
        total.index_add_(0, rows, values)
