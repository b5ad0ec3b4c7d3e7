"""Plan, quantize, evaluate and chat; imported lazily so that its light modules stay light."""

import os

# huggingface_hub reads it when it is imported: without it, every process that talks to the Hub also fetches a list of
# programs to look for among the environment's variables, and tells the Hub what it found.
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
# transformers warns with names and values out of a model's files as they are, control characters included.
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
