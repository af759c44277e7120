"""An action server in one Python process. Texts, sentinels and statuses are those of the actionloop
proxy (contract 5.10); but here an action that ends its process ends the server with it."""
import json
import os
import sys
import traceback
from http.server import BaseHTTPRequestHandler, HTTPServer

SENTINEL = "XXX_THE_END_OF_A_WHISK_ACTIVATION_XXX"


class Refusal(Exception):
    def __init__(self, status, text):
        super().__init__(text)
        self.status = status


class Action:
    main = None

    def init(self, body):
        if self.main:
            raise Refusal(403, "Cannot initialize the action more than once.")
        try:
            value = json.loads(body).get("value") or {}
            code, binary, name = value.get("code"), value.get("binary"), value.get("main") or "main"
        except (ValueError, AttributeError) as error:
            raise Refusal(400, "Error unmarshaling request: %s" % error) from None
        if not code:
            raise Refusal(403, "Missing main/no code to execute.")
        if binary or not isinstance(code, str):
            raise Refusal(400, "cannot decode the request: only source text is supported")
        for key, item in (value.get("env") or {}).items():
            os.environ[key] = item if isinstance(item, str) else json.dumps(item)
        scope = {"__name__": "main__"}
        try:
            exec(compile(code, "main__.py", "exec"), scope)
            main = scope[name]
        except SyntaxError as error:
            print(error.msg, file=sys.stderr)
            end_log()
            raise Refusal(502, "The action failed to generate or locate a binary. See logs for details.") from None
        except Exception:
            traceback.print_exc()
            end_log()
            raise Refusal(502, "Cannot start action. Check logs for details.") from None
        self.main = main
        sys.stdout.flush()
        return b'{"ok":true}\n'

    def run(self, body):
        if not self.main:
            raise Refusal(500, "no action defined yet")
        message = json.loads(body or b"{}")
        for key, item in message.items():
            if key != "value":
                os.environ["__OW_" + key.upper()] = item
        try:
            result = self.main(message.get("value", {}))
        except Exception as error:
            traceback.print_exc()
            result = {"error": str(error)}
        try:
            answer = json.dumps(result, ensure_ascii=False, allow_nan=False).encode("utf-8") + b"\n"
        except (TypeError, ValueError):
            answer = None
        end_log()
        if answer is None or not (result is None or isinstance(result, (dict, list, tuple))):
            raise Refusal(502, "The action did not return a dictionary or array.")
        return answer


def end_log():
    for stream in (sys.stdout, sys.stderr):
        stream.write(SENTINEL + "\n")
        stream.flush()


action = Action()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def handle_any(self):
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        handler = {"/init": action.init, "/run": action.run}.get(self.path)
        status, answer = 200, b""
        if handler:
            try:
                answer = handler(body)
            except Refusal as refusal:
                status = refusal.status
                answer = json.dumps({"error": str(refusal)}, separators=(",", ":"), ensure_ascii=False).encode("utf-8") + b"\n"
        self.send_response_only(status)
        if answer:
            self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(answer)))
        self.send_header("Connection", "close")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(answer)
        self.close_connection = True

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = do_OPTIONS = do_PATCH = handle_any

    def log_message(self, *_):
        pass


class Server(HTTPServer):
    request_queue_size = 128


if __name__ == "__main__":
    Server(("0.0.0.0", 8080), Handler).serve_forever()
