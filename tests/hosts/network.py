"""Hosts on one machine: namespaces for network, processes and host name, wired to a switch.

It needs root, util-linux and iproute2. Each host is the process `cat` as the first one of its
process namespace. Its standard input is a pipe from here, so a host ends, with everything that runs
in it, when it is killed and also when this process ends for any reason. Nothing is left behind.
"""

import os
import shutil
import subprocess
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from tests.launching import ENVIRONMENT

_NAMESPACES = ["--net", "--uts", "--mount", "--pid", "--fork", "--mount-proc", "--kill-child"]
_UNPACK = 'hostname "$1"; mount --bind "$2" /etc/hosts; ip link set lo up; echo up; exec cat'


@cache
def missing() -> str:
    """Why no hosts can be made here; empty if they can."""
    if os.geteuid() != 0:
        return "hosts made of namespaces need root"
    lacking = [name for name in ("ip", "unshare", "nsenter", "mount") if shutil.which(name) is None]
    if lacking:
        return f"no {', '.join(lacking)} here (iproute2 and util-linux)"
    trial = "ip link add one type veth peer name two && ip link add three type bridge"
    done = subprocess.run(
        ["unshare", *_NAMESPACES, "sh", "-c", trial], capture_output=True, text=True, check=False
    )
    return f"no namespaces with veth links here: {done.stderr.strip()}" if done.returncode else ""


class Namespace:
    """A network, processes, mounts and a host name of its own, while its first process lives."""

    def __init__(self, name: str, hosts: Path) -> None:
        self.name = name
        command = ["unshare", *_NAMESPACES, "sh", "-c", _UNPACK, "sh", name, str(hosts)]
        self.first = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self.first.stdout is not None
        assert self.first.stdout.readline() == "up\n"

    @property
    def enter(self) -> list[str]:
        """The beginning of a command that runs in here."""
        spaces = f"/proc/{self.first.pid}/ns"
        files = {"net": "net", "uts": "uts", "mount": "mnt", "pid": "pid_for_children"}
        return ["nsenter", *(f"--{kind}={spaces}/{file}" for kind, file in files.items()), "--"]

    def ip(self, *words: str, check: bool = True) -> None:
        """Run `ip WORDS` on this network."""
        inside = ["nsenter", f"--net=/proc/{self.first.pid}/ns/net", "--"]
        done = subprocess.run([*inside, "ip", *words], capture_output=True, text=True)
        assert not check or done.returncode == 0, f"ip {words}: {done.stderr}"

    def end(self) -> None:
        """Kill everything in here at once, like a power failure."""
        self.first.kill()
        self.first.wait()
        for stream in (self.first.stdin, self.first.stdout):
            assert stream is not None
            stream.close()


@dataclass
class Host:
    """A host with one cable to the switch."""

    name: str
    address: str
    network: "Network"
    space: Namespace

    def start(self, *command: str, **variables: str) -> subprocess.Popen[bytes]:
        """Run a command in here; what it prints is added to the host's log."""
        with self.log.open("ab") as log:
            process = subprocess.Popen(
                [*self.space.enter, *command],
                env=ENVIRONMENT | variables,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        self.network.processes.append(process)
        return process

    @property
    def log(self) -> Path:
        """What all commands on this host have printed."""
        return self.network.folder / f"{self.name}.log"

    def cut(self) -> None:
        """Pull the cable."""
        self.network.switch.ip("link", "set", f"to_{self.name}", "down")

    def plug(self) -> None:
        """Put the cable in again."""
        self.network.switch.ip("link", "set", f"to_{self.name}", "up")

    def disappear(self) -> None:
        """Lose the host: no packet says so to the others."""
        self.cut()
        self.space.end()

    def come_back(self) -> None:
        """Start the host again; nothing runs on it yet."""
        self.network.switch.ip("link", "del", f"to_{self.name}", check=False)  # perhaps gone
        self.space = self.network.boot(self.name, self.address)


@dataclass
class Network:
    """A switch and hosts called `names`, with the addresses 10.77.0.1, 10.77.0.2 …

    `style` is how /etc/hosts is written: `debian` gives the own name a loopback address, as that
    system does; `nameless` knows no name at all.
    """

    folder: Path
    names: tuple[str, ...]
    style: str = "debian"
    wired: bool = True
    """Whether the hosts have cables to the switch; otherwise a test connects them itself."""
    hosts: list[Host] = field(default_factory=list)
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)
    _stack: ExitStack = field(default_factory=ExitStack)

    def __enter__(self) -> "Network":
        self.switch = Namespace("switch", self._hosts_file("switch"))
        self._stack.callback(self.switch.end)
        self.switch.ip("link", "add", "bridge", "type", "bridge")
        self.switch.ip("link", "set", "bridge", "up")
        for name, address in self._addresses().items():
            host = Host(name, address, self, self.boot(name, address))
            self._stack.callback(lambda host=host: host.space.end())
            self.hosts.append(host)
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()
        for process in self.processes:
            process.wait(30)

    def boot(self, name: str, address: str) -> Namespace:
        """A host with its cable, and nothing running on it."""
        space = Namespace(name, self._hosts_file(name))
        if self.wired:
            port = f"to_{name}"
            words = ["link", "add", port, "type", "veth", "peer", "name", "eth0"]
            self.switch.ip(*words, "netns", str(space.first.pid))
            self.switch.ip("link", "set", port, "master", "bridge", "up")
            configure(space, address)
        return space

    def logs(self) -> str:
        """The last lines of each host, for a failed assertion."""
        texts = {host.name: host.log for host in self.hosts if host.log.exists()}
        return "\n".join(f"--- {name}\n{log.read_text()[-3000:]}" for name, log in texts.items())

    def _addresses(self) -> dict[str, str]:
        return {name: f"10.77.0.{number}" for number, name in enumerate(self.names, 1)}

    def _hosts_file(self, own: str) -> Path:
        known = {"localhost": "127.0.0.1"}
        if self.style == "debian":
            known |= self._addresses() | {own: "127.0.1.1"}
        file = self.folder / f"hosts of {own}"
        file.write_text("".join(f"{address} {name}\n" for name, address in known.items()))
        return file


def configure(space: Namespace, address: str) -> None:
    """Give the network card of a host its address."""
    space.ip("address", "add", f"{address}/24", "dev", "eth0")
    space.ip("link", "set", "eth0", "up")
