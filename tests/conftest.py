"""What holds for every test: huggingface_hub, whoever imports it first, tells nobody about this machine."""

import os

os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
