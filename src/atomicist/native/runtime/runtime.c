/* SPDX-License-Identifier: GPL-2.0-only */
/* All of the runtime as one unit: what one file calls of another is then inlined. */
#include "memory.c"
#include "shadow.c"
#include "exec.c"
#include "observe.c"
#include "free.c"
#include "certify.c"
#include "enumerate.c"
#include "api.c"
