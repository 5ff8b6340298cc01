"""Which accelerator is there, and which profile follows from it?"""

from __future__ import annotations

from appliance.checks.finding import Finding
from appliance.hardware import probe, profiles
from appliance.settings import Settings

NAME = "accelerator"


async def check(settings: Settings) -> Finding:
    """Ask NVML, then choose the profile as the daemon would; raises ConfigurationError as it would."""
    profile = profiles.load(settings.profile_dir, settings.profile)
    gpus = ", ".join(probe.nvidia_gpus()) or "no NVIDIA GPU"
    return Finding(check=NAME, outcome="ok", found=f"{gpus}; profile {profile.name}")
