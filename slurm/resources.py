"""What a job asks a cluster for: from options, a user's presets and a pipeline's stages alike."""

from __future__ import annotations

import re
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, Self, final

from slurm.files import LaunchError

SECRET_NAME = re.compile(r"TOKEN|SECRET|PASSW|CREDENTIAL|AUTH(?!OR)|(^|_)KEY|KEY($|_)|PRIVATE", re.IGNORECASE)
_TIME = re.compile(r"(?:(?P<days>\d+)-)?(?P<first>\d+)(?::(?P<second>\d+))?(?::(?P<third>\d+))?")


@final
@dataclass(frozen=True, kw_only=True)
class Resources:
    """Nodes, their parts, and for how long. The names are those of sbatch where it has them."""

    nodes: int = 1
    """Number of nodes."""

    tasks_per_node: int | None = None
    """Processes on each node; by default one for each GPU, or one."""

    gpus_per_node: int = 0
    """GPUs of each node."""

    cpus_per_task: int = 1
    """Cores of each process; also its OMP_NUM_THREADS, unless you set it."""

    mem_gb: float | None = None
    """Memory of each node in GB."""

    time: str = "1-00:00:00"
    """Limit: MINUTES, H:MM:SS or D-HH:MM:SS. A run that needs longer is requeued and goes on."""

    partition: str | None = None

    account: str | None = None

    qos: str | None = None

    constraint: str | None = None

    exclude: str | None = None
    """Nodes to avoid, such as node[3-4]."""

    dependency: str | None = None
    """Jobs to wait for, such as afterok:1234."""

    exclusive: bool = False
    """Whether to take whole nodes."""

    array_parallelism: int = 256
    """Most members of an array that run at a time."""

    signal_seconds: int = 120
    """How long before the limit a run is asked to save and make room; give a step and a checkpoint enough time."""

    max_restarts: int = 3
    """How often a crash is answered by a restart. Wrong configurations are not."""

    setup: list[str] = field(default_factory=list)
    """Lines of shell before the job's command, such as module load cuda."""

    environment: dict[str, str] = field(default_factory=dict)
    """Variables for the job, such as NCCL_SOCKET_IFNAME. They are written to files: set secrets in your shell."""

    def __post_init__(self) -> None:
        for name in ("nodes", "cpus_per_task", "array_parallelism", "signal_seconds"):
            if (value := getattr(self, name)) < 1:
                raise LaunchError(f"`{name}` must be at least 1, but is {value}.")
        if self.time_minutes < 1:
            raise LaunchError(f"`time` must be at least a minute, but is {self.time}.")
        if secrets := [name for name in self.environment if SECRET_NAME.search(name)]:
            raise LaunchError(
                f"`environment` is written to files and must hold no secrets, but has {secrets[0]}. "
                "Set it in your shell: jobs inherit its variables."
            )

    @property
    def num_tasks_per_node(self) -> int:
        """Processes on each node."""
        return self.tasks_per_node or max(1, self.gpus_per_node)

    @property
    def num_tasks(self) -> int:
        """Processes of the job."""
        return self.nodes * self.num_tasks_per_node

    @property
    def time_minutes(self) -> int:
        """The limit in minutes, rounded up."""
        if (match := _TIME.fullmatch(self.time)) is None:
            raise LaunchError(f"`time` must be MINUTES, H:MM:SS or D-HH:MM:SS, but is {self.time}.")
        first, second, third = (int(match[name] or 0) for name in ("first", "second", "third"))
        if match["days"]:
            seconds = int(match["days"]) * 86400 + first * 3600 + second * 60 + third
        elif match["third"]:
            seconds = first * 3600 + second * 60 + third
        else:  # MINUTES or MINUTES:SECONDS, as sbatch reads it
            seconds = first * 60 + second
        return -(-seconds // 60)

    def changed(self, settings: Mapping[str, Any], source: str) -> Self:
        """Return the resources with settings of a file or command line.

        Raises:
            LaunchError: A name is unknown or a value of a wrong kind; the message begins with `source`.
        """
        types = typing.get_type_hints(type(self))
        known = [f.name for f in fields(self)]
        values: dict[str, Any] = {}
        for name, value in settings.items():
            if name not in known:
                raise LaunchError(f"{source}: `{name}` is unknown; there are {', '.join(known)}.")
            values[name] = _convert(value, types[name], f"{source}: `{name}`")
        try:
            return replace(self, **values)
        except LaunchError as ex:
            raise LaunchError(f"{source}: {ex}") from None


def _convert(value: Any, kind: Any, what: str) -> Any:
    kinds = [k for k in typing.get_args(kind) if k is not type(None)] if type(None) in typing.get_args(kind) else [kind]
    kind = kinds[0]
    origin = typing.get_origin(kind) or kind
    if value is None and len(kinds) < 2 and origin is not kind:
        return origin()
    if origin is str and not isinstance(value, bool) and isinstance(value, str | int | float):
        return str(value)
    if origin is float and isinstance(value, int | float):
        return float(value)
    if origin is dict and isinstance(value, dict):
        return {str(k): str(v) for k, v in value.items()}
    if isinstance(value, origin) and not (origin is int and isinstance(value, bool)):
        return value
    raise LaunchError(f"{what} must be of type {origin.__name__}, but is {value!r}.")
