# SPDX-License-Identifier: GPL-2.0-only
"""The events of the search, and the gates that decide when each can arrive.

=====  =============================================================================
NMI    at any boundary while NMIs are not blocked: blocked from delivery until the
       next IRET executes, by whomever (SDM vol. 3, 6.7.1).  The one NMI that is
       latched meanwhile is the NMI that arrives at the first boundary behind that
       IRET, so the latch needs no state of its own
MC     at any boundary while MCG_STATUS.MCIP is clear; with MCIP set the machine would
       shut down (SDM vol. 3, 15.3.1.2).  The handler clears it
DB     at any boundary but inside its own entry: TF is cleared by delivery, DR7 and
       the exclusion of entry data from breakpoints are the handler's business
VC     at any boundary but inside its own entry: a hypervisor chooses (APM vol. 2, 15.35)
=====  =============================================================================

"Inside its own entry" ends at the commit where an image claims by a label that
its stack is free from there, else when the context that it interrupted runs again.  All but the
abort #MC are held off for one instruction behind MOV SS (SDM vol. 3, 6.8.3).
"""

from __future__ import annotations

from typing import Final

EVENTS: Final = ("NMI", "DB", "MC", "VC")
"""Order is the native runtime's event number."""

ERROR_TOKEN: Final = 0x0000_0072_5C0D_E5E5
"""The error code that an injected #VC carries: a value found nowhere else."""

MASKED_BY_ENTRY: Final = frozenset({"DB", "VC"})
"""Events that no hardware state holds off inside their own entry: the rule above does."""
