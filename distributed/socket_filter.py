"""A packet filter that closes a remote-code-execution port: TensorFlow's server runs any graph sent to it."""

import contextlib
import ctypes
import os
import socket
import struct
import sys
from pathlib import Path

SO_ATTACH_FILTER = 26  # option of man 7 socket, which the socket module does not define


def listen_only_on(host: str, port: int) -> None:
    """Make this process's sockets on `port` drop every packet that is not sent to the IPv4 address of `host`.

    TensorFlow's server listens on all interfaces, not only on its own address. Does nothing on systems other than
    Linux, or if `host` is not an address under which the other workers reach this machine.
    """
    if not sys.platform.startswith('linux'):
        return

    # An address that cannot be bound belongs to another machine, for example to the service in front of a container.
    try:
        address = socket.gethostbyname(host)
        socket.create_server((address, 0)).close()
    except OSError:
        return
    # Debian's /etc/hosts maps this machine's own name to 127.0.1.1; other machines use its real address.
    if address.startswith('127.') and host not in (address, 'localhost'):
        return

    # A classic BPF program (man 7 socket): accept a packet if its destination is `address`, otherwise drop it.
    instructions = [  # code, jump if true, jump if false, operand
        (0x20, 0, 0, 0xFFF00010),  # load the destination from the IPv4 header (SKF_NET_OFF + 16)
        (0x15, 0, 1, int.from_bytes(socket.inet_aton(address), 'big')),  # skip the next one if it differs
        (0x06, 0, 0, 0xFFFFFFFF),  # accept
        (0x06, 0, 0, 0),  # drop
    ]
    program = ctypes.create_string_buffer(b''.join(struct.pack('HBBI', *line) for line in instructions))
    option = struct.pack('HP', len(instructions), ctypes.addressof(program))

    # TensorFlow does not expose its sockets, so look for them among all descriptors of the process.
    for descriptor in filter(Path.is_socket, Path('/proc/self/fd').iterdir()):
        with contextlib.suppress(OSError), socket.socket(fileno=os.dup(int(descriptor.name))) as sock:  # unless closed
            if sock.family in (socket.AF_INET, socket.AF_INET6) and sock.getsockname()[1] == port:
                sock.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, option)
