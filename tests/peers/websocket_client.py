"""Sends messages of many sizes to websocket_server.py and compares what comes back; pings; closes properly."""

import asyncio
import os
import sys

import websockets


async def main():
    async with websockets.connect(sys.argv[1], max_size=None) as connection:
        assert await connection.recv() == "welcome"
        for size in [0, 1, 125, 126, 65535, 65536, 1 << 20]:
            for message in [os.urandom(size), "x" * size]:
                await connection.send(message)
                assert await connection.recv() == message, f"{size} bytes came back changed"
        for number in range(500):
            await connection.send(str(number))
            assert await connection.recv() == str(number)
        await (await connection.ping())
        # Idle for a moment: an upgraded connection is nobody's request in flight.
        await asyncio.sleep(2)
        await connection.send("last")
        assert await connection.recv() == "last"
    assert connection.close_code == 1000, connection.close_code
    print("all messages came back")


asyncio.run(main())
