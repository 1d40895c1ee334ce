// SPDX-License-Identifier: GPL-2.0-only
/* Naive entry: nothing is located, copied or committed, so there is no C. */
