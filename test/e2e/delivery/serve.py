# A receiver of TLS reports on HTTPS (RFC 8460, 5.4). It writes each request to a file, a
# line of JSON each, and answers as the path says. Arguments: certificate and key, the
# file, the schema, and a file for which /slow waits.
import gzip, http.server, json, jsonschema, os, ssl, sys, time

pair, log, schema, ready = sys.argv[1:]
with open(schema) as f:
    validator = jsonschema.Draft202012Validator(json.load(f))
seen = set()


class Handler(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        report = json.loads(gzip.decompress(body)) if body else {}
        with open(log, "a") as f:
            print(json.dumps({
                "method": self.command, "path": self.path, "type": self.headers["Content-Type"], "agent": self.headers["User-Agent"],
                "id": report.get("report-id"), "start": report.get("date-range", {}).get("start-datetime"),
                "schema": [e.message for e in validator.iter_errors(report)],
            }), file=f)
        first = self.path not in seen
        seen.add(self.path)
        match self.path:
            case "/later" if first:
                self.answer(503, ("Retry-After", "1800"))
            case "/moved":
                self.answer(302, ("Location", "/elsewhere"))
            case "/no":
                self.answer(404)
            case "/slow":
                while not os.path.exists(ready):
                    time.sleep(0.01)
                self.answer(201)
            case _:
                self.answer(200)

    do_GET = do_POST

    def answer(self, code, *headers):
        self.send_response(code)
        for name, value in headers:
            self.send_header(name, value)
        self.send_header("Content-Length", "0")
        self.end_headers()


server = http.server.ThreadingHTTPServer(("0.0.0.0", 443), Handler)
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(pair)
server.socket = context.wrap_socket(server.socket, server_side=True)
server.serve_forever()
