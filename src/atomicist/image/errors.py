# SPDX-License-Identifier: GPL-2.0-only
"""The one way in which reading an image fails."""


class ImageError(Exception):
    """The image cannot be used; the message is one line that says what is wrong and what to do.

    Every reader in this room checks what it reads against the bytes that are there, so that a damaged or
    hostile file ends here: not in a crash, a hang, or the machine's memory.
    """
