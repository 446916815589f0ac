"""The socket filter, on a real socket."""

import socket
import sys

import pytest

from distributed.socket_filter import listen_only_on


@pytest.mark.skipif(not sys.platform.startswith('linux'), reason='socket filters are a feature of Linux')
def test_a_socket_on_all_interfaces_accepts_only_what_is_sent_to_its_address():
    with socket.create_server(('0.0.0.0', 0)) as server:
        port = server.getsockname()[1]
        socket.create_connection(('127.0.0.2', port), timeout=5).close()
        listen_only_on('127.0.0.1', port)
        socket.create_connection(('127.0.0.1', port), timeout=5).close()
        with pytest.raises(TimeoutError):
            socket.create_connection(('127.0.0.2', port), timeout=0.5)


@pytest.mark.parametrize('host', ['192.0.2.1', 'name'])  # reserved for documentation; of a machine that Debian set up
def test_a_host_that_is_not_this_machine_and_its_own_name_for_itself_are_not_filtered(monkeypatch, host):
    monkeypatch.setattr(socket, 'gethostbyname', {'192.0.2.1': '192.0.2.1', 'name': '127.0.1.1'}.get)
    with socket.create_server(('127.0.0.1', 0)) as server:
        port = server.getsockname()[1]
        listen_only_on(host, port)
        socket.create_connection(('127.0.0.1', port), timeout=5).close()
