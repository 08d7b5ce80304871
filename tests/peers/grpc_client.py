"""Calls grpc_server.py in every shape a call can have, and checks messages, trailers and statuses."""

import concurrent.futures
import os
import queue
import sys
import time

import grpc

options = [("grpc.max_receive_message_length", -1), ("grpc.enable_http_proxy", 0)]
channel = grpc.insecure_channel(sys.argv[1], options=options)
grpc.channel_ready_future(channel).result(timeout=120)

# Both ways at once, each message answered before the next is sent: nothing may hold a message back.
outgoing = queue.Queue()
answers = channel.stream_stream("/test.Test/Echo")(iter(outgoing.get, None), timeout=150)
for number in range(500):
    message = os.urandom(number * 7)
    outgoing.put(message)
    assert next(answers) == message, number
time.sleep(2)
outgoing.put(b"after a pause")
assert next(answers) == b"after a pause"
outgoing.put(None)
assert list(answers) == []
assert ("x-trailer", "seen") in [tuple(pair) for pair in answers.trailing_metadata()]

# A long stream down, and one up that is larger than any window.
numbers = list(channel.unary_stream("/test.Test/Count")(b"20000", timeout=150))
assert numbers == [str(number).encode() for number in range(20000)]
total = channel.stream_unary("/test.Test/Sum")((bytes(1 << 20) for _ in range(64)), timeout=150)
assert total == str(64 << 20).encode()

# A failure keeps its status and its words.
try:
    channel.unary_unary("/test.Test/Fail")(b"please", timeout=120)
    raise SystemExit("the failing call succeeded")
except grpc.RpcError as error:
    assert error.code() == grpc.StatusCode.FAILED_PRECONDITION, error
    assert error.details() == "as asked: please", error

# Many calls at once on one connection, some cancelled half-way.
def one(number):
    call = channel.unary_stream("/test.Test/Count")(b"2000", timeout=150)
    if number % 5 == 0:
        next(call)
        call.cancel()
        return 0
    return sum(1 for _ in call)


with concurrent.futures.ThreadPoolExecutor(16) as pool:
    counts = list(pool.map(one, range(50)))
assert counts == [0 if number % 5 == 0 else 2000 for number in range(50)], counts
print("all calls as expected")
