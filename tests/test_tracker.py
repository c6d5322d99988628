import json
import socket
import struct
import threading

import pytest

from tvmq.device import Device
from tvmq.errors import DeviceError, UsageError
from tvmq.tracker import Board, Tracker, address_of, boards_of

SUMMARY = {
    "queue_info": {"rpi4": {"free": 1, "pending": 0}, "rpi5": {"free": 0, "pending": 2}},
    "server_info": [
        {"key": "server:rpi4", "addr": ["10.0.0.4", 9090]},
        {"key": "server:rpi4", "addr": ["10.0.0.5", 9090]},
        {"key": "server:rpi5", "addr": ["10.0.0.6", 9090]},
    ],
}


def tracker(reply):
    """Serve one connection as TVM's tracker does; return its port."""
    listening = socket.create_server(("127.0.0.1", 0))

    def serve():
        connection, _ = listening.accept()
        with connection, listening:
            connection.sendall(connection.recv(4))
            connection.recv(4)
            connection.recv(100)
            connection.sendall(struct.pack("<i", len(reply)) + reply)

    threading.Thread(target=serve, daemon=True).start()
    return listening.getsockname()[1]


def test_an_address_has_a_port_of_its_own_or_that_of_trackers():
    assert address_of("127.0.0.1:7") == ("127.0.0.1", 7)
    assert address_of("desk.local") == ("desk.local", 9190)
    assert address_of("[::1]:7") == ("::1", 7)
    assert address_of("[::1]") == ("::1", 9190)


@pytest.mark.parametrize("text", ["h:\u00b2", "h:99999", "h:0", "::1", "h:", ":7", "", "h:7:8", "[::1"])
def test_an_address_that_is_none_is_refused(text):
    with pytest.raises(UsageError, match=r"HOST:PORT is wanted.*ports go from 1 to 65535"):
        address_of(text)


def test_boards_are_those_that_the_tracker_tells():
    found = boards_of("127.0.0.1", tracker(json.dumps([0, SUMMARY]).encode()))
    assert found == (
        Board("rpi4", "10.0.0.4:9090", None), Board("rpi4", "10.0.0.5:9090", None),
        Board("rpi5", "10.0.0.6:9090", False),
    )  # fmt: skip
    port = tracker(json.dumps([0, SUMMARY]).encode())
    with pytest.raises(DeviceError, match="knows no board 'pi', it has: rpi4, rpi5; start"):
        Device("127.0.0.1", port, "pi").boards()


@pytest.mark.parametrize("reply", [b"[]", b"{", b"7", b"[0, {}]"])
def test_what_is_no_tracker_is_said(reply):
    with pytest.raises(DeviceError, match="no tracker"):
        boards_of("127.0.0.1", tracker(reply))


@pytest.mark.parametrize("host", ["127.0.0.1", "no-such-host.invalid"])
def test_a_tracker_that_is_not_there_is_said(host):
    with pytest.raises(DeviceError, match=f"no tracker answers at {host}:1 .*start one by `tvmq tracker"):
        Tracker(host, 1)
