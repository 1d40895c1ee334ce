# SPDX-License-Identifier: GPL-2.0-only
"""The one way in which work on a source tree fails."""


class TreeError(Exception):
    """The tree cannot be used; one line that says what is wrong, where, and what to do.

    The tree is as it was.
    """
