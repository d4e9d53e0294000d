"""A switch that delivers every frame late, for kernels that cannot do it (no `netem`).

    python -m tests.hosts.slow_switch SECONDS LOST_SHARE PID PID ...

Gives the network namespace of each process an interface `eth0` and prints `up`. Each frame reaches
the other hosts after SECONDS, or with the probability LOST_SHARE never. Ends with standard input.
"""

import fcntl
import heapq
import os
import random
import select
import struct
import subprocess
import sys
import time
from typing import Any

_TUNSETIFF = 0x400454CA  # see https://docs.kernel.org/networking/tuntap.html
_TAP_WITHOUT_HEADER = 0x0002 | 0x1000
_LARGEST_FRAME = 65_536


def interface_for(process: int) -> int:
    """Give the namespace of a process an `eth0`; returns the file of its frames."""
    file = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    name = f"tap{process}"
    fcntl.ioctl(file, _TUNSETIFF, struct.pack("16sH", name.encode(), _TAP_WITHOUT_HEADER))
    subprocess.run(["ip", "link", "set", name, "netns", str(process), "name", "eth0"], check=True)
    return file


def pass_frames_on(ports: list[int], seconds: float, lost_share: float) -> None:
    """Deliver frames until standard input is closed."""
    chance = random.Random(1)
    waiting: list[Any] = []
    """Frames by the time of their delivery: (time, number, port of their origin, frame)."""
    number = 0
    while True:
        pause = max(0.0, waiting[0][0] - time.monotonic()) if waiting else None
        ready, _, _ = select.select([*ports, sys.stdin.fileno()], [], [], pause)
        if sys.stdin.fileno() in ready:
            return
        for port in ready:
            frame = os.read(port, _LARGEST_FRAME)
            if chance.random() >= lost_share:
                number += 1
                heapq.heappush(waiting, (time.monotonic() + seconds, number, port, frame))
        while waiting and waiting[0][0] <= time.monotonic():
            _, _, origin, frame = heapq.heappop(waiting)
            for port in ports:
                if port != origin:
                    try:
                        os.write(port, frame)
                    except OSError:  # the interface is down, or its queue is full
                        continue


if __name__ == "__main__":
    delay, share, *processes = sys.argv[1:]
    found = [interface_for(int(process)) for process in processes]
    sys.stdout.write("up\n")
    sys.stdout.flush()
    pass_frames_on(found, float(delay), float(share))
