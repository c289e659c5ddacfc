"""A real Slurm of two nodes on this one machine: Debian's daemons with a configuration of their own, ended by process id.

Both nodes are this host under other names, so that ``scontrol show hostnames`` tells names that do not resolve: a
rendezvous must ask for the node's address. Nothing of the machine's own Slurm or munge is read or written.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path

NODES = ("n0", "n1")
PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "scancel", "squeue", "sinfo")
WHERE = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"

CONFIGURATION = """\
ClusterName=small
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={control}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
MpiDefault=none
ReturnToService=2
SlurmdParameters=config_overrides
KillWait=20
MinJobAge=3600
SlurmdTimeout=15
JobRequeue=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
NodeName=n[0-1] NodeHostname={host} NodeAddr=127.0.0.1 Port=[{first}-{second}] CPUs=2 RealMemory=2000
PartitionName=low Nodes=n[0-1] Default=YES PriorityTier=1 GraceTime=20 State=UP MaxTime=60
PartitionName=high Nodes=n[0-1] PriorityTier=10 PreemptMode=OFF State=UP MaxTime=60
"""


def missing() -> list[str]:
    """Programs that a small cluster needs and that this machine lacks."""
    return [name for name in PROGRAMS if shutil.which(name, path=WHERE) is None]


class Cluster:
    """Two nodes while it lasts. ``folder``: a short path, since it holds a socket."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environment = {**os.environ, "PATH": WHERE, "SLURM_CONF": str(folder / "slurm.conf")}
        self.daemons: dict[str, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> Cluster:
        folder = self.folder
        (folder / "state").mkdir()
        key = folder / "munge.key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o600)
        control = free_ports(3)
        text = CONFIGURATION.format(
            host=socket.gethostname().split(".")[0],
            user=subprocess.check_output(["id", "-un"], text=True).strip(),
            folder=folder,
            control=control,
            first=control + 1,
            second=control + 2,
        )
        (folder / "slurm.conf").write_text(text)
        try:
            files = {name: folder / f"munge.{name}" for name in ("socket", "pid", "log", "seed")}
            options = [
                f"--{name if name not in ('pid', 'log', 'seed') else name + '-file'}={path}" for name, path in files.items()
            ]
            self._start("munged", "munged", "--foreground", "--force", f"--key-file={key}", *options)
            wait_until(lambda: files["socket"].exists(), 20, "munged has no socket")
            self._start("slurmctld", "slurmctld", "-D", "-i")
            for node in NODES:
                self.start_node(node)
            wait_until(lambda: self.idle() == set(NODES), 60, "the nodes did not become idle")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(subprocess.SubprocessError, OSError):
            if "slurmctld" in self.daemons:
                self("scancel", "--state=PENDING")
                self("scancel", "--state=RUNNING")
                wait_until(lambda: not self("squeue", "-h"), 60, "jobs are left")
        for node in NODES:
            end_tree(self.steps_of(node))
        for name in (*NODES, "slurmctld", "munged"):
            if name in self.daemons:
                end(self.daemons.pop(name))

    def __call__(self, *words: str | Path) -> str:
        """What a Slurm command prints. Raises CalledProcessError where it fails."""
        done = subprocess.run(
            [str(word) for word in words],
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
            timeout=60,
        )
        if done.returncode:
            raise subprocess.CalledProcessError(done.returncode, done.args, done.stdout)
        return done.stdout

    def start_node(self, node: str) -> None:
        self._start(node, "slurmd", "-D", "-N", node)

    def crash(self, node: str) -> None:
        """What a power cut does to a node: its daemon and every process of its jobs end at once, without a word."""
        steps = self.steps_of(node)
        daemon = self.daemons.pop(node)
        daemon.kill()
        daemon.wait()
        end_tree(steps)

    def steps_of(self, node: str) -> list[int]:
        """Processes that watch over a step (or a batch script) on this node."""
        found = []
        mark = f"{self.folder}/spool-{node}".encode()
        for entry in Path("/proc").iterdir():
            with contextlib.suppress(OSError):
                if entry.name.isdigit() and b"slurmstepd" in (entry / "cmdline").read_bytes():
                    opened = (os.fsencode(os.readlink(link)) for link in (entry / "fd").iterdir())
                    if any(path.startswith(mark) for path in opened):
                        found.append(int(entry.name))
        return found

    def idle(self) -> set[str]:
        with contextlib.suppress(subprocess.SubprocessError):
            return set(self("sinfo", "-h", "-N", "-p", "low", "-t", "idle", "-o", "%N").split())
        return set()

    def submit(self, *words: str | Path, **variables: str) -> str:
        """The number of a new job."""
        self.environment |= variables
        try:
            return self("sbatch", "--parsable", *words).split(";")[0].strip()
        finally:
            for name in variables:
                del self.environment[name]

    def facts(self, job: str) -> dict[str, str]:
        """``scontrol show job``, by name; of the first of an array."""
        words = self("scontrol", "-o", "show", "job", job).splitlines()[0].split()
        return dict(word.split("=", 1) for word in words if "=" in word)

    def state(self, job: str) -> str:
        return self.facts(job)["JobState"]

    def _start(self, name: str, program: str, *words: str | Path) -> None:
        path = shutil.which(program, path=WHERE)
        with (self.folder / f"{name}.out").open("ab") as log:
            self.daemons[name] = subprocess.Popen(
                [str(path), *map(str, words)],
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )


def wait_until(true: Callable[[], bool], seconds: float, otherwise: str) -> None:
    end = time.monotonic() + seconds
    while not true():
        if time.monotonic() > end:
            raise TimeoutError(otherwise)
        time.sleep(0.2)


def end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(20)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def children(pids: Sequence[int]) -> list[int]:
    """These processes and all that they have started, the eldest first."""
    parents: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError, ValueError):
            pid = int(entry.name)
            parents.setdefault(int((entry / "stat").read_text().rpartition(")")[2].split()[1]), []).append(pid)
    found = list(pids)
    for pid in found:
        found += parents.get(pid, [])
    return found


def end_tree(pids: Sequence[int]) -> None:
    for pid in children(pids):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def free_ports(count: int) -> int:
    """The first of ``count`` ports in a row that nobody listens on."""
    for first in range(21000 + os.getpid() % 5000, 40000, count):
        sockets = [socket.socket() for _ in range(count)]
        try:
            for offset, one in enumerate(sockets):
                one.bind(("", first + offset))
            return first
        except OSError:
            continue
        finally:
            for one in sockets:
                one.close()
    raise OSError("no free ports")
