"""A web service with a hole: it fetches whatever URL its caller names, with any method, headers and body."""
import http.server
import json
import sys
import urllib.request


class Fetcher(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        wish = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        body = wish.get("body")
        request = urllib.request.Request(
            wish["url"],
            method=wish.get("method", "GET"),
            headers=wish.get("headers", {}),
            data=None if body is None else body.encode(),
        )
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                status, text = answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            status, text = error.code, error.read().decode()
        except OSError as error:
            status, text = 0, str(error)
        said = json.dumps({"status": status, "body": text}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(said)))
        self.end_headers()
        self.wfile.write(said)

    def log_message(self, *_):
        pass


http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Fetcher).serve_forever()
