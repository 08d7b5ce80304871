"""A WebSocket server that speaks first and then sends back every message."""

import asyncio
import sys

import websockets


async def serve(connection):
    await connection.send("welcome")
    async for message in connection:
        await connection.send(message)


async def main():
    async with websockets.serve(serve, sys.argv[1], int(sys.argv[2]), max_size=None):
        await asyncio.Future()


asyncio.run(main())
