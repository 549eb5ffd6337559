# SPDX-License-Identifier: Apache-2.0
"""SeFlow's self-supervised losses of a flow, from two sweeps and their dynamic labels, without a target flow.

Source: SeFlow (Zhang et al. 2024), whose code also computes the terms per sweep pair; constants from there.
"""

from typing import NamedTuple

import torch
from scipy.spatial import cKDTree
from torch import Tensor

from training.teachers.dynamic_labels import FIRST_CLUSTER, GROUND, STATIC
from training.teachers.nearest import nearest_by_distance

TRUNCATION = 4.0  # m^2: points more than 2 m apart (20 m/s at 10 Hz) are not matched
_FEWEST_DYNAMIC = 256  # the dynamic terms need more dynamic points than this in each cloud


class PredictedPair(NamedTuple):
    """A sweep pair with a predicted flow from the first cloud to the second.

    points0 (N, 3), points1 (M, 3): [m], in one frame. flow0: (N, 3) [m]. labels0 (N,), labels1 (M,): int, see
    training/teachers/dynamic_labels.py; unlabelled points take part in the chamfer term only.
    """

    points0: Tensor
    points1: Tensor
    flow0: Tensor
    labels0: Tensor
    labels1: Tensor


class SeFlowTerms(NamedTuple):
    """The four terms, with equal weights. chamfer, dynamic_chamfer: [m^2]. static, cluster: [m]."""

    chamfer: Tensor
    dynamic_chamfer: Tensor
    static: Tensor
    cluster: Tensor


def seflow_terms(pair: PredictedPair) -> SeFlowTerms:
    """Return the terms of one pair; a term without points is 0.

    Ground counts as static in the static term, and is left out of the chamfer terms, because its rings move with the
    sensor. SeFlow removes ground beforehand; our students see it.
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
    """Return the chamfer distance [m^2]: mean squared nearest-neighbour distances in both directions, summed.

    points0 (N, 3), points1 (M, 3): [m]. truncation: neighbours with a larger squared distance are left out [m^2]. A
    direction without neighbours counts 0.
    """
    return _one_way_chamfer(points0, points1, truncation) + _one_way_chamfer(points1, points0, truncation)


def cluster_loss(pair: PredictedPair) -> Tensor:
    """Return the mean distance [m] between the flow of all clustered points and the target of their cluster.

    A cluster's target is the vector to the nearest point of the other cloud, from the cluster's point where this vector
    is longest and ends at a dynamic point. Inside an object the nearest point is arbitrary; at its end it shows the
    motion.
    If no cluster has a target, the loss is the mean squared distance between the clouds without flow, a constant.
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
    return _one_way_chamfer(pair.points0[over0], there, TRUNCATION)


def _one_way_chamfer(queries: Tensor, targets: Tensor, truncation: float) -> Tensor:
    index = _nearest(queries, targets, 1.01 * truncation**0.5)  # the limit itself counts
    there = index >= 0
    way = queries[there] - targets[index[there]]
    squared = (way * way).sum(1)
    near = squared[squared <= truncation]
    return near.mean() if len(near) else queries.sum() * 0 + targets.sum() * 0


def _nearest(queries: Tensor, targets: Tensor, reach: float) -> Tensor:
    """Return the index of the exact nearest target (M, 3) of each query (N, 3), -1 where none is within reach [m]."""
    queries, targets = queries.detach(), targets.detach()
    if queries.device.type != 'cpu' or not len(queries) or not len(targets):
        return nearest_by_distance(queries, targets, reach).long()
    tree = cKDTree(targets.numpy(), balanced_tree=False)  # saves a quarter of the time, same result
    index = tree.query(queries.numpy(), distance_upper_bound=reach, workers=torch.get_num_threads())[1]
    index[index == len(targets)] = -1
    return torch.from_numpy(index)
