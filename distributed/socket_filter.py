"""A filter for listening sockets that were opened by a library."""

import contextlib
import ctypes
import os
import socket
import struct
import sys
from pathlib import Path

SO_ATTACH_FILTER = 26  # man 7 socket; the socket module has no such constant


def listen_only_on(host: str, port: int) -> None:
    """Make the sockets of this process on `port` drop every packet not sent to the IPv4 address of `host`.

    TensorFlow's server listens on all interfaces, whatever its address, and runs whatever it is sent. Does nothing on
    other systems than Linux, if the address does not belong to this machine (in a container behind a service), or if
    `host` is this machine's name and leads to a loopback address, as Debian's /etc/hosts has it: others know another.
    """
    if not sys.platform.startswith('linux'):
        return
    try:
        address = socket.gethostbyname(host)
        socket.create_server((address, 0)).close()
    except OSError:
        return
    if address.startswith('127.') and host not in (address, 'localhost'):
        return
    instructions = [  # code, jump if true, jump if false, operand
        (0x20, 0, 0, 0xFFF00010),  # load the destination from the IPv4 header (SKF_NET_OFF + 16)
        (0x15, 0, 1, int.from_bytes(socket.inet_aton(address), 'big')),  # skip the next if it differs
        (0x06, 0, 0, 0xFFFFFFFF),  # accept
        (0x06, 0, 0, 0),  # drop
    ]
    program = ctypes.create_string_buffer(b''.join(struct.pack('HBBI', *each) for each in instructions))
    option = struct.pack('HP', len(instructions), ctypes.addressof(program))
    for descriptor in filter(Path.is_socket, Path('/proc/self/fd').iterdir()):
        with contextlib.suppress(OSError), socket.socket(fileno=os.dup(int(descriptor.name))) as sock:  # unless closed
            if sock.family in (socket.AF_INET, socket.AF_INET6) and sock.getsockname()[1] == port:
                sock.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, option)
