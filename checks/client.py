"""checks/client's measuring half: a served model through the `openai` package,
its answers to random schemas through `jsonschema`, the chat page through Chromium.

    client.py URL SCHEMAS CHROMIUM FOLDER
"""
import base64, json, math, os, random, struct, subprocess, sys, time, urllib.request

import jsonschema
import openai

failed = 0


def say(what, good, more=""):
    global failed
    failed += not good
    print(f"  {what:<88} {'PASS' if good else 'FAIL'}{' ' + str(more) if more and not good else ''}", flush=True)


def refused(what, status, kind, param, code, call):
    try:
        call()
    except kind as e:
        say(what, e.status_code == status and bool(e.message) and e.param == param and e.code == code, (e.message, e.param, e.code))
    except Exception as e:  # another class than the client's own for this status
        say(what, False, repr(e))
    else:
        say(what, False, "it was answered")


# ---- the client ----


def chat(client, model):
    ask = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Say something."}]
    a = client.chat.completions.create(model=model, messages=ask, max_tokens=12, temperature=0)
    say("chat: content, finish_reason and usage", isinstance(a.choices[0].message.content, str) and a.choices[0].finish_reason in ("stop", "length") and
        a.usage.total_tokens == a.usage.prompt_tokens + a.usage.completion_tokens and a.choices[0].message.role == "assistant" and a.model == model)
    b = client.chat.completions.create(model=model, messages=ask, max_tokens=12, temperature=0)
    say("chat: the same again at temperature 0", a.choices[0].message.content == b.choices[0].message.content)
    text, usage, roles, finish = "", None, [], None
    for e in client.chat.completions.create(model=model, messages=ask, max_tokens=12, temperature=0, stream=True, stream_options={"include_usage": True}):
        usage = e.usage or usage
        for c in e.choices:
            text += c.delta.content or ""
            roles += [c.delta.role] if c.delta.role else []
            finish = c.finish_reason or finish
    say("chat: streamed, the same text, one role, a finish_reason, usage at the end",
        text == a.choices[0].message.content and roles == ["assistant"] and finish and
        usage and usage.completion_tokens == a.usage.completion_tokens, (text, roles, finish, usage))
    a = client.chat.completions.create(model=model, messages=ask, max_tokens=6, logprobs=True, top_logprobs=3, temperature=0)
    lp = a.choices[0].logprobs.content
    say("chat: logprobs", len(lp) == a.usage.completion_tokens and all(t.logprob <= 0 and len(t.top_logprobs) == 3 and
        t.top_logprobs[0].logprob >= t.top_logprobs[1].logprob for t in lp) and
        all(abs(t.logprob - t.top_logprobs[0].logprob) < 1e-4 for t in lp), lp)
    a = client.chat.completions.create(model=model, messages=ask, max_tokens=16, n=4, temperature=1, seed=7)
    b = client.chat.completions.create(model=model, messages=ask, max_tokens=16, n=4, temperature=1, seed=7)
    texts = [c.message.content for c in a.choices]
    say("chat: n=4 gives four different answers, the same with the same seed",
        [c.index for c in a.choices] == [0, 1, 2, 3] and len(set(texts)) > 1 and texts == [c.message.content for c in b.choices], texts)
    seen = set()
    for e in client.chat.completions.create(model=model, messages=ask, max_tokens=4, n=3, stream=True):
        seen |= {c.index for c in e.choices}
    say("chat: n=3 streamed", seen == {0, 1, 2}, seen)
    with client.chat.completions.create(model=model, messages=ask, max_tokens=500, stream=True, extra_body={"ignore_eos": True}) as s:
        next(iter(s))
    say("chat: a stream that is closed early", True)


def completions(client, model):
    a = client.completions.create(model=model, prompt="Once upon a time", max_tokens=8, temperature=0, logprobs=2, echo=True)
    c = a.choices[0]
    say("completions: echo and logprobs", c.text.startswith("Once upon a time") and c.logprobs.token_logprobs[0] is None and
        len(c.logprobs.tokens) == a.usage.total_tokens and
        "".join(c.logprobs.tokens[: a.usage.prompt_tokens]).endswith("time") and len(c.logprobs.top_logprobs) == len(c.logprobs.tokens), c)
    a = client.completions.create(model=model, prompt=["one", "two"], max_tokens=4, n=2)
    say("completions: two prompts, n=2", [c.index for c in a.choices] == [0, 1, 2, 3])
    same = dict(model=model, prompt="one two", max_tokens=24, temperature=0,
        logit_bias={str(i): -100 for i in range(128, 256)})  # of a random model: single bytes
    whole = client.completions.create(**same).choices[0].text
    cut = whole[len(whole) // 2 : len(whole) // 2 + 3]
    a = client.completions.create(**same, stop=[cut])
    say("completions: a stop string", a.choices[0].text == whole[: whole.index(cut)] and a.choices[0].finish_reason == "stop", (whole, cut, a.choices[0].text))
    text = "".join(e.choices[0].text for e in client.completions.create(**same, stream=True) if e.choices)
    say("completions: streamed, the same text", text == whole, (text, whole))


def embeddings(client, model):
    a = client.embeddings.create(model=model, input=["one", "two", "one"])
    v = [d.embedding for d in a.data]
    say("embeddings: three, of length 1, equal for equal texts",
        [d.index for d in a.data] == [0, 1, 2] and all(abs(math.hypot(*x) - 1) < 1e-3 for x in v) and v[0] == v[2] and v[0] != v[1])
    b = client.embeddings.create(model=model, input="one", encoding_format="base64").data[0].embedding
    raw = base64.b64decode(b) if isinstance(b, str) else None
    say("embeddings: base64", raw is not None and max(abs(x - y) for x, y in zip(struct.unpack(f"<{len(raw) // 4}f", raw), v[0])) < 1e-3)


def errors(client, model):
    ask = [{"role": "user", "content": "a"}]
    chat = client.chat.completions.create
    refused("errors: a range", 400, openai.BadRequestError, "temperature", "above_max_value", lambda: chat(model=model, messages=ask, temperature=9))
    refused("errors: no message", 400, openai.BadRequestError, "messages", None, lambda: chat(model=model, messages=[]))
    refused("errors: an unknown field", 400, openai.BadRequestError, "surprise", "unknown_parameter",
        lambda: chat(model=model, messages=ask, extra_body={"surprise": 1}))
    refused("errors: another model", 404, openai.NotFoundError, "model", "model_not_found", lambda: chat(model="another", messages=ask))
    refused("errors: the context", 400, openai.BadRequestError, "prompt", "context_length_exceeded",
        lambda: client.completions.create(model=model, prompt="a b " * 20000, max_tokens=4))
    refused("errors: a schema that can't be enforced", 400, openai.BadRequestError, "response_format", "unsupported", lambda: chat(
        model=model, messages=ask, response_format={"type": "json_schema", "json_schema": {"name": "x", "schema": {"not": {}}}}))
    refused("errors: a wrong key", 401, openai.AuthenticationError, None, "invalid_api_key",
        lambda: openai.OpenAI(base_url=client.base_url, api_key="wrong", max_retries=0).models.list())
    refused("errors: in a stream", 400, openai.BadRequestError, "n", "below_min_value", lambda: list(chat(model=model, messages=ask, n=0, stream=True)))


# ---- schemas ----


def random_schema(r, depth=0):
    kinds = ["string", "enum", "integer", "boolean", "null", "const", "pattern", "number"] + (["object", "array", "anyOf", "object"] if depth < 3 else [])
    k = r.choice(kinds if depth else ["object", "object", "array"])
    if k == "string":
        low = r.randint(0, 3)
        return {"type": "string", "minLength": low, "maxLength": low + r.randint(0, 8)}
    if k == "enum":
        return {"enum": r.sample(["red", "green", "b\"l\\ue", "ünï", 1, 2.5, None, True, "", [1], {"a": 1}], r.randint(1, 4))}
    if k == "const":
        return {"const": r.choice(["x", 7, -1.5, False, None, {"k": [1, "v"]}])}
    if k == "integer":
        low = r.randint(-1000, 1000)
        return {"type": "integer", "minimum": low, "maximum": low + r.randint(0, 5000)}
    if k == "number":
        return {"type": "number", "minimum": 0, "maximum": r.randint(1, 100)}
    if k == "pattern":
        return {"type": "string", "pattern": r.choice(["^[a-z]{2,5}$", "^\\d{4}-\\d{2}$", "^(foo|bar)-[0-9]{1,3}$", "^[A-Z][a-z]{0,6}$"])}
    if k == "array":
        low = r.randint(0, 2)
        return {"type": "array", "items": random_schema(r, depth + 1), "minItems": low, "maxItems": low + r.randint(0, 2)}
    if k == "anyOf":
        return {"anyOf": [random_schema(r, depth + 1) for _ in range(r.randint(1, 3))]}
    if k == "object":
        names = r.sample(["a", "name", "the key", "ä", "quo\"te", "x-y", "value", "n"], r.randint(0, 4))
        return {"type": "object", "properties": {n: random_schema(r, depth + 1) for n in names}, "required": [n for n in names if r.random() < 0.7],
            "additionalProperties": False}
    return {"type": k}


def schemas(client, model, count):
    r, valid, wrong = random.Random(5), 0, 0
    start = time.time()
    for i in range(count):
        schema = random_schema(r)
        try:
            a = client.chat.completions.create(model=model, messages=[{"role": "user", "content": f"Number {i}."}], max_tokens=1500, temperature=1, seed=i,
                                               response_format={"type": "json_schema", "json_schema": {"name": "x", "schema": schema, "strict": True}})
            value = json.loads(a.choices[0].message.content)
            jsonschema.Draft202012Validator(schema).validate(value)
            valid += 1
        except Exception as e:
            wrong += 1
            if wrong < 4:
                print(f"    {json.dumps(schema, ensure_ascii=False)}: {str(e)[:300]}; {a.choices[0].finish_reason} {a.choices[0].message.content[:300]!r}")
    say(f"json_schema: {valid} of {count} answers are valid ({time.time() - start:.0f} s)", valid == count)
    a = client.chat.completions.create(model=model, messages=[{"role": "user", "content": "a"}], max_tokens=300, response_format={"type": "json_object"},
        seed=1)
    say("json_object: an object, or one that max_tokens cut", a.choices[0].message.content.lstrip().startswith("{"))
    try:
        from pydantic import BaseModel

        class Step(BaseModel):
            done: bool
            kind: int

        p = client.chat.completions.parse(model=model, messages=[{"role": "user", "content": "a"}], response_format=Step, max_tokens=400, temperature=0)
        say("json_schema: chat.completions.parse into a class", isinstance(p.choices[0].message.parsed, Step))
    except openai.LengthFinishReasonError:
        say("json_schema: chat.completions.parse into a class (cut by max_tokens: integers without bounds)", True)


# ---- the page ----


class Page:
    """One tab of a headless Chromium, by the DevTools protocol."""

    def __init__(self, chromium, url, folder):
        import websocket

        self.process = subprocess.Popen([chromium, "--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
            "--disable-component-update", "--disable-sync", "--disable-extensions", "--remote-debugging-port=0", "--remote-allow-origins=*",
                                         f"--user-data-dir={folder}/profile", "about:blank"],
                                        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        port_file = f"{folder}/profile/DevToolsActivePort"
        self.wait(lambda: os.path.exists(port_file) and open(port_file).read().count("\n") >= 1, 60)
        port = open(port_file).read().split()[0]
        self.wait(lambda: self.tab(port), 60)
        self.socket = websocket.create_connection(self.tab(port), timeout=60, suppress_origin=True)
        self.count, self.messages = 0, []
        for name in ("Runtime.enable", "Page.enable", "Log.enable"):
            self.call(name)
        self.call("Page.navigate", url=url)
        self.wait(lambda: self.js("document.readyState") == "complete" and self.js("!!document.getElementById('send')"), 60)

    @staticmethod
    def tab(port):
        try:
            tabs = json.load(urllib.request.urlopen(f"http://127.0.0.1:{port}/json", timeout=5))
            return next((t["webSocketDebuggerUrl"] for t in tabs if t["type"] == "page"), None)
        except OSError:
            return None

    @staticmethod
    def wait(test, seconds):
        end = time.time() + seconds
        while time.time() < end:
            if test():
                return True
            time.sleep(0.03)
        return False

    def call(self, method, **params):
        self.count += 1
        self.socket.send(json.dumps({"id": self.count, "method": method, "params": params}))
        while True:
            m = json.loads(self.socket.recv())
            if m.get("id") == self.count:
                return m.get("result", m)
            if m.get("method") in ("Runtime.exceptionThrown", "Log.entryAdded"):
                self.messages.append(m["params"])

    def js(self, code):
        return self.call("Runtime.evaluate", expression=code, returnByValue=True)["result"].get("value")

    def type(self, text):
        self.js("document.getElementById('text').focus()")
        for letter in text:
            self.call("Input.dispatchKeyEvent", type="keyDown", text=letter, unmodifiedText=letter, key=letter)
            self.call("Input.dispatchKeyEvent", type="keyUp", key=letter)
        for kind in ("keyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, key="Enter", code="Enter", windowsVirtualKeyCode=13, **({"text": "\r"} if kind == "keyDown" else {}))

    def click(self, name):
        box = self.js(f"(() => {{ const r = document.getElementById('{name}').getBoundingClientRect(); return [r.x + r.width / 2, r.y + r.height / 2]; }})()")
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=box[0], y=box[1], button="left", clickCount=1)

    def set(self, name, value):
        self.js(f"(() => {{ const e = document.getElementById('{name}'); e.value = '{value}'; e.dispatchEvent(new Event('change')); }})()")

    def close(self):
        self.process.terminate()
        self.process.wait(20)


def page(chromium, url, key, folder):
    p = Page(chromium, url, folder)
    answer = "[...document.querySelectorAll('.turn.assistant')].pop()?.textContent || ''"
    lengths = "(() => { window.lengths = []; window.watch = setInterval(() => lengths.push((" + answer + ").length), 5); })()"
    try:
        p.type("hello")
        say("page: without the key, an error is shown", p.wait(lambda: "API key" in (p.js("document.querySelector('.turn.error')?.textContent || ''")), 30))
        p.set("key", key)
        say("page: with it, the model's name", p.wait(lambda: p.js("document.getElementById('model').textContent"), 30))
        p.click("clear")
        p.set("max_tokens", 1000)
        p.js(lengths)
        p.type("Tell me a story.")
        say("page: what was typed stands there", p.wait(lambda: p.js("document.querySelector('.turn.user')?.textContent") == "Tell me a story.", 30))
        grew = p.wait(lambda: p.js("new Set(window.lengths).size") >= 5, 60)
        say("page: tokens stream: the text grew in at least 4 steps", grew, p.js("[...new Set(window.lengths)].slice(0, 9)"))
        say("page: the status line counts tokens/s", p.wait(lambda: "tokens/s" in p.js("document.getElementById('status').textContent"), 30))
        running = p.js("!document.getElementById('stop').hidden && !!document.querySelector('.busy')")
        p.click("stop")
        stopped = p.wait(lambda: p.js("document.getElementById('stop').hidden && !document.querySelector('.busy')"), 30)
        before = p.js(f"({answer}).length")
        time.sleep(0.5)
        say("page: Stop stops it, and the text stays", running and stopped and before > 0 and p.js(f"({answer}).length") == before, (running, stopped, before))
        p.set("max_tokens", 3)
        p.type("again")
        say("page: a second question", p.wait(lambda: p.js("document.querySelectorAll('.turn.user').length == 2 && "
            "!document.querySelector('.busy') && document.getElementById('stop').hidden"), 60))
        p.set("temperature", 7)
        p.type("too hot")
        say("page: a refusal is shown", p.wait(lambda: "temperature" in (p.js("document.querySelector('.turn.error')?.textContent || ''")), 30))
        bad = [m for m in p.messages if "exceptionDetails" in m]
        say("page: no exception in its script", not bad, bad)
        say("page: markup in an answer stays text", p.js("!document.querySelector('#list script, #list img')"))
    finally:
        p.close()


def main():
    url, count, chromium, folder = sys.argv[1], int(sys.argv[2]), sys.argv[3], sys.argv[4]
    key = open(f"{folder}/key").read().strip()
    client = openai.OpenAI(base_url=url + "/v1", api_key=key, max_retries=0, timeout=300)
    model = client.models.list().data[0].id
    say("models: the list, and the one", client.models.retrieve(model).id == model)
    chat(client, model)
    completions(client, model)
    embeddings(client, model)
    errors(client, model)
    schemas(client, model, count)
    if chromium:
        page(chromium, url + "/", key, folder)
    else:
        print("  no chromium: the page was not looked at")
    sys.exit(failed != 0)


main()
