# SPDX-License-Identifier: Apache-2.0
"""DeFlow, layer for layer as in OpenSceneFlow, and a variant for two CPU cores.

Source: Zhang et al., DeFlow: Decoder of Scene Flow Network in Autonomous Driving (ICRA 2024), and OpenSceneFlow.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from training.students.fastflow3d import Backbone
from training.students.fastflow3d_lite import LiteStudent
from training.students.pillar_net import PillarEmbedder, PillarStudent
from zeroflow_ros.lidar.pillars import PillarGrid
from zeroflow_ros.lidar.point_head import LEAK


class PointGru(nn.Module):
    """A gated recurrent unit per point, unrolled; its input is the same at every step.

    num_hidden: H, size of the state. num_input: I, size of the input. num_steps: number of steps.
    Parameter names match published checkpoints: update gate z, reset gate r and candidate q, each of state and input.
    """

    def __init__(self, num_hidden: int, num_input: int, num_steps: int):
        super().__init__()
        self.num_steps = num_steps
        self.convz = nn.Linear(num_hidden + num_input, num_hidden)
        self.convr = nn.Linear(num_hidden + num_input, num_hidden)
        self.convq = nn.Linear(num_hidden + num_input, num_hidden)

    def forward(self, state: Tensor, given: Tensor) -> Tensor:
        """(N, H), (N, I) -> (N, H)."""
        for _ in range(self.num_steps):
            both = torch.cat([state, given], dim=1)
            update, reset = torch.sigmoid(self.convz(both)), torch.sigmoid(self.convr(both))
            candidate = torch.tanh(self.convq(torch.cat([reset * state, given], dim=1)))
            state = state + update * (candidate - state)
        return state


class DeFlowHead(nn.Module):
    """A GRU from the features at a point (its initial state) and its offset (its input); two layers decode it."""

    def __init__(self, num_maps: int, num_steps: int):
        super().__init__()
        num_input = num_maps // 2
        self.offset_encoder = nn.Linear(3, num_input)
        self.gru = PointGru(num_maps, num_input, num_steps)
        self.decoder = nn.Sequential(nn.Linear(num_maps + num_input, 32), nn.GELU(), nn.Linear(32, 3))

    def forward(self, maps: Tensor, offsets: Tensor) -> Tensor:
        """(N, maps), (N, 3) -> (N, 3)."""
        given = self.offset_encoder(offsets)
        return self.decoder(torch.cat([self.gru(maps, given), given], dim=1))


class DeFlow(PillarStudent):
    """The backbone of FastFlow3D with a head that distinguishes the points of a pillar."""

    form = 'gather'
    head_block = 1

    def __init__(self, name: str, num_steps: int, grid: PillarGrid = PillarGrid(512, 0.2, -3.0, 3.0)):  # noqa: B008
        super().__init__()
        self.name = name
        self.grid = grid
        self.embedder = PillarEmbedder(32)
        self.backbone = Backbone(32, (4, 6, 6))
        self.head = DeFlowHead(128, num_steps)

    def hidden(self, images: Tensor) -> Tensor:
        """Return the pseudo-images and the backbone's output (B, 128, G, G); see `PillarStudent`."""
        return torch.cat([images, self.backbone(images)], dim=1)

    def points_flow(self, gathered: Tensor, offsets: Tensor) -> Tensor:
        """Return the flow (N, 3) [m] of points; see `PillarStudent`."""
        return self.head(gathered, offsets)

    def merge_layers(self) -> None:
        """See `PillarStudent`."""
        self.backbone.merge_layers()


class DeFlowLite(LiteStudent):
    """DeFlow for two CPU cores: a narrow GRU of two steps and one output layer.

    The GRU reads the raw offsets: each layer over 120,000 points costs 3 to 5 ms.
    """

    name = 'deflow_lite'
    form = 'gather'

    def __init__(self, num_hidden: int = 8, num_steps: int = 2, **sizes):
        super().__init__(num_hidden, **sizes)
        self.gru = PointGru(num_hidden, 3, num_steps)
        self.head_out = nn.Linear(num_hidden, 3)

    def points_flow(self, gathered: Tensor, offsets: Tensor) -> Tensor:
        """Return the flow (N, 3) [m] of points; see `PillarStudent`."""
        return self.head_out(functional.leaky_relu(self.gru(gathered, offsets), LEAK))


def deflow() -> DeFlow:
    """DeFlow with 512 x 512 pillars of 0.2 m and four GRU steps: 6,891,939 parameters."""
    return DeFlow('deflow', 4)


def deflow_2() -> DeFlow:
    """DeFlow with two GRU steps, as SeFlow trains it."""
    return DeFlow('deflow_2', 2)


def deflow_lite() -> DeFlowLite:
    """DeFlow for 10 Hz on two CPU cores: 256 x 256 pillars of 0.4 m."""
    return DeFlowLite()
