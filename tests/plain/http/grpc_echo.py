"""A gRPC server that echoes, and a client that checks it. `grpc_echo.py server` or `client PORT calls|unavailable`."""

import queue
import sys
from concurrent import futures

import grpc


def unary(request, context):
    context.set_trailing_metadata((("x-length", str(len(request))),))
    return request


def both(requests, context):
    for request in requests:
        yield request


def fail(request, context):
    context.abort(grpc.StatusCode.NOT_FOUND, "nothing here")


def server():
    handlers = {
        "Unary": grpc.unary_unary_rpc_method_handler(unary),
        "Both": grpc.stream_stream_rpc_method_handler(both),
        "Fail": grpc.unary_unary_rpc_method_handler(fail),
    }
    listening = grpc.server(futures.ThreadPoolExecutor(8))
    listening.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test.Echo", handlers),))
    port = listening.add_insecure_port("127.0.0.1:0")
    listening.start()
    print(port, flush=True)
    listening.wait_for_termination()


def calls(channel):
    call = channel.unary_unary("/test.Echo/Unary")
    answer, rpc = call.with_call(b"x" * 200_000, timeout=150)
    assert answer == b"x" * 200_000
    assert ("x-length", "200000") in [tuple(pair) for pair in rpc.trailing_metadata()], rpc.trailing_metadata()
    pending = [call.future(str(number).encode(), timeout=150) for number in range(100)]
    for number, future in enumerate(pending):
        assert future.result() == str(number).encode()

    # Each message is sent only when the one before has come back: nothing may be held up.
    outgoing = queue.Queue()
    answers = channel.stream_stream("/test.Echo/Both")(iter(outgoing.get, None), timeout=150)
    for number in range(100):
        outgoing.put(str(number).encode())
        assert next(answers) == str(number).encode()
    outgoing.put(None)
    assert list(answers) == []
    assert answers.code() == grpc.StatusCode.OK

    try:
        channel.unary_unary("/test.Echo/Fail")(b"", timeout=150)
        raise AssertionError("no error")
    except grpc.RpcError as error:
        assert error.code() == grpc.StatusCode.NOT_FOUND, error
        assert error.details() == "nothing here", error


def unavailable(channel):
    try:
        channel.unary_unary("/test.Echo/Unary")(b"", timeout=150)
        raise AssertionError("no error")
    except grpc.RpcError as error:
        assert error.code() == grpc.StatusCode.UNAVAILABLE, error
        assert "refused" in error.details(), error.details()


def client(port, what):
    options = (("grpc.enable_http_proxy", 0), ("grpc.enable_retries", 0))
    with grpc.insecure_channel(f"127.0.0.1:{port}", options=options) as channel:
        {"calls": calls, "unavailable": unavailable}[what](channel)
    print("ok")


if sys.argv[1] == "server":
    server()
else:
    client(sys.argv[2], sys.argv[3])
