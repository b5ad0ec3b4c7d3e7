"""Numbers to text, the same on every screen and in every line. Pure: nothing here reads a clock or the terminal.

Sizes are decimal (GB = 1e9 bytes), as disks and model pages count. A value that is not known is shown as `-`. Standard
library only: the app imports this module.
"""

from __future__ import annotations

import math

UNKNOWN = "-"


def size(n_bytes: float | None) -> str:
    """Bytes: `512 B`, `9.1 MB`, `15.2 GB`."""
    return UNKNOWN if n_bytes is None else _with_unit(n_bytes, ("B", "kB", "MB", "GB", "TB"))


def count(number: float | None) -> str:
    """Parameters or downloads: `950`, `4.7 M`, `7.6 B`."""
    return UNKNOWN if number is None else _with_unit(number, ("", "K", "M", "B", "T")).rstrip()


def duration(seconds: float | None) -> str:
    """A span of time: `0:07`, `3:12`, `1:02:03`."""
    if seconds is None or not math.isfinite(seconds):
        return UNKNOWN
    minutes, rest = divmod(max(0, round(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def age(seconds: float) -> str:
    """How long ago, in one unit: `12 s`, `5 min`, `3 h`, `2 d`."""
    for limit, unit, divisor in ((60, "s", 1), (3600, "min", 60), (86400, "h", 3600)):
        if seconds < limit:
            return f"{max(0, int(seconds // divisor))} {unit}"
    return f"{int(seconds // 86400)} d"


def size_of(part: int, whole: int) -> str:
    """Bytes of a whole: `21.3/24.0 GB`, `794 MB/24.0 GB`."""
    number, unit = size(part).rsplit(" ", 1)
    total = size(whole)
    return f"{number}/{total}" if total.endswith(f" {unit}") else f"{number} {unit}/{total}"


def loss(value: float | None) -> str:
    """A mean squared error: `4.1e-4`."""
    if value is None or not math.isfinite(value):
        return UNKNOWN
    if value == 0:
        return "0"
    mantissa, exponent = f"{value:.1e}".split("e")
    return f"{mantissa}e{int(exponent)}"


def number(value: float | None) -> str:
    """A channel scale or another plain number with three digits: `0.31`, `6.87`, `14.9`, `1.2e5`."""
    if value is None or not math.isfinite(value):
        return UNKNOWN
    if value != 0 and not 0.01 <= abs(value) < 10_000:
        return loss(value)
    return f"{value:.2f}" if abs(value) < 10 else f"{value:.1f}" if abs(value) < 100 else f"{value:.0f}"


def times(factor: float | None) -> str:
    """A factor: `0.27x`, `6.3x`, `120x`."""
    if factor is None or not math.isfinite(factor):
        return UNKNOWN
    return f"{factor:.2f}x" if factor < 1.995 else f"{factor:.1f}x" if factor < 99.95 else f"{factor:.0f}x"


def share(part: float | None) -> str:
    """A share of 1: `1.5%`, `39%`."""
    if part is None or not math.isfinite(part):
        return UNKNOWN
    percent = 100 * part
    return f"{percent:.1f}%" if 0 < percent < 9.95 else f"{percent:.0f}%"


def change(relative: float | None) -> str:
    """A relative change: `+12%`, `-73%`; from ten times on, how many times it is: `51x`."""
    if relative is None or not math.isfinite(relative):
        return UNKNOWN
    return f"{100 * relative:+.0f}%" if relative < 9 else f"{number(1 + relative)}x"


def short_role(name: str) -> str:
    """`self_attn.q_proj` -> `q`, `mlp.down_proj` -> `down`: a heading for narrow columns."""
    role = name.rsplit(".", 1)[-1]
    return role.removesuffix("_proj") or role


def preset_label(bits: int, group_size: int, preset: str, *, method: str = "awq", symmetric: bool = False) -> str:
    """What is being done, in a few words: `W4 g128 balanced`, `W4 row symmetric rtn`, `W4 g128 gptq best`."""
    group = f"g{group_size}" if group_size > 0 else "row"
    recipe = {"awq": preset, "rtn": "rtn"}.get(method, f"{method} {preset}")
    words = (f"W{bits}", group, "symmetric" if symmetric else "", recipe)
    return " ".join(word for word in words if word)


def _with_unit(value: float, units: tuple[str, ...]) -> str:
    scaled, index = float(value), 0
    while abs(scaled) >= 999.5 and index < len(units) - 1:
        scaled, index = scaled / 1000, index + 1
    digits = 0 if index == 0 or abs(scaled) >= 99.95 else 1
    return f"{scaled:.{digits}f} {units[index]}"
