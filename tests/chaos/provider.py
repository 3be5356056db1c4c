"""The fake provider, with a log that a kill does not shorten: a line as a call comes, another as its answer is out.

Each answer that is out is told to a datagram socket too, so that somebody may be killed right then.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from aiohttp import web

from bursar_sidecar.fake_provider.served import Call, Served
from bursar_sidecar.fake_provider.server import Settings, application

#: The request header that says which of the load's calls it is.
CALL_HEADER = "x-chaos-call"


@dataclass(slots=True)
class LoggedServed(Served):
    """Writes each line with one write, which survives the process."""

    log_fd: int = -1
    told: str = ""
    line: socket.socket | None = None

    def begin(self, method: str, path: str, query: Mapping[str, str], headers: Mapping[str, str]) -> Call:
        call = super(LoggedServed, self).begin(method, path, query, headers)
        self._write({"call": call.headers.get(CALL_HEADER, ""), "begun": True})
        return call

    def end(self, call: Call) -> None:
        usage = call.usage._asdict() if call.usage is not None and call.status == 200 else None
        self._write(
            {
                "call": call.headers.get(CALL_HEADER, ""),
                "model": call.model,
                "status": call.status,
                "completed": call.completed,
                "usage": usage,
            }
        )
        if self.line is not None:
            with contextlib.suppress(OSError):
                self.line.sendto(b"answered", self.told)

    def _write(self, line: dict[str, object]) -> None:
        os.write(self.log_fd, json.dumps(line).encode() + b"\n")


async def serve(listen: str, log: Path, told: str) -> None:
    """Serve until SIGTERM."""
    line = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    line.setblocking(False)
    fd = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    served = LoggedServed(log_fd=fd, told=told, line=line)
    runner = web.AppRunner(application(Settings(), served), access_log=None)
    await runner.setup()
    host, _, port = listen.rpartition(":")
    await web.TCPSite(runner, host, int(port)).start()
    bound = runner.addresses[0]
    print(json.dumps({"event": "ready", "listen": f"{bound[0]}:{bound[1]}"}), flush=True)
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    await stop.wait()
    await runner.cleanup()
    line.close()


if __name__ == "__main__":
    asyncio.run(serve(sys.argv[1], Path(sys.argv[2]), sys.argv[3]))
