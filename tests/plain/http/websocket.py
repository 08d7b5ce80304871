"""A WebSocket server that echoes, and a client that checks it. `websocket.py server` or `client PORT`."""

import asyncio
import sys

import websockets


async def echo(socket):
    async for message in socket:
        await socket.send(message)


async def server():
    async with websockets.serve(echo, "127.0.0.1", 0, max_size=None) as listening:
        print(listening.sockets[0].getsockname()[1], flush=True)
        await asyncio.Future()


async def client(port):
    async with websockets.connect(f"ws://127.0.0.1:{port}/", max_size=None, compression=None) as socket:
        for number in range(200):
            await socket.send(f"message {number}")
            assert await socket.recv() == f"message {number}"
        large = bytes(range(256)) * 8192
        await socket.send(large)
        assert await socket.recv() == large
        await (await socket.ping())
    assert socket.close_code == 1000, socket.close_code
    print("ok")


if sys.argv[1] == "server":
    asyncio.run(server())
else:
    asyncio.run(asyncio.wait_for(client(sys.argv[2]), 150))
