// SPDX-License-Identifier: GPL-2.0-only
// A whole search on the page.
function whole(page, data) { return []; }
