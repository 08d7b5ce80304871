"""Serves key sets, and what is none: python3 jwks_server.py PORT DIRECTORY [CERTIFICATE KEY]

/keys is the file keys.json of DIRECTORY, as it is at the moment; prints its port when it listens.
"""

import http.server
import pathlib
import ssl
import sys
import time

port, directory = int(sys.argv[1]), pathlib.Path(sys.argv[2])


class Keys(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        keys = (directory / "keys.json").read_bytes()
        match self.path:
            case "/keys":
                self.answer(200, keys)
            case "/missing":
                self.answer(404, keys)
            case "/moved":
                self.answer(302, keys, Location="/keys")
            case "/garbage":
                self.answer(200, b"<html>not a key set</html>")
            case "/large":
                self.answer(200, b" " * (1 << 20) + keys)
            case "/endless":
                self.send_response(200)
                self.send_header("Transfer-Encoding", "chunked")
                self.end_headers()
                while True:
                    self.wfile.write(b"10000\r\n" + b" " * 0x10000 + b"\r\n")
            case "/slow":
                self.send_response(200)
                self.send_header("Content-Length", str(len(keys)))
                self.end_headers()
                for byte in keys:
                    self.wfile.write(bytes([byte]))
                    time.sleep(1)

    def answer(self, status, body, **fields):
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        for name, value in fields.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


class Server(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_):
        """Clients that go away are meant to."""


server = Server(("127.0.0.1", port), Keys)
if len(sys.argv) > 3:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(sys.argv[3], sys.argv[4])
    server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
print(server.server_address[1], flush=True)
server.serve_forever()
