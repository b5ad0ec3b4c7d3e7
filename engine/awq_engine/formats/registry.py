"""The formats that can be written, by the name `--format` gives them."""

from __future__ import annotations

from awq_engine.formats import awq, compressed_tensors, gptq
from awq_engine.formats.codec import Codec
from awq_engine.formats.limits import Format

CODECS: dict[Format, Codec] = {
    Format.AWQ: Codec(awq.PARTS, awq.unpack, awq.pack, awq.settings),
    Format.COMPRESSED_TENSORS: Codec(
        compressed_tensors.PARTS, compressed_tensors.unpack, compressed_tensors.pack, compressed_tensors.settings
    ),
    Format.GPTQ: Codec(gptq.PARTS, gptq.unpack, gptq.pack, gptq.settings),
    Format.GPTQ_V2: Codec(gptq.PARTS, gptq.unpack_v2, gptq.pack_v2, gptq.settings_v2),
}
