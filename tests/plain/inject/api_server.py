"""Behaves as Kubernetes' API server does for the calls of the injector and the agent: python3 api_server.py DIRECTORY

DIRECTORY has server.crt and server.key, and objects.json, the objects that there are in the beginning, by path. Prints its
port when it listens. Writes what it was asked to DIRECTORY/log, a line a call. Only what the manifests' roles allow is allowed:
everything else is 403. Reads and writes of one object exclude each other; a write with another resourceVersion is 409.
"""

import http.server
import json
import pathlib
import re
import ssl
import sys
import threading

directory = pathlib.Path(sys.argv[1])
lock = threading.Lock()
objects = json.loads((directory / "objects.json").read_text())
version = 1000
# Objects that somebody changes just before the next write.
races = set()

SECRETS = "/api/v1/namespaces/sidecar-system/secrets"
WEBHOOKS = "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations"
ROLES = [
    ("POST", SECRETS),
    ("GET", SECRETS + "/sidecar-inject-tls"),
    ("PUT", SECRETS + "/sidecar-inject-tls"),
    ("GET", WEBHOOKS + "/inject.sidecar.internal"),
    ("PATCH", WEBHOOKS + "/inject.sidecar.internal"),
    ("GET", "/api/v1/nodes/[a-z0-9.-]+"),
    ("PATCH", "/api/v1/nodes/[a-z0-9.-]+"),
]


def stamped(value):
    global version
    version += 1
    value["metadata"]["resourceVersion"] = str(version)
    return value


def merged(old, change, strategic):
    """RFC 7386; strategic: lists of objects with names are merged by these."""
    if not isinstance(change, dict):
        named = isinstance(change, list) and all(isinstance(each, dict) and "name" in each for each in change)
        if strategic and named and isinstance(old, list):
            changes = {each["name"]: each for each in change}
            kept = [merged(each, changes.pop(each["name"], {}), True) for each in old]
            return kept + list(changes.values())
        return change
    result = dict(old) if isinstance(old, dict) else {}
    for key, value in change.items():
        if value is None:
            result.pop(key, None)
        else:
            result[key] = merged(result.get(key), value, strategic)
    return result


class Api(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def call(self):
        length = int(self.headers.get("Content-Length", 0))
        body = json.loads(self.rfile.read(length)) if length else None
        with lock:
            status, answer = self.answer(body)
            with (directory / "log").open("a") as log:
                log.write(f"{self.command} {self.path} {status}\n")
        if not 200 <= status < 300:
            answer = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "message": answer, "code": status}
        text = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = call

    def answer(self, body):
        # The token may be renewed at any time.
        token = (directory / "token").read_text().strip()
        if self.headers.get("Authorization") != f"Bearer {token}":
            return 401, "Unauthorized"
        if not any(self.command == verb and re.fullmatch(path, self.path) for verb, path in ROLES):
            return 403, f"the service account cannot {self.command} {self.path}"
        old = objects.get(self.path)
        match self.command:
            case "GET":
                return (200, old) if old else (404, f"{self.path} not found")
            case "POST":
                path = f"{self.path}/{body['metadata']['name']}"
                if path in objects:
                    return 409, f"{path} already exists"
                objects[path] = stamped(body)
                return 201, objects[path]
        if old is None:
            return 404, f"{self.path} not found"
        strategic = self.headers["Content-Type"] == "application/strategic-merge-patch+json"
        if self.command == "PUT":
            new = body
        elif strategic or self.headers["Content-Type"] == "application/merge-patch+json":
            new = merged(old, body, strategic)
        else:
            return 415, "the patch is of another kind"
        if self.path in races:
            races.discard(self.path)
            stamped(old)
        if new["metadata"].get("resourceVersion") != old["metadata"]["resourceVersion"]:
            return 409, "the object has been modified; please apply your changes to the latest version and try again"
        objects[self.path] = stamped(new)
        return 200, objects[self.path]

    def log_message(self, *_):
        pass


class Server(http.server.ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 100

    def handle_error(self, *_):
        """Clients that go away are meant to."""


def orders():
    """`reset PATH` on standard input takes the caBundles away, `race PATH` has the next write come too late; each prints the object."""
    for line in sys.stdin:
        order, path = line.split()
        with lock:
            if order == "reset":
                for webhook in objects[path]["webhooks"]:
                    webhook["clientConfig"].pop("caBundle", None)
                stamped(objects[path])
            if order == "race":
                races.add(path)
            print(json.dumps(objects.get(path)), flush=True)


server = Server(("127.0.0.1", 0), Api)
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(directory / "server.crt", directory / "server.key")
server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
threading.Thread(target=orders, daemon=True).start()
print(server.server_address[1], flush=True)
server.serve_forever()
