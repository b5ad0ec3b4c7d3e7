"""The formats that can be written, by the name `--format` gives them."""

from __future__ import annotations

from awq_engine.config import Format
from awq_engine.formats import awq
from awq_engine.formats.codec import Codec

CODECS: dict[Format, Codec] = {
    Format.AWQ: Codec(awq.PARTS, awq.unpack, awq.pack, awq.settings),
}
