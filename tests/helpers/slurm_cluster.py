"""A Slurm of one node for as long as a test runs, from slurm-wlm and munge."""

import os
import shutil
import signal
import socket
import subprocess
import time
from contextlib import ExitStack, contextmanager
from pathlib import Path

_DAEMONS = ("munged", "slurmctld", "slurmd")

# Two cores; two GPUs as far as Slurm knows. Jobs of partition `high` pre-empt those of
# `low`. cred_expire is also how long a requeued job waits.
_CONFIG = """
ClusterName=test
SlurmctldHost={host}
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SchedulerParameters=sched_interval=2,bf_interval=2,preempt_youngest_first
KillWait=20
InactiveLimit=0
ReturnToService=2
MpiDefault=none
SlurmdParameters=config_overrides
GresTypes=gpu
NodeName={host} NodeAddr=127.0.0.1 CPUs=2 RealMemory=4000 Gres=gpu:2 State=UNKNOWN
PartitionName=low Nodes=ALL Default=YES PriorityTier=1 State=UP
PartitionName=high Nodes=ALL PriorityTier=10 State=UP
"""


def lacks() -> str:
    """What this machine lacks to run a Slurm, or ``''``."""
    missing = [name for name in (*_DAEMONS, "srun") if not _found(name)]
    if missing:
        return f"{', '.join(missing)} not installed (Debian: slurm-wlm, munge)"
    return "" if os.geteuid() == 0 else "Slurm's daemons need root"


def _found(name: str) -> str | None:
    return shutil.which(name, path=os.environ["PATH"] + ":/usr/sbin:/sbin")


@contextmanager
def cluster(folder: Path):
    """Starts the daemons; within it ``SLURM_CONF`` should name what it yields."""
    for name in ("state", "spool"):
        (folder / name).mkdir(parents=True)
    config = folder / "slurm.conf"
    host = socket.gethostname().partition(".")[0]
    config.write_text(_CONFIG.format(host=host, folder=folder, ports=_free_ports(2)))
    # Devices that are there, for a GPU's.
    (folder / "gres.conf").write_text("Name=gpu File=/dev/null,/dev/zero\n")
    key = folder / "munge.key"
    key.write_bytes(os.urandom(128))
    key.chmod(0o400)
    munge = [f"--{kind}-file={folder}/munge.{kind}" for kind in ("key", "pid", "log")]
    munge += [f"--seed-file={folder}/munge.seed", f"--socket={folder}/munge.socket"]
    with ExitStack() as stack:
        stack.enter_context(_daemon(folder, ["munged", "--foreground", "-f", *munge]))
        _wait_for(lambda: (folder / "munge.socket").exists(), 10)
        environment = {**os.environ, "SLURM_CONF": str(config)}
        for name in ("slurmctld", "slurmd"):
            line = [name, "-D", "-f", str(config)]
            stack.enter_context(_daemon(folder, line, environment))
        _wait_for(lambda: _is_idle(environment), 60)
        yield config
        subprocess.run(["scancel", "--user=root"], env=environment, check=False)
        subprocess.run(["scancel", "-f", "-s", "KILL", "--user=root"], env=environment)


@contextmanager
def _daemon(folder: Path, line: list[str], environment: dict | None = None):
    with open(folder / f"{line[0]}.out", "wb") as output:
        process = subprocess.Popen(
            [_found(line[0]), *line[1:]],
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment,
        )
    try:
        yield
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _is_idle(environment: dict) -> bool:
    asked = subprocess.run(
        ["sinfo", "-h", "-o", "%T"], env=environment, capture_output=True, text=True
    )
    return set(asked.stdout.split()) == {"idle"}


def _wait_for(condition, seconds: float) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "Slurm did not start"
        time.sleep(0.2)


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports
