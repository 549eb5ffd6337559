# SPDX-License-Identifier: Apache-2.0
"""A lifecycle manager that requests transitions of a managed node over real DDS."""

from flow_node import Vehicle
from lifecycle_msgs.msg import State, Transition
from lifecycle_msgs.srv import ChangeState, GetState

UNCONFIGURED, INACTIVE, ACTIVE, FINALIZED = (
    State.PRIMARY_STATE_UNCONFIGURED, State.PRIMARY_STATE_INACTIVE, State.PRIMARY_STATE_ACTIVE,
    State.PRIMARY_STATE_FINALIZED,
)  # fmt: skip
CONFIGURE, ACTIVATE, DEACTIVATE, CLEANUP = (
    Transition.TRANSITION_CONFIGURE, Transition.TRANSITION_ACTIVATE, Transition.TRANSITION_DEACTIVATE,
    Transition.TRANSITION_CLEANUP,
)  # fmt: skip


class Manager:
    """Requests transitions as a lifecycle manager does."""

    def __init__(self, vehicle: Vehicle, name='/flow_node'):
        self._vehicle = vehicle
        self._change = vehicle.node.create_client(ChangeState, f'{name}/change_state')
        self._get = vehicle.node.create_client(GetState, f'{name}/get_state')

    def change(self, transition: int) -> bool:
        self.state()  # Once answered, the node has discovered this client: the answer to a transition arrives.
        request = ChangeState.Request(transition=Transition(id=transition))
        return self._vehicle.call(self._change, request).success

    def state(self) -> int:
        return self._vehicle.call(self._get, GetState.Request()).current_state.id
