"""A stand-in for `reft serve` that plays scripted answers, for the tests of the web page.

The last user message chooses the answer: see ANSWERS. GET /mock/requests lists the chat requests so far.
"""
import email
import email.policy
import http.server
import json
import pathlib
import threading
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
SHARE = pathlib.Path("/usr/share/javascript")
VENDOR = {
    "markdown-it.js": ["markdown-it/markdown-it.min.js", "markdown-it/markdown-it.js"],
    "highlight.js": ["highlight.js/highlight.min.js", "highlight.js/highlight.js"],
    "katex.js": ["katex/katex.min.js", "katex/katex.js"],
    "katex.css": ["katex/katex.min.css", "katex/katex.css"],
    "chart.js": ["chart.js/chart.min.js", "chart.js/chart.js"],
}
TYPES = {".html": "text/html; charset=utf-8", ".js": "text/javascript; charset=utf-8", ".css": "text/css; charset=utf-8",
         ".svg": "image/svg+xml", ".woff2": "font/woff2"}

MARKDOWN = """## Merging two sorted lists

The trick is to keep **one index per list** and always take the smaller head. It takes $O(n + m)$ time.

```python
def merge(a: list[int], b: list[int]) -> list[int]:
    \"\"\"Returns the sorted union of two sorted lists.\"\"\"
    out, i, j = [], 0, 0
    while i < len(a) and j < len(b):
        if a[i] <= b[j]:
            out.append(a[i]); i += 1
        else:
            out.append(b[j]); j += 1
    return out + a[i:] + b[j:]  # one of them is empty
```

The quadratic formula, for comparison:

$$x = \\frac{-b \\pm \\sqrt{b^2 - 4ac}}{2a}$$

and inline with brackets: \\(e^{i\\pi} + 1 = 0\\). It costs $5 or $6.

| case | time |
|---|---|
| best | `n` |
| worst | `n + m` |

1. first
2. second
   - nested

> A quote, and a [link](https://example.com).
"""
HOSTILE = """<script>window.hacked = 1</script><img src=x onerror="window.hacked = 2">
[click](javascript:window.hacked=3) ![pixel](https://evil.example/p.png)
<iframe src="javascript:parent.hacked=4"></iframe> <svg onload="window.hacked=5">

```"><img src=x onerror=window.hacked=6>
<b onclick="window.hacked=7">x</b>
```

$\\href{javascript:window.hacked=8}{x}$ <style>body{display:none}</style>
"""
ANSWERS = {
    "markdown": {"text": MARKDOWN},
    "hostile": {"text": HOSTILE},
    "reason": {"reasoning": "The user asks for a number.\n\nTwo and two make **four**.", "text": "The answer is 4."},
    "think tag": {"text": "<think>\nHidden thought\n</think>\n\nShown answer"},
    "slow": {"text": "word " * 2000, "delay": 0.03},
    "break off": {"text": "half an answer", "end": "close"},
    "fail": {"status": 400},
    "late error": {"text": "so far", "end": "error"},
    "cut": {"text": "This ends early", "finish": "length"},
}


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    requests = []
    key = ""
    speech = False
    counters = {"prompt": 1000, "generation": 5000, "finished": 12, "running": 0}
    lock = threading.Lock()

    def log_message(self, *args):
        pass

    def reply(self, status, body, content_type="application/json"):
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def authorized(self):
        return not Handler.key or self.headers.get("Authorization") == f"Bearer {Handler.key}"

    def do_GET(self):
        path = self.path.split("?")[0]
        if path == "/v1/models":
            if not self.authorized():
                return self.reply(401, {"error": {"message": "wrong key"}})
            model = {"id": "SmolLM2-135M-Instruct", "object": "model"}
            if Handler.speech:
                model = {"id": "whisper-base", "object": "model", "architecture": {"input_modalities": ["audio"]}}
            return self.reply(200, {"object": "list", "data": [model]})
        if path.startswith("/mock/speech/"):
            Handler.speech = path.endswith("/on")
            return self.reply(200, {})
        if path == "/mock/requests":
            return self.reply(200, Handler.requests)
        if path == "/metrics":
            return self.reply(200, self.metrics().encode(), "text/plain; version=0.0.4")
        return self.file("/ui.html" if path == "/" else path)

    def file(self, path):
        if path.startswith("/ui/vendor/fonts/"):
            candidates = [pathlib.Path("/usr/share/fonts/truetype/katex") / path.rsplit("/", 1)[1]]
        elif path.startswith("/ui/vendor/"):
            candidates = [SHARE / name for name in VENDOR.get(path.rsplit("/", 1)[1], [])]
        else:
            candidates = [ROOT / "web" / path.rsplit("/", 1)[1]]
        for candidate in candidates:
            if candidate.is_file():
                return self.reply(200, candidate.read_bytes(), TYPES.get(candidate.suffix, "application/octet-stream"))
        return self.reply(404, {"error": {"message": "not found"}})

    def metrics(self):
        c = Handler.counters
        t = time.time()
        c["generation"] += 150 + int(40 * ((t % 10) / 10))
        c["prompt"] += 90
        c["finished"] += 1
        n = c["finished"]
        lines = [f'vllm:num_requests_running{{model_name="m"}} {3 + int(t) % 3}', f'vllm:num_requests_waiting{{model_name="m"}} {int(t) % 2}',
                 f'vllm:kv_cache_usage_perc{{model_name="m"}} {0.3 + (t % 20) / 60:.4f}', f'vllm:prompt_tokens_total{{model_name="m"}} {c["prompt"]}',
                 f'vllm:generation_tokens_total{{model_name="m"}} {c["generation"]}', f'vllm:request_success_total{{finished_reason="stop"}} {n}',
                 'vllm:prefix_cache_queries_total 1000', 'vllm:prefix_cache_hits_total 420', 'vllm:num_preemptions_total 0']
        for name, bounds in (("time_to_first_token_seconds", (0.01, 0.05, 0.1, 0.5)), ("inter_token_latency_seconds", (0.002, 0.005, 0.01, 0.05))):
            for k, bound in enumerate(bounds):
                lines.append(f'vllm:{name}_bucket{{le="{bound}"}} {n * (k + 1) * 2}')
            lines.append(f'vllm:{name}_bucket{{le="+Inf"}} {n * 8}')
        return "\n".join(lines) + "\n"

    def do_POST(self):
        data = self.rfile.read(int(self.headers["Content-Length"]))
        if self.path == "/v1/audio/transcriptions":
            return self.transcribe(data)
        body = json.loads(data)
        if self.path != "/v1/chat/completions":
            return self.reply(404, {"error": {"message": "not found"}})
        if not self.authorized():
            return self.reply(401, {"error": {"message": "wrong key"}})
        Handler.requests.append(body)
        last = [m for m in body["messages"] if m["role"] == "user"][-1]["content"]
        answer = next((a for word, a in ANSWERS.items() if word in last.lower()), {"text": f"You said: {last}"})
        if body.get("continue_final_message"):
            answer = {"text": " and goes on."}
        if "status" in answer:
            return self.reply(answer["status"], {"error": {"message": "max_tokens is too large", "param": "max_tokens"}})
        self.stream(answer)

    def transcribe(self, data):
        message = email.message_from_bytes(b"Content-Type: " + self.headers["Content-Type"].encode() + b"\r\n\r\n" + data,
                                           policy=email.policy.HTTP)
        fields = {part.get_param("name", header="content-disposition"): part for part in message.iter_parts()}
        sound = fields["file"].get_payload(decode=True)
        Handler.requests.append({"file": fields["file"].get_filename(), "begins": sound[:4].decode("latin1"), "bytes": len(sound),
                                 **{name: part.get_payload(decode=True).decode() for name, part in fields.items() if name != "file"}})
        if not sound.startswith(b"RIFF"):
            return self.reply(400, {"error": {"message": "unknown audio format", "param": "file"}})
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Connection", "close")
        self.end_headers()
        self.close_connection = True
        for event in ({"type": "transcript.text.delta", "delta": "Ask not"}, {"type": "transcript.text.delta", "delta": " what."},
                      {"type": "transcript.text.done", "text": "Ask not what."}):
            self.wfile.write(f"data: {json.dumps(event)}\n\n".encode())
            self.wfile.flush()
            time.sleep(0.02)

    def stream(self, answer):
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Connection", "close")
        self.end_headers()
        self.close_connection = True
        sent = 0

        def event(data):
            self.wfile.write(f"data: {data if isinstance(data, str) else json.dumps(data)}\n\n".encode())
            self.wfile.flush()

        def chunk(delta, finish=None):
            event({"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m",
                   "choices": [{"index": 0, "delta": delta, "finish_reason": finish}]})

        try:
            time.sleep(0.02)
            chunk({"role": "assistant", "content": ""})
            for field, text in (("reasoning_content", answer.get("reasoning", "")), ("content", answer.get("text", ""))):
                for i in range(0, len(text), 7):
                    chunk({field: text[i:i + 7]})
                    sent += 1
                    time.sleep(answer.get("delay", 0.002))
            if answer.get("end") == "close":
                return
            if answer.get("end") == "error":
                return event({"error": {"message": "the engine failed", "code": 500}})
            chunk({}, answer.get("finish", "stop"))
            event({"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": [],
                   "usage": {"prompt_tokens": 10, "completion_tokens": sent, "total_tokens": sent + 10}})
            event("[DONE]")
        except (BrokenPipeError, ConnectionResetError):
            Handler.requests.append({"aborted": True})


def start(port=0):
    """Serves in a thread; returns (server, url)."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", port), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server, f"http://127.0.0.1:{server.server_address[1]}"


if __name__ == "__main__":
    print(start(8899)[1])
    threading.Event().wait()
