"""A real Slurm on this machine: a controller and two node daemons, both of which are this host.

Needs root and the packages slurm-wlm and munge. There is no accounting database, as on many small clusters.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import random
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path
from typing import Final

NODES: Final = ("spearnode1", "spearnode2")

_CONFIGURATION: Final = """\
ClusterName=spear
SlurmctldHost={host}
SlurmctldPort={port}
# From it follow the ports at which the processes of a job meet: other sessions on this machine need others.
FirstJobId={first_job}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
# How long a requeued job waits; 120 s by default.
AuthInfo=socket={folder}/munge.socket,cred_expire=5
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/%n.log
ProctrackType=proctrack/pgid
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
ReturnToService=2
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/none
JobRequeue=1
SlurmdTimeout=10
KillWait=5
SchedulerParameters=sched_interval=2,batch_sched_delay=0
SlurmdParameters=config_overrides
"""


class ClusterError(RuntimeError):
    """Slurm cannot run here; the message says what is missing."""


class SlurmCluster:
    """Two nodes of four cores each, whatever this machine has.

    Args:
        folder: Where configuration, state and logs of the daemons go.
    """

    def __init__(self, folder: Path) -> None:
        self.configuration = folder / "slurm.conf"
        self._folder = folder
        self._munge: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start all daemons and wait until both nodes are idle."""
        missing = [name for name in ("slurmctld", "slurmd", "munged", "sbatch") if shutil.which(name) is None]
        if missing or os.getuid() != 0:
            raise ClusterError(
                "These tests start a Slurm of their own, as root, with the packages slurm-wlm and munge. Missing here: "
                f"{', '.join([*missing, *(['root'] if os.getuid() else [])])}. See CONTRIBUTING.md."
            )
        (self._folder / "state").mkdir(parents=True)
        self._name_nodes()
        self._start_munge()
        self._configure()
        self._spawn("slurmctld", "-f", str(self.configuration))
        for node in NODES:
            self.start_node(node)
        self.wait_until_idle()

    def stop(self) -> None:
        """End all daemons and jobs."""
        self._signal("slurmctld", signal.SIGKILL)
        for node in NODES:
            self.kill_node(node)
        if self._munge is not None:
            self._munge.kill()
            self._munge.wait()

    def start_node(self, node: str) -> None:
        """Start the daemon of a node."""
        self._spawn("slurmd", "-N", node, "-f", str(self.configuration))

    def kill_node(self, node: str) -> None:
        """End a node at once, with all that runs on it, as a loss of power would."""
        self._signal(node, signal.SIGKILL)
        for path in Path("/proc").glob("[0-9]*/environ"):
            with contextlib.suppress(OSError):
                environment = path.read_bytes()
                if f"SLURMD_NODENAME={node}\0".encode() in environment and os.fsencode(self._folder) in environment:
                    os.kill(int(path.parent.name), signal.SIGKILL)

    def wait_until_idle(self) -> None:
        """Wait until no job runs and both nodes answer."""
        for _ in range(150):
            if self.run("sinfo", "--noheader", "--states=idle", "--format=%D", check=False) == str(len(NODES)):
                return
            time.sleep(0.2)
        raise ClusterError(f"Slurm's nodes are not up after 30 s; {self._folder} has their logs.")

    def run(self, *command: str, check: bool = True) -> str:
        """Run one of Slurm's commands and return what it prints."""
        return subprocess.run(command, check=check, capture_output=True, text=True, timeout=30).stdout.strip()

    def _name_nodes(self) -> None:
        """Have the nodes' names resolve, because processes of a job connect to the first by its name."""
        try:
            socket.gethostbyname(NODES[0])
        except OSError:
            with Path("/etc/hosts").open("a") as file:
                file.write(f"127.0.0.1 {' '.join(NODES)}\n")

    def _start_munge(self) -> None:
        """Start an authentication daemon with a key of its own, so that one of the system is left alone."""
        user = pwd.getpwnam("munge")
        key = self._folder / "munge.key"
        key.write_bytes(os.urandom(1024))
        key.chmod(0o400)
        for path in (self._folder, key):
            os.chown(path, user.pw_uid, user.pw_gid)
        self._munge = subprocess.Popen(
            [
                *("munged", "--foreground", "--force", f"--key-file={key}", f"--socket={self._folder}/munge.socket"),
                *(f"--pid-file={self._folder}/munge.pid", f"--log-file={self._folder}/munge.log"),
                f"--seed-file={self._folder}/munge.seed",
            ],
            user=user.pw_uid,
            group=user.pw_gid,
            extra_groups=[],
            stderr=subprocess.DEVNULL,
        )
        for _ in range(50):
            if (self._folder / "munge.socket").exists():
                return
            time.sleep(0.1)
        raise ClusterError(f"munged does not answer; see {self._folder}/munge.log.")

    def _configure(self) -> None:
        host = socket.gethostname()
        port, *node_ports = _find_free_ports(1 + len(NODES))
        first_job = random.randint(1, 50) * 1000
        lines = [_CONFIGURATION.format(host=host, folder=self._folder, port=port, first_job=first_job)]
        lines += [
            f"NodeName={node} NodeHostname={host} NodeAddr=127.0.0.1 Port={node_port} CPUs=4 RealMemory=4000\n"
            for node, node_port in zip(NODES, node_ports, strict=True)
        ]
        lines.append(f"PartitionName=main Nodes={','.join(NODES)} Default=YES MaxTime=INFINITE State=UP\n")
        self.configuration.write_text("".join(lines))

    def _spawn(self, *command: str) -> None:
        subprocess.run(command, check=True, capture_output=True, timeout=30)

    def _signal(self, name: str, number: int) -> None:
        with contextlib.suppress(OSError, ValueError):
            os.kill(int((self._folder / f"{name}.pid").read_text()), number)


def _find_free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports
