"""Quantized models in the file formats of other runtimes than those that read Hugging Face folders."""
