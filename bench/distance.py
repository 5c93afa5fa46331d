"""Puts a registry some milliseconds away: a relay that holds everything back for as long, in both directions.

    python bench/distance.py HOST:PORT MILLISECONDS

Prints the address it listens on. A process of its own, so that what it does is nobody's CPU time but its own.
"""

from __future__ import annotations

import asyncio  # noqa: TID251  timers; no part of the product
import contextlib
import sys


async def main(target: str, delay_s: float) -> None:
    """Relay until ended."""
    host, _, port = target.rpartition(":")

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection(host, int(port))
        await asyncio.gather(_pump(reader, back, delay_s), _pump(there, writer, delay_s))

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    print("{}:{}".format(*server.sockets[0].getsockname()[:2]), flush=True)
    await server.serve_forever()


async def _pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter, delay_s: float) -> None:
    """Pass on what comes, each piece after the delay; pieces do not wait for each other."""
    loop = asyncio.get_running_loop()
    queue: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue()

    async def send() -> None:
        while True:
            due, data = await queue.get()
            await asyncio.sleep(max(0.0, due - loop.time()))
            if not data:
                break
            sink.write(data)
            await sink.drain()
        with contextlib.suppress(OSError):
            sink.close()

    sender = asyncio.create_task(send())
    data = b"begin"
    while data:
        try:
            data = await source.read(1 << 16)
        except OSError:
            data = b""
        queue.put_nowait((loop.time() + delay_s, data))
    with contextlib.suppress(OSError):
        await sender


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(main(sys.argv[1], float(sys.argv[2]) / 1000))
