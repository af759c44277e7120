"""An action runtime that does what its action tells it to, protocol errors included.

It runs Python actions in one process, like the runtime the recorded scenarios were made with.
An action may return {"__raw": {...}} to shape the HTTP answer itself:
  body, status (200), chunked, nolength (delimited by the close), short (announce that many bytes more),
  pad (append that many bytes), nosentinel.
Code that begins with `RAWINIT {...}` shapes the answer to /init in the same way.
With RECORDER=host:port in the environment every request is reported there as one line of JSON
before it is handled, so that a test sees what the invoker really sent.
"""

import json
import os
import socket
import sys
import traceback
from http.server import BaseHTTPRequestHandler, HTTPServer

SENTINEL = "XXX_THE_END_OF_A_WHISK_ACTIVATION_XXX"
GLOBALS = {}


def sentinels():
    for stream in (sys.stdout, sys.stderr):
        stream.write(SENTINEL + "\n")
        stream.flush()


def report(path, headers, body):
    recorder = os.environ.get("RECORDER")
    if not recorder:
        return
    host, port = recorder.rsplit(":", 1)
    line = json.dumps({"path": path, "headers": dict(headers), "body": body})
    with socket.create_connection((host, int(port)), timeout=5) as peer:
        peer.sendall(line.encode() + b"\n")
        peer.shutdown(socket.SHUT_WR)
        peer.recv(1)


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *_):
        pass

    def raw(self, shape):
        body = shape.get("body", "")
        if "pad" in shape:
            body += "x" * shape["pad"]
        data = body.encode()
        self.send_response(shape.get("status", 200))
        self.send_header("Content-Type", "application/json")
        if shape.get("chunked"):
            self.send_header("Transfer-Encoding", "chunked")
            data = b"%x\r\n%s\r\n0\r\n\r\n" % (len(data), data)
        elif not shape.get("nolength"):
            self.send_header("Content-Length", str(len(data) + shape.get("short", 0)))
        self.end_headers()
        self.wfile.write(data)

    def answer(self, status, value):
        self.raw({"status": status, "body": json.dumps(value)})

    def do_POST(self):
        text = self.rfile.read(int(self.headers.get("Content-Length", 0))).decode()
        report(self.path, self.headers, text)
        request = json.loads(text)
        if self.path == "/init":
            self.init(request["value"])
        else:
            self.run(request)

    def init(self, value):
        code = value.get("code") or "def main(a): return {'args': a}\n"
        if code.startswith("RAWINIT "):
            return self.raw(json.loads(code[len("RAWINIT "):]))
        if value.get("binary"):
            import base64

            code = base64.b64decode(code).decode()
        os.environ.update(value.get("env") or {})
        try:
            scope = {}
            exec(compile(code, "action", "exec"), scope)
            GLOBALS["main"] = scope[value.get("main") or "main"]
        except Exception as error:
            traceback.print_exc()
            sentinels()
            return self.answer(502, {"error": "Initialization has failed due to: %s" % error})
        self.answer(200, {"OK": True})

    def run(self, request):
        for name in ("activation_id", "deadline", "transaction_id", "action_version", "namespace", "action_name", "api_key"):
            if name in request:
                os.environ["__OW_" + name.upper()] = request[name]
        try:
            result = GLOBALS["main"](request.get("value") or {})
        except Exception as error:
            traceback.print_exc()
            sentinels()
            return self.answer(502, {"error": "An error has occurred: %s" % error})
        shape = result.get("__raw") if isinstance(result, dict) else None
        if shape is None:
            sentinels()
            return self.answer(200, result)
        if not shape.get("nosentinel"):
            sentinels()
        sys.stdout.flush()
        self.raw(shape)


if __name__ == "__main__":
    HTTPServer(("0.0.0.0", 8080), Handler).serve_forever()
