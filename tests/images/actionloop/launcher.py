"""The child: one request per line on stdin, one answer per line on fd 3 (contract 5.10)."""
import sys
import os
import json

sys.path.insert(0, os.getcwd())

try:
    # The name of the function is put here when the action is compiled.
    from main__ import main as main
except Exception:
    import traceback
    frames = sys.exc_info()
    traceback.print_exception(*frames, file=sys.stderr)
    sys.stderr.flush()
    sys.exit(1)

out = os.fdopen(3, "wb")
if os.getenv("__OW_WAIT_FOR_ACK", "") != "":
    out.write(json.dumps({"ok": True}, ensure_ascii=False).encode("utf-8"))
    out.write(b"\n")
    out.flush()

env = os.environ
while True:
    line = sys.stdin.readline()
    if not line:
        break
    args = json.loads(line)
    payload = {}
    for key in args:
        if key == "value":
            payload = args["value"]
        else:
            env["__OW_%s" % key.upper()] = args[key]
    res = {}
    try:
        res = main(payload)
    except Exception as error:
        import traceback
        traceback.print_exc(file=sys.stderr)
        res = {"error": str(error)}
    out.write(json.dumps(res, ensure_ascii=False).encode("utf-8"))
    out.write(b"\n")
    sys.stdout.flush()
    sys.stderr.flush()
    out.flush()
