"""Talks to a server over a connection that is kept for the next time."""
import http.client
import socket


def gateway():
    with open("/proc/net/route", encoding="ascii") as table:
        for line in table.read().splitlines()[1:]:
            fields = line.split()
            if fields[1] == "00000000":
                return socket.inet_ntoa(bytes.fromhex(fields[2])[::-1])
    raise OSError("no default route")


client = None


def main(args):
    global client
    found = client is not None
    answers = []
    for _ in range(3):
        if client is None:
            client = http.client.HTTPConnection(gateway(), args["port"], timeout=10)
        client.request("GET", "/")
        answers.append(client.getresponse().read().decode())
    return {"found": found, "answers": answers, "host": socket.gethostname()}
