# SPDX-License-Identifier: Apache-2.0
"""SeFlow's losses: what a flow must do to two sweeps and their dynamic labels; nobody says what the flow is.

Source: SeFlow (Zhang et al. 2024), whose code computes the terms of each sweep pair by itself; figures from there.
"""

from typing import NamedTuple

import torch
from scipy.spatial import cKDTree
from torch import Tensor

from training.teachers.dynamic_labels import FIRST_CLUSTER, GROUND, STATIC
from training.teachers.nearest import nearest_by_distance

TRUNCATION = 4.0  # m^2: two points more than 2 m apart, 20 m/s at 10 Hz, are not the same
_FEWEST_DYNAMIC = 256  # points of both clouds: the dynamic terms need more than these


class FlowedPair(NamedTuple):
    """A sweep pair with a flow from the first cloud to the second.

    points0 (N, 3), points1 (M, 3): [m], in one frame. flow0: (N, 3) [m]. labels0 (N,), labels1 (M,): int, see
    training/dynamic_labels.py; what was not asked is compared with the other cloud, and in no other term.
    """

    points0: Tensor
    points1: Tensor
    flow0: Tensor
    labels0: Tensor
    labels1: Tensor


class SeFlowTerms(NamedTuple):
    """The four terms, which weigh the same. chamfer, dynamic_chamfer: [m^2]. static, cluster: [m]."""

    chamfer: Tensor
    dynamic_chamfer: Tensor
    static: Tensor
    cluster: Tensor


def seflow_terms(pair: FlowedPair) -> SeFlowTerms:
    """Return the terms of one pair; a term that has no point to look at is 0.

    Ground has flow zero, as what is static, and is not compared with the other cloud: its rings move with the sensor.
    SeFlow removes it before; students of ours see it.
    """
    over0, over1 = pair.labels0 != GROUND, pair.labels1 != GROUND
    moved = pair.points0 + pair.flow0
    moves0, moves1 = pair.labels0 > STATIC, pair.labels1 > STATIC
    zero = pair.flow0.sum() * 0
    dynamic_chamfer = cluster = zero
    if min(int(moves0.sum()), int(moves1.sum())) > _FEWEST_DYNAMIC:
        dynamic_chamfer = chamfer(moved[moves0], pair.points1[moves1])
        cluster = cluster_loss(pair)
    stands = (pair.labels0 == STATIC) | ~over0
    static = torch.linalg.vector_norm(pair.flow0[stands], dim=1).mean() if stands.any() else zero
    return SeFlowTerms(chamfer(moved[over0], pair.points1[over1]), dynamic_chamfer, static, cluster)


def chamfer(points0: Tensor, points1: Tensor, truncation: float = TRUNCATION) -> Tensor:
    """Return the mean squared distance [m^2] of either cloud to the nearest points of the other, both ways added up.

    points0 (N, 3), points1 (M, 3): [m]. truncation: pairs of a larger squared distance are left out [m^2]. A way
    without a pair counts 0.
    """
    return _one_way(points0, points1, truncation) + _one_way(points1, points0, truncation)


def cluster_loss(pair: FlowedPair) -> Tensor:
    """Return the mean distance [m] of the flow of all clustered points from the target of their cluster.

    A cluster's target is the way from its point that is farthest from the other cloud to what is nearest to that one,
    if this moves, too; else of the next farthest. Inside a body the nearest point is any; at its end it shows the way.
    Where no cluster has a target, the mean squared distance between the clouds at rest stands in, which no flow alters.
    """
    over0, over1 = pair.labels0 != GROUND, pair.labels1 != GROUND
    there = pair.points1[over1]
    rows = torch.nonzero(pair.labels0 >= FIRST_CLUSTER).squeeze(1)
    index = _nearest(pair.points0[rows], there, float('inf'))
    if len(rows) and len(there):
        way = there[index] - pair.points0[rows]
        squared = torch.where(pair.labels1[over1][index] > STATIC, (way * way).sum(1), -1.0)
        number = torch.unique(pair.labels0[rows], return_inverse=True)[1]
        farthest = torch.full((int(number.max()) + 1,), -1.0, dtype=squared.dtype, device=squared.device)
        farthest = farthest.scatter_reduce(0, number, squared, 'amax')
        chosen = torch.nonzero((squared == farthest[number]) & (squared >= 0)).squeeze(1)
        target = torch.zeros(len(farthest), 3, dtype=way.dtype, device=way.device)
        target[number[chosen]] = way[chosen]
        has_target = farthest[number] >= 0
        if has_target.any():
            difference = pair.flow0[rows][has_target] - target[number[has_target]]
            return torch.linalg.vector_norm(difference, dim=1).mean()
    return _one_way(pair.points0[over0], there, TRUNCATION)


def _one_way(queries: Tensor, targets: Tensor, truncation: float) -> Tensor:
    index = _nearest(queries, targets, 1.01 * truncation**0.5)  # the limit itself counts
    there = index >= 0
    way = queries[there] - targets[index[there]]
    squared = (way * way).sum(1)
    near = squared[squared <= truncation]
    return near.mean() if len(near) else queries.sum() * 0 + targets.sum() * 0


def _nearest(queries: Tensor, targets: Tensor, reach: float) -> Tensor:
    """Return which of targets (M, 3) is nearest to each of queries (N, 3), -1 where none is within reach [m]; exact."""
    queries, targets = queries.detach(), targets.detach()
    if queries.device.type != 'cpu' or not len(queries) or not len(targets):
        return nearest_by_distance(queries, targets, reach).long()
    tree = cKDTree(targets.numpy(), balanced_tree=False)  # a quarter less time in all; as exact
    index = tree.query(queries.numpy(), distance_upper_bound=reach, workers=torch.get_num_threads())[1]
    index[index == len(targets)] = -1
    return torch.from_numpy(index)
