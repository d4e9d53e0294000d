"""The address of this machine for the others of its job, where torch would choose wrongly.

torch uses the name of this machine. A container or a laptop may have one that nobody resolves, and
torch then waits for ever: https://github.com/pytorch/pytorch/issues/85300
"""

import ipaddress
import socket
import struct
import time
from contextlib import suppress
from typing import Any

from storage.system_modules import FCNTL as fcntl

_PATIENCE_SECONDS = 30.0  # for the name of a machine that has just been started
_POLL_SECONDS = 0.5
_LOOPBACK = "127.0.0.1"
_SIOCGIFADDR = 0x8915  # see https://man7.org/linux/man-pages/man7/netdevice.7.html


def choose_addresses(arguments: Any, nodes: int) -> str | None:
    """Fill in `local_addr` of torchrun's options, and who serves the rendezvous, if needed.

    Returns the network interface that gloo must be told to use; None if it finds the right one.
    Raises: ValueError if the name in the rendezvous endpoint does not resolve.
    """
    endpoint = arguments.rdzv_endpoint
    if arguments.local_addr is not None:
        return None
    if arguments.standalone or (nodes == 1 and not endpoint):
        arguments.local_addr = _LOOPBACK
        return None
    if arguments.rdzv_backend != "c10d" or not endpoint:
        return None
    host, port = _split(endpoint)
    target = _resolve(host, port)
    own = _own_address_towards(target)
    ours = own == target or ipaddress.ip_address(target).is_loopback
    if ours:
        arguments.local_addr = host  # the others reach this machine under that name
    elif own is not None and (_is_address(host) or not _has_usable_name()):
        arguments.local_addr = own
    loopback = ipaddress.ip_address(target).is_loopback
    if (
        not loopback
        and not _resolves(socket.gethostname())
        and "is_host" not in arguments.rdzv_conf
    ):
        # torch would look for the endpoint among the addresses of this machine's name.
        serves = ours and _is_free(target, port)
        words = [arguments.rdzv_conf] if arguments.rdzv_conf else []
        arguments.rdzv_conf = ",".join([*words, f"is_host={int(serves)}"])
    if (_is_address(host) and loopback) or host == "localhost":
        return None  # several nodes on this one machine, for a test
    return _interface_for_gloo(own)


def reachable_host(host: str, port: int, one_machine: bool) -> str:
    """`host`, or this machine's own address if the name of the one machine does not resolve.

    Raises: ValueError if another machine has that name and it does not resolve for a while.
    """
    if one_machine and not _resolves(host):
        return _LOOPBACK
    _resolve(host, port, "MASTER_ADDR")
    return host


def _split(endpoint: str) -> tuple[str, int]:
    """Host and port of HOST:PORT or [IPV6]:PORT. Raises: ValueError if it has another form."""
    host, colon, port = endpoint.strip().rpartition(":")
    if not colon or not host or not port.isdecimal() or not int(port) < 2**16:
        raise ValueError(f"rdzv_endpoint={endpoint} is not of the form HOST:PORT")
    return host.removeprefix("[").removesuffix("]"), int(port)


def _resolve(host: str, port: int, what: str = "the rendezvous endpoint") -> str:
    """The first address of a host. Raises: ValueError if it has none for a while."""
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while True:
        try:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
            return str(found[0][4][0])
        except (OSError, UnicodeError) as error:
            if time.monotonic() > deadline:
                raise ValueError(
                    f"the host {host} of {what} does not resolve ({error}); give a name that all "
                    "machines know, or an address"
                ) from error
        time.sleep(_POLL_SECONDS)


def _own_address_towards(target: str) -> str | None:
    """This machine's own address on the way to another one; None if there is no way."""
    family = socket.AF_INET6 if ":" in target else socket.AF_INET
    with suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as probe:
        probe.connect((target, 9))  # sends nothing
        return str(probe.getsockname()[0])
    return None


def _interface_for_gloo(own: str | None) -> str | None:
    """The network interface towards the other machines, if gloo would not find it; else None."""
    # gloo listens at the address of this machine's name. Debian gives the name 127.0.1.1, and where
    # it does not resolve gloo takes 127.0.0.1: no other machine reaches either.
    with suppress(OSError, UnicodeError):
        named = socket.getaddrinfo(socket.gethostname(), None)
        if not any(ipaddress.ip_address(str(place[4][0])).is_loopback for place in named):
            return None
    addresses = {name: _address_of(name) for _, name in socket.if_nameindex()}
    others = [
        name
        for name, address in addresses.items()
        if address is not None and not ipaddress.ip_address(address).is_loopback
    ]
    towards = [name for name in others if addresses[name] == own]
    return next(iter(towards or (others if len(others) == 1 else [])), None)


def _address_of(interface: str) -> str | None:
    """The IPv4 address of an interface of this machine; None without one, or not on Linux."""
    with suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        request = struct.pack("256s", interface.encode()[:15])
        return socket.inet_ntoa(fcntl.ioctl(probe, _SIOCGIFADDR, request)[20:24])
    return None


def _is_address(host: str) -> bool:
    with suppress(ValueError):
        ipaddress.ip_address(host)
        return True
    return False


def _has_usable_name() -> bool:
    """Whether the name that torch would give the others resolves, and not only to this machine."""
    name = socket.getfqdn()
    return name not in ("localhost", "localhost.localdomain") and _resolves(name)


def _resolves(host: str) -> bool:
    with suppress(OSError, UnicodeError):
        return bool(socket.getaddrinfo(host, None))
    return False


def _is_free(address: str, port: int) -> bool:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with suppress(OSError), socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind((address, port))
        return True
    return False
