"""Whether the page can listen where it is told to, said before its weights are loaded."""

from __future__ import annotations

import argparse
import errno
import os
import socket

LOCAL = "127.0.0.1"
FIRST, TRIES = 7860, 100  # ports that Gradio tries where none is named
MAX_PORT = 65535


def read_port(text: str) -> int:
    """Read a port's number, for argparse.

    Raises:
        argparse.ArgumentTypeError: no whole number from 1 to 65535.
    """
    if not text.isdecimal() or not 1 <= int(text[:6]) <= MAX_PORT:
        raise argparse.ArgumentTypeError(f"a port is a number from 1 to {MAX_PORT}, not {text:.40}")
    return int(text)


def check_address(host: str | None, port: int | None) -> str | None:
    """See that the page can listen on an address, and return the host as Gradio takes it.

    Gradio's own sentence blames the port for any fault, and names a parameter of its own.

    Args:
        host: name or address; this machine only when None.
        port: 1 … 65535; the first free one from 7860 on when None.
    Returns:
        an IPv6 address in brackets, anything else as it is.
    Raises:
        OSError: it cannot; a sentence that names the fault and the flag to change.
    """
    # Gradio's environment variables stand in for flags that are left out.
    host = host or os.environ.get("GRADIO_SERVER_NAME")
    bare = (host or LOCAL).strip("[]")
    first = port or int(os.environ.get("GRADIO_SERVER_PORT") or FIRST)
    ports = [port] if port else range(first, min(first + TRIES, MAX_PORT + 1))
    for each in ports:
        fault = try_port(bare, each)
        if fault is None:
            return f"[{bare}]" if ":" in bare else host
        if fault.errno not in (errno.EADDRINUSE, errno.EACCES):
            raise OSError(
                f"cannot listen on {bare:.100} ({fault.strerror}); give --host an address of this "
                f"machine, such as {LOCAL}, or 0.0.0.0 for all of them"
            ) from fault
    if port is None:
        raise OSError(f"ports {ports[0]} to {ports[-1]} are all in use; name another with --port")
    assert fault is not None  # the last port's
    if fault.errno == errno.EACCES:
        raise OSError(f"port {port} needs other rights; choose one from 1024 on with --port")
    raise OSError(
        f"port {port} is in use already; choose another with --port, or leave --port out for the "
        f"first free one from {FIRST} on"
    )


def try_port(host: str, port: int) -> OSError | None:
    """Return why a port cannot be listened on, or None; local programs may hold it too."""
    for name in (host, LOCAL):
        try:
            family, kind, number, _, address = socket.getaddrinfo(
                name, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
            )[0]
            with socket.socket(family, kind, number) as trial:
                trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                trial.bind(address)
        except OSError as error:
            return error
    return None
