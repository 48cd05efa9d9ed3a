"""Processes of their own: what XLA reads at its start, such as the number of devices, and what is to be killed."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

TESTS = Path(__file__).resolve().parent


def start(file, *arguments, devices: int = 0, before=()) -> subprocess.Popen:
    """A script on the CPU.

    Args:
      devices: how many the CPU is divided into; 0 leaves it at one.
      before: words of a command that runs the script.
    """
    flags = os.environ.get("XLA_FLAGS", "") + (f" --xla_force_host_platform_device_count={devices}" if devices else "")
    paths = os.pathsep.join(map(str, (TESTS.parent, TESTS)))
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags, "PYTHONPATH": paths}
    command = [*before, sys.executable, "-W", "ignore", file, *arguments]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([*map(str, command)], env=environment, **pipes)


def finish(process: subprocess.Popen, code: int = 0) -> tuple:
    """(the JSON that it printed last, or None where it was to end otherwise; its stderr) of a script that ends with `code`."""
    try:
        out, err = process.communicate(timeout=900)  # on machines that are busy
    finally:
        process.kill()
    assert process.returncode == code, err[-3000:]
    return json.loads(out.splitlines()[-1]) if code == 0 else None, err


def free_port() -> int:
    """A port that nobody listens at."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return free.getsockname()[1]
