"""A user's presets: named settings of clusters and partitions, in a YAML file of his own.

# ~/.config/spear_plugin/clusters.yaml
h100:
  partition: gpu
  account: speech
  gpus_per_node: 8
  cpus_per_task: 12
  mem_gb: 960
  setup: [module load cuda]
  environment: {NCCL_SOCKET_IFNAME: ib0}
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Final

import yaml

from slurm.files import LaunchError
from slurm.resources import Resources

PRESET_VARIABLE: Final = "SPEAR_CLUSTERS"


def default_preset_file() -> Path:
    """Return the file of presets: ``$SPEAR_CLUSTERS``, else the one below the user's configuration folder."""
    if path := os.environ.get(PRESET_VARIABLE):
        return Path(path)
    return Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "spear_plugin" / "clusters.yaml"


def read_preset(name: str, path: Path | None = None) -> Resources:
    """Return the resources of a preset.

    Raises:
        LaunchError: There is no such file or preset, or it has an unknown key.
    """
    path = path or default_preset_file()
    presets = read_mapping(path)
    if name not in presets:
        raise LaunchError(f"{path}: there is no preset `{name}`, only {', '.join(presets) or 'none'}.")
    settings = presets[name]
    if not isinstance(settings, dict):
        raise LaunchError(f"{path}: preset `{name}` must be a mapping of settings, but is {settings!r}.")
    return Resources().changed(settings, f"{path}: preset `{name}`")


def read_mapping(path: Path) -> dict[str, Any]:
    """Return a YAML file that holds a mapping.

    Raises:
        LaunchError: It does not, or cannot be read; the message has one line.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as ex:
        raise LaunchError(f"{path}: cannot be read ({ex.strerror}).") from None
    except yaml.YAMLError as ex:
        raise LaunchError(f"{path}: is no YAML: {' '.join(str(ex).split())}") from None
    if not isinstance(content, dict):
        raise LaunchError(f"{path}: must hold a mapping, but holds {type(content).__name__}.")
    return content
