# SPDX-License-Identifier: GPL-2.0-only
"""A Linux source tree: prepare it, put the atomic entry into it, make a series of patches, build it."""
