"""Holds idle connections and dribbles requests byte by byte, until its standard input ends.

`python -m benchmarks.crowd_client HOST:PORT IDLE DRIBBLING` prints `ready` when all are open, and
at the end how many idle connections the server closed.
"""

from __future__ import annotations

import asyncio
import resource
import sys

BYTE_EVERY_S = 0.5
OPENED_AT_ONCE = 100
REQUEST = (
    b"POST /v2/models/mlp/infer HTTP/1.1\r\nHost: crowd\r\nContent-Length: 400\r\n\r\n" + b" " * 400
)
HEALTH = b"GET /v2/health/live HTTP/1.1\r\nHost: crowd\r\n\r\n"


async def idle(host: str, port: int, gate: asyncio.Semaphore) -> asyncio.StreamReader:
    """A connection that has asked once and stays."""
    async with gate:
        reader, writer = await asyncio.open_connection(host, port)
        writer.write(HEALTH)
        await reader.readuntil(b"}")
    KEPT.append(writer)
    return reader


async def dribble(host: str, port: int) -> None:
    """Sends a request a byte at a time, and begins anew when the server has had enough."""
    while True:
        _, writer = await asyncio.open_connection(host, port)
        try:
            for byte in REQUEST:
                writer.write(bytes([byte]))
                await writer.drain()
                await asyncio.sleep(BYTE_EVERY_S)
        except OSError:
            pass
        finally:
            writer.close()


async def main(address: str, num_idle: int, num_dribbling: int) -> None:
    """Opens all of them, waits, counts."""
    host, _, port = address.rpartition(":")
    gate = asyncio.Semaphore(OPENED_AT_ONCE)
    readers = await asyncio.gather(*(idle(host, int(port), gate) for _ in range(num_idle)))
    tasks = [asyncio.create_task(dribble(host, int(port))) for _ in range(num_dribbling)]
    print("ready", flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    print(sum(reader.at_eof() for reader in readers), flush=True)


KEPT: list[asyncio.StreamWriter] = []

if __name__ == "__main__":
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
    asyncio.run(main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])))
