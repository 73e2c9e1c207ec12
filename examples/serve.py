"""Serves a model folder: python examples/serve.py FOLDER [PORT]; see docs/serving.md."""

from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
import json
import sys

import hydra_jax

model = hydra_jax.load(sys.argv[1])


class Handler(BaseHTTPRequestHandler):
  def do_POST(self):
    try:
      rows = json.loads(self.rfile.read(int(self.headers['Content-Length'])))['rows']  # lists, or columns by name
      found = model.predict(rows, members=False)
      code, answer = 200, {name: value.tolist() for name, value in vars(found).items() if value is not None}
    except (hydra_jax.UserError, KeyError, TypeError, ValueError) as e:
      code, answer = 400, {'error': str(e)}
    self.send_response(code)
    self.end_headers()
    self.wfile.write(json.dumps(answer | {'classes': model.classes}).encode())


ThreadingHTTPServer(('127.0.0.1', int((sys.argv[2:] or ['8000'])[0])), Handler).serve_forever()
