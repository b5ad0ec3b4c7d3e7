"""What holds for every test.

huggingface_hub, whoever imports it first, tells nobody about this machine. Hypothesis tries the same examples every
time and gives each as long as it takes: what fails does so because something was changed, on a slow machine too
(`pytest --hypothesis-profile=default` tries others).
"""

import os

from hypothesis import HealthCheck, settings

os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"

settings.register_profile("same", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("same")
