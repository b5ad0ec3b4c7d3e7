"""Text that others wrote, made safe to show in a terminal. Standard library only: the app imports this module.

A model's reply, a tensor's name or a file's name may hold escape sequences that move the cursor, set the clipboard or
retitle the window, and bidirectional controls that make text read as something else. Here each becomes a visible sign.
"""

from __future__ import annotations

import os
import re

_BIDI_CONTROLS = (0x061C, 0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x206A))
_UNSHOWABLE = "\ufffd"

_REPLACEMENTS: dict[int, str] = {
    **{code: chr(0x2400 + code) for code in range(0x20) if chr(code) not in "\n\t"},
    0x7F: "\u2421",
    **dict.fromkeys(range(0x80, 0xA0), _UNSHOWABLE),
    **dict.fromkeys((0x2028, 0x2029), "\n"),
    **dict.fromkeys(_BIDI_CONTROLS, _UNSHOWABLE),
    **dict.fromkeys(range(0xD800, 0xE000), _UNSHOWABLE),
}
"""C0 controls become their pictures (ESC is ␛); C1, bidirectional controls and lone surrogates the replacement sign."""


_SECRETS = (
    (re.compile(r"\bhf_[A-Za-z0-9]{12,}"), "hf_***"),
    (re.compile(r"(?<=://)[^/\s:@]*(?::[^/\s@]*)?@"), "***@"),
    (re.compile(r"(?i)(?<=bearer )[\w.~+/=-]{8,}"), "***"),
    (re.compile(r"(?i)((?:token|api_?key|signature|password)=)[^&\s'\"]+"), r"\1***"),
)
_SECRET_VARIABLES = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HUGGINGFACEHUB_API_TOKEN")
SHORTEST_SECRET = 8


def redacted(text: str) -> str:
    """`text` without Hub tokens, passwords in addresses, and what the environment says is a token."""
    for name in _SECRET_VARIABLES:
        if len(secret := os.environ.get(name, "").strip()) >= SHORTEST_SECRET:
            text = text.replace(secret, "***")
    for pattern, stand_in in _SECRETS:
        text = pattern.sub(stand_in, text)
    return text


def plain(text: str) -> str:
    """`text` with every control character but newline and tab made visible; works piecewise on a stream."""
    return text.translate(_REPLACEMENTS)


def one_line(text: str) -> str:
    """`plain` text on a single line, for names and table cells."""
    return plain(text).replace("\n", "\u2424").replace("\t", " ")
