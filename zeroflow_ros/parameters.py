# SPDX-License-Identifier: Apache-2.0
"""Print the parameters of the flow node as a Markdown table: python3 -m zeroflow_ros.parameters."""

from zeroflow_ros.ros.parameters import parameter_table

if __name__ == '__main__':
    print(parameter_table())
