"""A gRPC server with bytes for messages: streams both ways, a counting stream, and a call that fails with a status."""

import concurrent.futures
import sys

import grpc


class Handler(grpc.GenericRpcHandler):
    def service(self, call):
        return {
            "/test.Test/Echo": grpc.stream_stream_rpc_method_handler(self.echo),
            "/test.Test/Count": grpc.unary_stream_rpc_method_handler(self.count),
            "/test.Test/Sum": grpc.stream_unary_rpc_method_handler(self.sum),
            "/test.Test/Fail": grpc.unary_unary_rpc_method_handler(self.fail),
        }.get(call.method)

    def echo(self, messages, context):
        context.set_trailing_metadata((("x-trailer", "seen"),))
        yield from messages

    def count(self, limit, context):
        for number in range(int(limit)):
            yield str(number).encode()

    def sum(self, messages, context):
        return str(sum(len(message) for message in messages)).encode()

    def fail(self, message, context):
        context.abort(grpc.StatusCode.FAILED_PRECONDITION, "as asked: " + message.decode())


server = grpc.server(
    concurrent.futures.ThreadPoolExecutor(16),
    handlers=(Handler(),),
    options=[("grpc.max_receive_message_length", -1)],
)
assert server.add_insecure_port(sys.argv[1])
server.start()
print("listening", flush=True)
server.wait_for_termination()
