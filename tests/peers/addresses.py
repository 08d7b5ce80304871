"""What a socket is bound to before it connects, and what either end is shown then.

`serve ADDRESS PORT`: tells each client, before it has said anything, which address and port it has as Python sees it.
`ask JSON`: connects as the object says, and prints what came of it as one line of JSON.
`ftp ADDRESS PORT`: gives a file to a client in active mode, at the address that it names."""

import errno
import json
import os
import socket
import sys

SO_BINDTODEVICE, SO_BINDTOIFINDEX = socket.SO_BINDTODEVICE, 62
IPPROTO_MPTCP = 262


def serve(address, port):
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.create_server((address, port), family=family, dualstack_ipv6=address == "::") as server:
        while True:
            client, peer = server.accept()
            with client:
                told = {"peer": list(peer), "own": list(client.getsockname())}
                client.sendall(json.dumps(told).encode())


def device_of(s):
    name = s.getsockopt(socket.SOL_SOCKET, SO_BINDTODEVICE, 16).rstrip(b"\0").decode()
    return [name, s.getsockopt(socket.SOL_SOCKET, SO_BINDTOIFINDEX)]


def ask(how):
    if how.get("uid"):
        os.setgroups([])
        os.setgid(how["uid"])
        os.setuid(how["uid"])
    family = socket.AF_INET6 if how.get("v6") else socket.AF_INET
    answer = {"error": None}
    protocol = IPPROTO_MPTCP if how.get("multipath") else 0
    with socket.socket(family, socket.SOCK_STREAM, protocol) as s:
        try:
            if how.get("reuse"):
                s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if how.get("device") and not how.get("late"):
                s.setsockopt(socket.SOL_SOCKET, SO_BINDTODEVICE, how["device"].encode())
            if how.get("index"):
                s.setsockopt(socket.SOL_SOCKET, SO_BINDTOIFINDEX, how["index"])
            if how.get("bind"):
                s.bind(tuple(how["bind"]))
            answer["bound"] = list(s.getsockname())
            for first in how.get("first", []):
                # It fails, and the socket is used again.
                assert s.connect_ex(tuple(first)) != 0
            to = tuple(how["to"])
            if how.get("scope"):
                to += (0, socket.if_nametoindex(how["scope"]))
            if how.get("nonblocking"):
                s.setblocking(False)
                error = s.connect_ex(to)
                if error not in (0, errno.EINPROGRESS):
                    raise OSError(error, os.strerror(error))
                answer["before"] = list(s.getsockname())
                s.setblocking(True)
                s.settimeout(20)
            else:
                s.settimeout(20)
                s.connect(to)
                answer["before"] = list(s.getsockname())
            if how.get("late"):
                s.setsockopt(socket.SOL_SOCKET, SO_BINDTODEVICE, how["device"].encode())
            told = b""
            while more := s.recv(4096):
                told += more
            answer["told"] = json.loads(told)
            answer["after"] = list(s.getsockname())
            answer["peer"] = list(s.getpeername())
        except OSError as error:
            answer["error"] = errno.errorcode.get(error.errno, str(error))
        answer["device"] = device_of(s)
    print(json.dumps(answer), flush=True)


def ftp(address, port):
    with socket.create_server((address, port)) as server:
        client, _ = server.accept()
        with client, client.makefile("rw", newline="\r\n") as lines:

            def say(text):
                lines.write(text + "\n")
                lines.flush()

            say("220 ready")
            for line in lines:
                verb, _, rest = line.strip().partition(" ")
                if verb == "PORT":
                    numbers = [int(number) for number in rest.split(",")]
                    data = (".".join(map(str, numbers[:4])), numbers[4] * 256 + numbers[5])
                    say("200 good" if not data[0].startswith("127.") else "500 not your address")
                elif verb == "RETR":
                    say("150 here it comes")
                    with socket.create_connection(data, 20) as connection:
                        connection.sendall(b"content\r\n")
                    say("226 done")
                elif verb == "QUIT":
                    say("221 bye")
                    return
                else:
                    say("230 good")


verb, *arguments = sys.argv[1:]
if verb == "ask":
    ask(json.loads(arguments[0]))
else:
    {"serve": serve, "ftp": ftp}[verb](arguments[0], int(arguments[1]))
