"""The server's clients as they are: client.py URL KEY ANSWERS [CHROMIUM]. Prints WHAT<tab>pass or fail, a line for each check."""
import json
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
import urllib.request

import jsonschema
import openai
import websocket

url, key, answers = sys.argv[1], sys.argv[2], int(sys.argv[3])
chromium = sys.argv[4] if len(sys.argv) > 4 else ""
client = openai.OpenAI(base_url=url + "/v1", api_key=key, max_retries=0, timeout=60)
model = client.models.list().data[0].id
hello = [{"role": "user", "content": "hello"}]
failed = False


def check(what, test):
    global failed
    try:
        test()
        print(what, "pass", sep="\t", flush=True)
    except Exception:
        failed = True
        traceback.print_exc()
        print(what, "fail", sep="\t", flush=True)


def chat():
    r = client.chat.completions.create(model=model, messages=hello, max_tokens=8, n=2, seed=3, logprobs=True, top_logprobs=2)
    assert len(r.choices) == 2 and r.usage.total_tokens == r.usage.prompt_tokens + r.usage.completion_tokens
    for c in r.choices:
        assert c.message.role == "assistant" and 1 <= len(c.logprobs.content) <= 8
        assert all(len(t.top_logprobs) == 2 and t.logprob <= 0 and t.bytes is not None for t in c.logprobs.content)


def stream():
    ask = dict(model=model, messages=hello, max_tokens=20, temperature=0, extra_body={"ignore_eos": True})
    whole = client.chat.completions.create(**ask).choices[0].message.content
    text, usage, reason = "", None, None
    for e in client.chat.completions.create(stream=True, stream_options={"include_usage": True}, **ask):
        if e.choices:
            text += e.choices[0].delta.content or ""
            reason = e.choices[0].finish_reason or reason
        usage = e.usage or usage
    assert text == whole and usage.completion_tokens == 20 and reason == "length"


def completions():
    r = client.completions.create(model=model, prompt=["a b c", "d"], max_tokens=3, echo=True, logprobs=2)
    assert len(r.choices) == 2 and r.choices[0].text.startswith("a b c")
    assert len(r.choices[0].logprobs.tokens) == len(r.choices[0].logprobs.token_logprobs) == len(r.choices[0].logprobs.text_offset)
    assert r.choices[0].logprobs.token_logprobs[0] is None


def embeddings():
    r = client.embeddings.create(model=model, input=["a", "b c"])
    plain = client.embeddings.create(model=model, input=["a", "b c"], encoding_format="float")
    for x, y in zip(r.data, plain.data):
        assert abs(sum(v * v for v in x.embedding) - 1) < 1e-4
        assert max(abs(a - b) for a, b in zip(x.embedding, y.embedding)) < 1e-5


def refused(error, **changes):
    try:
        client.chat.completions.create(**{"model": model, "messages": hello, "max_tokens": 2, **changes})
    except error as e:
        return e
    raise AssertionError("not refused")


def errors():
    assert refused(openai.BadRequestError, temperature=9).param == "temperature"
    assert refused(openai.BadRequestError, messages=[]).param == "messages"
    assert refused(openai.BadRequestError, max_tokens=100000).code == "context_length_exceeded"
    assert refused(openai.BadRequestError, extra_body={"surprise": 1}).param == "surprise"
    assert refused(openai.NotFoundError, model="gone").code == "model_not_found"
    try:
        openai.OpenAI(base_url=url + "/v1", api_key="wrong", max_retries=0).models.list()
    except openai.AuthenticationError as e:
        assert e.code == "invalid_api_key"
    else:
        raise AssertionError("a wrong key")


schemas = [
    {"type": "object", "properties": {"name": {"type": "string", "maxLength": 12}, "age": {"type": "integer", "minimum": 0, "maximum": 150}}, "required": ["name", "age"],
     "additionalProperties": False},
    {"type": "object", "properties": {"kind": {"enum": ["cat", "dog"]}, "tags": {"type": "array", "items": {"enum": ["a", "b", "c"]}, "minItems": 1, "maxItems": 3}},
     "required": ["kind", "tags"], "additionalProperties": False},
    {"type": "object", "properties": {"ok": {"type": "boolean"}, "next": {"anyOf": [{"type": "null"}, {"$ref": "#/$defs/leaf"}]}}, "required": ["ok", "next"],
     "additionalProperties": False, "$defs": {"leaf": {"type": "object", "properties": {"v": {"type": "integer", "minimum": -9, "maximum": 9}}, "required": ["v"],
                                                       "additionalProperties": False}}},
    {"type": "object", "properties": {"code": {"type": "string", "pattern": "^[A-Z]{2}-[0-9]{3}$"}, "n": {"const": 7}}, "required": ["code", "n"], "additionalProperties": False},
]


def constrained():
    for i in range(answers):
        schema = schemas[i % len(schemas)]
        form = {"type": "json_schema", "json_schema": {"name": "answer", "strict": True, "schema": schema}}
        r = client.chat.completions.create(model=model, messages=hello, max_tokens=1000, seed=i, temperature=1, response_format=form)
        assert r.choices[0].finish_reason == "stop", r.choices[0]
        jsonschema.validate(json.loads(r.choices[0].message.content), schema)


class Page:
    """The chat page in headless Chromium, by the DevTools protocol."""

    def __init__(self):
        self.folder = tempfile.mkdtemp()
        self.process = subprocess.Popen([chromium, "--headless", "--no-sandbox", "--disable-gpu", "--remote-debugging-port=0", "--remote-allow-origins=*",
                                         "--user-data-dir=" + self.folder, url + "/"], stderr=subprocess.PIPE, text=True)
        for line in self.process.stderr:
            if "DevTools listening on" in line:
                break
        port = line.split("127.0.0.1:")[1].split("/")[0]
        pages = []
        while not pages:
            time.sleep(0.1)
            pages = [p for p in json.load(urllib.request.urlopen(f"http://127.0.0.1:{port}/json")) if p["type"] == "page"]
        self.socket = websocket.create_connection(pages[0]["webSocketDebuggerUrl"], timeout=30)
        self.number = 0

    def command(self, method, **params):
        self.number += 1
        self.socket.send(json.dumps({"id": self.number, "method": method, "params": params}))
        while True:
            r = json.loads(self.socket.recv())
            if r.get("id") == self.number:
                return r.get("result", r)

    def run(self, script):
        return self.command("Runtime.evaluate", expression=script, returnByValue=True)["result"].get("value")

    def wait(self, script, seconds=20):
        end = time.time() + seconds
        while time.time() < end:
            value = self.run(script)
            if value:
                return value
            time.sleep(0.05)
        raise AssertionError(script)

    def type(self, text):
        self.run("document.getElementById('text').focus()")
        self.command("Input.insertText", text=text)
        self.command("Input.dispatchKeyEvent", type="keyDown", key="Enter", code="Enter", windowsVirtualKeyCode=13, text="\r")

    def close(self):
        self.socket.close()
        self.process.terminate()
        self.process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)


def page_checks():
    page = Page()
    length = "(document.querySelector('.turn.assistant:last-of-type') || {textContent: ''}).textContent.length"
    set_field = "(() => {{ const f = document.getElementById('{}'); f.value = '{}'; f.dispatchEvent(new Event('change')); }})()"

    def asks_for_key():
        page.wait("document.getElementById('status').textContent.includes('API key')")
        page.run(set_field.format("key", key))
        page.wait(f"document.getElementById('model').textContent.includes({json.dumps(model)})")

    def streams_and_stops():
        page.type("Tell me something long.")
        first = page.wait(length)
        page.wait(f"{length} > {first}")
        page.wait("document.getElementById('status').textContent.includes('tokens/s')")
        page.run("document.getElementById('stop').click()")
        page.wait("document.getElementById('stop').hidden && !document.getElementById('send').hidden")
        stopped = page.run(length)
        time.sleep(0.5)
        assert page.run(length) == stopped

    def shows_errors():
        page.run(set_field.format("max_tokens", "999999"))
        page.type("Again.")
        page.wait("(document.querySelector('.turn.error') || {textContent: ''}).textContent.includes('maximum context length')")

    check("the page asks for the API key and names the model", asks_for_key)
    check("the page: typed, streamed, with tokens/s, stopped", streams_and_stops)
    check("the page shows an error", shows_errors)
    page.close()


check("chat: n, seed, log-probabilities, usage", chat)
check("a stream's text is the whole answer's", stream)
check("completions: several prompts, echo, log-probabilities", completions)
check("embeddings: base64 and float", embeddings)
check("errors are the exceptions that they should be", errors)
check(f"{answers} answers under JSON schemas validate", constrained)
check("the server is idle and well afterwards", lambda: urllib.request.urlopen(url + "/health"))
if chromium:
    page_checks()
sys.exit(failed)
