"""The layouts that quantized linears have on disk: ours, and those of other tools."""
