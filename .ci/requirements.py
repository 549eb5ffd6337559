# SPDX-License-Identifier: Apache-2.0
"""Print what the named extras of setup.py require, one requirement per line: python3 .ci/requirements.py ros replay."""

import sys
from pathlib import Path

import setuptools  # noqa: F401 - brings distutils, which Python 3.12 and later lack

if __name__ == '__main__':
    from distutils.core import run_setup

    setup = run_setup(str(Path(__file__).parents[1] / 'setup.py'), stop_after='init')
    unknown = sorted(set(sys.argv[1:]) - set(setup.extras_require))
    if unknown:
        sys.exit(f'setup.py has no extras {unknown}; it has {sorted(setup.extras_require)}.')
    wanted = [setup.install_requires, *(setup.extras_require[name] for name in sys.argv[1:])]
    print('\n'.join(requirement for group in wanted for requirement in group))
