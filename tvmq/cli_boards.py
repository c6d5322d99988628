"""The command line of boards; like cli.py it imports only typer."""

from __future__ import annotations

from typing import Annotated

import typer

from tvmq.cli_options import Json

boards = typer.Typer()
TRACKER = typer.Option(help="HOST:PORT of a tracker of boards; see `tvmq tracker`.")
HOST = typer.Option(help="Address to listen on. Others than the loopback's are reached by the network.")


@boards.command()
def devices(tracker: Annotated[str, TRACKER] = "", as_json: Json = False) -> int:
    """List this machine, and the boards that a tracker knows."""
    from tvmq import cli_devices

    return cli_devices.devices(tracker, as_json=as_json)


@boards.command()
def serve(
    host: Annotated[str, HOST] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535)] = 9090,
    tracker: Annotated[str, TRACKER] = "",
    key: Annotated[str, typer.Option(help="What this board is called there: rpi4.")] = "",
) -> int:
    """Let other machines run code here, over TVM's RPC: on a board, for compile, tune, bench and verify."""
    from tvmq import cli_devices

    return cli_devices.serve(host, port, tracker, key)


@boards.command()
def tracker(
    host: Annotated[str, HOST] = "127.0.0.1", port: Annotated[int, typer.Option(min=1, max=65535)] = 9190
) -> int:
    """Keep the list of boards that `tvmq serve` reports to, and lend them."""
    from tvmq import cli_devices

    return cli_devices.tracker(host, port)
