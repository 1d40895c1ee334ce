# SPDX-License-Identifier: GPL-2.0-only
"""One self-contained HTML page: a template, a style sheet and scripts, which are files of
this package, and the data as JSON inside.

Nothing of an image becomes markup: data is JSON in which ``<``, ``>`` and ``&`` are
escaped, the scripts make text nodes of it, and the page's own policy (CSP) allows the one
style and the one script by their hashes, and no network, image, frame or form at all.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
from collections.abc import Mapping
from importlib.resources import files
from typing import Any, Final

_STATIC: Final = "static"
_SCRIPTS: Final = ("dom", "run", "procedure", "memory", "code", "view", "whole", "main")

_ESCAPES: Final[dict[str, str | int | None]] = {
    "<": "\\u003c", ">": "\\u003e", "&": "\\u0026", "\N{LINE SEPARATOR}": "\\u2028",
    "\N{PARAGRAPH SEPARATOR}": "\\u2029",
}  # fmt: skip


def embedded(data: object) -> str:
    """``data`` as JSON that may stand inside a script element."""
    text = json.dumps(data, separators=(",", ":"), ensure_ascii=False)
    return text.translate(str.maketrans(_ESCAPES)).encode("utf-8", "backslashreplace").decode("utf-8")


def html_page(title: str, data: Mapping[str, Any]) -> str:
    """The page called ``title`` that shows ``data``: of `run_data.run_data`, as
    ``{"page": "run", "runs": [...]}`` or ``"compare"``, or of `whole_run`."""
    style = _file("page.css")
    script = f'"use strict";\n(() => {{\n{"".join(_file(f"{name}.js") for name in _SCRIPTS)}}})();\n'
    policy = (
        f"default-src 'none'; style-src '{_hash(style)}'; script-src '{_hash(script)}'; "
        "base-uri 'none'; form-action 'none'"
    )
    parts = {
        "CSP": html.escape(policy), "TITLE": html.escape(title), "STYLE": style,
        "DATA": embedded({"title": title, **data}), "SCRIPT": script,
    }  # fmt: skip
    first, *rest = _file("page.html").split("@@")
    # one pass, so that nothing which is put in is looked at again
    return first + "".join(parts[part] if i % 2 == 0 else part for i, part in enumerate(rest))


def _file(name: str) -> str:
    return files("atomicist.report").joinpath(_STATIC, name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    digest = hashlib.sha256(text.encode("utf-8")).digest()
    return f"sha256-{base64.b64encode(digest).decode('ascii')}"
