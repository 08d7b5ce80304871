"""The server side of the SPIFFE Workload API: streams the identity that is in a directory, again whenever it changes.

Messages are those of workload.proto; a field is its number and the bytes in it.
"""

import concurrent.futures
import pathlib
import sys
import time

import grpc


def varint(number):
    out = b""
    while number > 0x7F:
        out += bytes([number & 0x7F | 0x80])
        number >>= 7
    return out + bytes([number])


def field(number, content):
    return varint(number << 3 | 2) + varint(len(content)) + content


def response(directory):
    def read(name):
        return (directory / name).read_bytes()

    svid = field(1, read("id")) + field(2, read("svid.der")) + field(3, read("key.der")) + field(4, read("bundle.der"))
    federated = field(1, b"spiffe://" + read("federated.name")) + field(2, read("federated.der"))
    return field(1, svid) + field(3, federated)


class Handler(grpc.GenericRpcHandler):
    def service(self, call):
        if call.method == "/SpiffeWorkloadAPI/FetchX509SVID":
            return grpc.unary_stream_rpc_method_handler(self.fetch)
        return None

    def fetch(self, request, context):
        if ("workload.spiffe.io", "true") not in [tuple(pair) for pair in context.invocation_metadata()]:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, "security header missing")
        directory = pathlib.Path(sys.argv[2])
        sent = None
        while context.is_active():
            # Written last, when the others are complete.
            generation = (directory / "generation").read_text()
            if generation != sent:
                yield response(directory)
                sent = generation
            time.sleep(0.05)


server = grpc.server(concurrent.futures.ThreadPoolExecutor(8), handlers=(Handler(),))
assert server.add_insecure_port("unix:" + sys.argv[1])
server.start()
print("listening", flush=True)
server.wait_for_termination()
