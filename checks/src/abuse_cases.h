/* abuse_cases.h: requests that must be refused, by class. Served with --context 1024, --max-body 1M, --header-timeout 1 and the template of checks/abuse. */
#ifndef CHECK_ABUSE_CASES_H
#define CHECK_ABUSE_CASES_H

/* ---- framing: whole requests as bytes, and the status that each must get ---- */

typedef struct framing_case { int status; const char *bytes; size_t n; } framing_case;

#define RAW(status, text) {status, text, sizeof(text) - 1}
#define POST "POST /v1/completions HTTP/1.1\r\nHost: a\r\n"
static const framing_case framing_cases[] = {
    RAW(400, "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"),
    RAW(400, "GET\r\n\r\n"),
    RAW(400, "GET /\r\n\r\n"),
    RAW(400, "GET / HTTP/1.1 \r\nHost: a\r\n\r\n"),
    RAW(400, "GET  / HTTP/1.1\r\nHost: a\r\n\r\n"),
    RAW(400, " GET / HTTP/1.1\r\nHost: a\r\n\r\n"),
    RAW(400, "GET / http/1.1\r\nHost: a\r\n\r\n"),
    RAW(400, "GET / HTTP/11\r\nHost: a\r\n\r\n"),
    RAW(505, "GET / HTTP/2.0\r\nHost: a\r\n\r\n"),
    RAW(400, "GET / HTTP/1.1\r\n\r\n"),
    RAW(400, "GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n"),
    RAW(400, "GET / HTTP/1.1\nHost: a\n\n"),
    RAW(400, "GET / HTTP/1.1\r\nHost: a\r\n folded: b\r\n\r\n"),
    RAW(400, "GET / HTTP/1.1\r\nHost : a\r\n\r\n"),
    RAW(400, "GET / HTTP/1.1\r\nHost: a\r\n: b\r\n\r\n"),
    RAW(400, "GET / HTTP/1.1\r\nHost: a\r\nX: \x01\r\n\r\n"),
    RAW(400, "GET / HTTP/1.1\r\nHost: a\r\nX: \0\r\n\r\n"),
    RAW(400, "GET /\x7f HTTP/1.1\r\nHost: a\r\n\r\n"),
    RAW(400, "GET example.org HTTP/1.1\r\nHost: a\r\n\r\n"),
    RAW(400, "G@T / HTTP/1.1\r\nHost: a\r\n\r\n"),
    RAW(405, "DELETE /health HTTP/1.1\r\nHost: a\r\n\r\n"),
    RAW(405, "GET /v1/completions HTTP/1.1\r\nHost: a\r\n\r\n"),
    RAW(404, "GET /v1/nothing HTTP/1.1\r\nHost: a\r\n\r\n"),
    RAW(404, "GET /../etc/passwd HTTP/1.1\r\nHost: a\r\n\r\n"),
    RAW(404, "GET /%2e%2e/ HTTP/1.1\r\nHost: a\r\n\r\n"),
    RAW(400, POST "Content-Length: 2\r\nContent-Length: 2\r\n\r\n{}"),
    RAW(400, POST "Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n{}"),
    RAW(400, POST "Content-Length: -2\r\n\r\n{}"),
    RAW(400, POST "Content-Length: +2\r\n\r\n{}"),
    RAW(400, POST "Content-Length: 0x2\r\n\r\n{}"),
    RAW(400, POST "Content-Length: 2, 2\r\n\r\n{}"),
    RAW(400, POST "Content-Length: 99999999999999999999999\r\n\r\n{}"),
    RAW(400, POST "Content-Length:\r\n\r\n{}"),
    RAW(501, POST "Transfer-Encoding: gzip\r\n\r\n{}"),
    RAW(501, POST "Transfer-Encoding: gzip, chunked\r\n\r\n{}"),
    RAW(400, POST "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
    RAW(400, POST "Transfer-Encoding: chunked\r\n\r\nzz\r\n{}\r\n0\r\n\r\n"),
    RAW(400, POST "Transfer-Encoding: chunked\r\n\r\n-2\r\n{}\r\n0\r\n\r\n"),
    RAW(400, POST "Transfer-Encoding: chunked\r\n\r\n2\r\n{}xx0\r\n\r\n"),
    RAW(400, POST "Transfer-Encoding: chunked\r\n\r\n2\n{}\r\n0\r\n\r\n"),
    RAW(400, POST "Transfer-Encoding: chunked\r\n\r\n00000000000000002\r\n{}\r\n0\r\n\r\n"),
    RAW(400, POST "Transfer-Encoding: chunked\r\n\r\n\r\n"),
    RAW(417, POST "Expect: the-unexpected\r\nContent-Length: 2\r\n\r\n{}"),
    RAW(415, POST "Content-Type: text/plain\r\nContent-Length: 2\r\n\r\n{}"),
    RAW(400, "POST /v1/completions HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
};
#undef POST

/* ---- bodies: 400 unless it says otherwise, and the word that must stand in the answer ---- */

typedef struct body_case { const char *path, *body, *word; int status; } body_case;

#define CHAT "/v1/chat/completions"
#define TEXT "/v1/completions"
#define EMBED "/v1/embeddings"
#define HELLO "\"messages\": [{\"role\": \"user\", \"content\": \"a\"}]"

static const body_case type_cases[] = {
    {TEXT, "", "", 0}, {TEXT, "{", "", 0}, {TEXT, "[]", "", 0}, {TEXT, "null", "", 0}, {TEXT, "\"a\"", "", 0}, {TEXT, "{\"prompt\": \"a\"} x", "", 0},
    {TEXT, "{'prompt': 'a'}", "", 0}, {TEXT, "{\"prompt\": \"a\",}", "", 0}, {TEXT, "{\"prompt\": NaN}", "", 0},
    {TEXT, "{}", "prompt", 0}, {TEXT, "{\"prompt\": null}", "prompt", 0}, {TEXT, "{\"prompt\": 7}", "prompt", 0}, {TEXT, "{\"prompt\": {}}", "prompt", 0},
    {TEXT, "{\"prompt\": []}", "prompt", 0}, {TEXT, "{\"prompt\": \"\", \"add_special_tokens\": false}", "prompt", 0},
    {TEXT, "{\"prompt\": [\"a\", 1]}", "prompt", 0},
    {TEXT, "{\"prompt\": [1.5]}", "prompt", 0}, {TEXT, "{\"prompt\": [[]]}", "prompt", 0},
    {TEXT, "{\"prompt\": \"a\", \"temperature\": \"1\"}", "temperature", 0}, {TEXT, "{\"prompt\": \"a\", \"n\": 1.0}", "'n'", 0},
    {TEXT, "{\"prompt\": \"a\", \"stream\": 1}", "stream", 0}, {TEXT, "{\"prompt\": \"a\", \"stream\": \"true\"}", "stream", 0},
    {TEXT, "{\"prompt\": \"a\", \"max_tokens\": true}", "max_tokens", 0}, {TEXT, "{\"prompt\": \"a\", \"max_tokens\": \"9\"}", "max_tokens", 0},
    {TEXT, "{\"prompt\": \"a\", \"stop\": 1}", "stop", 0}, {TEXT, "{\"prompt\": \"a\", \"stop\": [1]}", "stop", 0},
    {TEXT, "{\"prompt\": \"a\", \"stop\": {}}", "stop", 0},
    {TEXT, "{\"prompt\": \"a\", \"logit_bias\": []}", "logit_bias", 0}, {TEXT, "{\"prompt\": \"a\", \"logit_bias\": {\"1\": \"x\"}}", "logit_bias", 0},
    {TEXT, "{\"prompt\": \"a\", \"logit_bias\": {\"x\": 1}}", "logit_bias", 0}, {TEXT, "{\"prompt\": \"a\", \"logprobs\": true}", "logprobs", 0},
    {TEXT, "{\"prompt\": \"a\", \"seed\": \"s\"}", "seed", 0}, {TEXT, "{\"prompt\": \"a\", \"echo\": 0}", "echo", 0},
    {TEXT, "{\"prompt\": \"a\", \"suffix\": \"b\"}", "suffix", 0},
    {TEXT, "{\"prompt\": \"a\", \"unheard_of\": 1}", "unheard_of", 0}, {TEXT, "{\"prompt\": \"a\", \"model\": 1}", "model", 0},
    {TEXT, "{\"prompt\": \"a\", \"model\": \"another\"}", "another", 404}, {TEXT, "{\"prompt\": \"a\", \"stream_options\": 1}", "stream_options", 0},
    {CHAT, "{}", "messages", 0}, {CHAT, "{\"messages\": {}}", "messages", 0}, {CHAT, "{\"messages\": []}", "messages", 0},
    {CHAT, "{\"messages\": [1]}", "messages", 0},
    {CHAT, "{\"messages\": [{}]}", "messages", 0}, {CHAT, "{\"messages\": [{\"role\": 1, \"content\": \"a\"}]}", "messages", 0},
    {CHAT, "{\"messages\": [{\"role\": \"user\", \"content\": 1}]}", "messages", 0},
    {CHAT, "{\"messages\": [{\"role\": \"user\", \"content\": [{\"type\": \"image_url\"}]}]}", "text", 0},
    {CHAT, "{" HELLO ", \"logprobs\": 1}", "logprobs", 0}, {CHAT, "{" HELLO ", \"tools\": {}}", "tools", 0}, {CHAT, "{" HELLO ", \"tools\": [1]}", "tools", 0},
    {CHAT, "{" HELLO ", \"tool_choice\": \"required\"}", "tool_choice", 0}, {CHAT, "{" HELLO ", \"response_format\": \"json\"}", "response_format", 0},
    {CHAT, "{" HELLO ", \"chat_template_kwargs\": 1}", "chat_template_kwargs", 0}, {CHAT, "{" HELLO ", \"functions\": []}", "functions", 0},
    {EMBED, "{}", "input", 0}, {EMBED, "{\"input\": {}}", "input", 0}, {EMBED, "{\"input\": \"a\", \"encoding_format\": \"hex\"}", "encoding_format", 0},
    {EMBED, "{\"input\": \"a\", \"temperature\": 1}", "temperature", 0}, {"/tokenize", "{}", "prompt", 0}, {"/tokenize", "{\"prompt\": 1}", "prompt", 0},
    {"/detokenize", "{\"tokens\": \"a\"}", "tokens", 0}, {"/detokenize", "{}", "tokens", 0},
};

#define P "{\"prompt\": \"a\", "
static const body_case range_cases[] = {
    {TEXT, P "\"temperature\": -0.01}", "temperature", 0}, {TEXT, P "\"temperature\": 2.01}", "temperature", 0},
    {TEXT, P "\"temperature\": 1e308}", "temperature", 0},
    {TEXT, P "\"temperature\": 1e999}", "", 0}, {TEXT, P "\"top_p\": -1}", "top_p", 0}, {TEXT, P "\"top_p\": 1.5}", "top_p", 0},
    {TEXT, P "\"top_k\": -2}", "top_k", 0},
    {TEXT, P "\"top_k\": 99999999999}", "top_k", 0}, {TEXT, P "\"min_p\": 1.1}", "min_p", 0}, {TEXT, P "\"typical_p\": -1}", "typical_p", 0},
    {TEXT, P "\"repetition_penalty\": 0}", "repetition_penalty", 0}, {TEXT, P "\"frequency_penalty\": 2.5}", "frequency_penalty", 0},
    {TEXT, P "\"presence_penalty\": -2.5}", "presence_penalty", 0}, {TEXT, P "\"logit_bias\": {\"1\": 101}}", "logit_bias", 0},
    {TEXT, P "\"logit_bias\": {\"999999\": 1}}", "logit_bias", 0}, {TEXT, P "\"logit_bias\": {\"-1\": 1}}", "logit_bias", 0}, {TEXT, P "\"n\": 0}", "'n'", 0},
    {TEXT, P "\"n\": 129}", "'n'", 0},
    {TEXT, P "\"n\": -1}", "'n'", 0}, {TEXT, P "\"n\": 9223372036854775807}", "'n'", 0}, {TEXT, P "\"n\": 9223372036854775808}", "", 0},
    {TEXT, P "\"best_of\": 0}", "best_of", 0},
    {TEXT, P "\"best_of\": 129}", "best_of", 0}, {TEXT, P "\"n\": 3, \"best_of\": 2}", "best_of", 0},
    {TEXT, P "\"n\": 1, \"best_of\": 2, \"stream\": true}", "best_of", 0},
    {TEXT, P "\"max_tokens\": 0}", "max_tokens", 0}, {TEXT, P "\"max_tokens\": -1}", "max_tokens", 0}, {TEXT, P "\"max_tokens\": 1024}", "", 0},
    {TEXT, P "\"max_tokens\": 1000000000}", "", 0},
    {TEXT, P "\"max_tokens\": 1000000001}", "max_tokens", 0}, {TEXT, P "\"min_tokens\": -1}", "min_tokens", 0},
    {TEXT, P "\"min_tokens\": 20, \"max_tokens\": 10}", "min_tokens", 0},
    {TEXT, P "\"logprobs\": 21}", "logprobs", 0}, {TEXT, P "\"logprobs\": -1}", "logprobs", 0}, {TEXT, P "\"prompt_logprobs\": 21}", "prompt_logprobs", 0},
    {TEXT, P "\"stop\": \"\"}", "stop", 0}, {TEXT, P "\"stop\": [\"a\", \"\"]}", "stop", 0}, {TEXT, P "\"stop_token_ids\": [-1]}", "stop_token_ids", 0},
    {TEXT, P "\"stop_token_ids\": [99999]}", "stop_token_ids", 0}, {TEXT, P "\"priority\": 10000000}", "priority", 0},
    {TEXT, P "\"length_penalty\": 11}", "length_penalty", 0},
    {TEXT, P "\"use_beam_search\": true, \"n\": 65}", "n", 0}, {TEXT, P "\"stream_options\": {\"include_usage\": true}}", "stream_options", 0},
    {TEXT, P "\"cache_salt\": \"\"}", "cache_salt", 0},
    {TEXT, "{\"prompt\": [-1]}", "prompt", 0}, {TEXT, "{\"prompt\": [999999]}", "prompt", 0}, {TEXT, "{\"prompt\": [9223372036854775807]}", "prompt", 0},
    {CHAT, "{" HELLO ", \"top_logprobs\": 3}", "top_logprobs", 0}, {CHAT, "{" HELLO ", \"logprobs\": true, \"top_logprobs\": 21}", "top_logprobs", 0},
    {CHAT, "{" HELLO ", \"max_tokens\": 3, \"max_completion_tokens\": 4}", "max", 0}, {EMBED, "{\"input\": \"a\", \"dimensions\": 3}", "dimensions", 0},
    {"/detokenize", "{\"tokens\": [-1]}", "tokens", 0}, {"/detokenize", "{\"tokens\": [999999]}", "tokens", 0},
};

/* Texts that are no Unicode, or no JSON string. */
static const body_case unicode_cases[] = {
    {TEXT, "{\"prompt\": \"\xff\"}", "", 0}, {TEXT, "{\"prompt\": \"\xc3\"}", "", 0}, {TEXT, "{\"prompt\": \"\xc0\x80\"}", "", 0},
    {TEXT, "{\"prompt\": \"\xe0\x80\x80\"}", "", 0},
    {TEXT, "{\"prompt\": \"\xed\xa0\x80\"}", "", 0}, {TEXT, "{\"prompt\": \"\xf4\x90\x80\x80\"}", "", 0},
    {TEXT, "{\"prompt\": \"\xf8\x88\x80\x80\x80\"}", "", 0},
    {TEXT, "{\"prompt\": \"\x80\"}", "", 0}, {TEXT, "{\"prompt\": \"\xe2\x82\"}", "", 0}, {TEXT, "{\"prompt\": \"\\ud800\"}", "", 0},
    {TEXT, "{\"prompt\": \"\\udc00\\ud800\"}", "", 0},
    {TEXT, "{\"prompt\": \"\\ud800\\u0041\"}", "", 0}, {TEXT, "{\"prompt\": \"\\u12g4\"}", "", 0}, {TEXT, "{\"prompt\": \"\\x41\"}", "", 0},
    {TEXT, "{\"prompt\": \"\n\"}", "", 0},
    {TEXT, "{\"prompt\": \"\x01\"}", "", 0}, {TEXT, "\xff\xfe{\0\"", "", 0}, {TEXT, "{\"\xff\": 1}", "", 0}, {TEXT, P "\"stop\": \"\xff\"}", "", 0},
    {TEXT, P "\"stop\": \"a\\u0000b\"}", "", 0},
    {CHAT, "{\"messages\": [{\"role\": \"user\", \"content\": \"\xf0\x9f\x98\"}]}", "", 0},
    {CHAT, "{\"messages\": [{\"role\": \"\xc1\xbf\", \"content\": \"a\"}]}", "", 0},
    {TEXT, P "\"guided_regex\": \"\xfe\"}", "", 0}, {TEXT, P "\"model\": \"\\ud834\"}", "", 0},
};

/* Constraints that can't be had, or only at a price that nobody pays. */
#define R(pattern) {TEXT, P "\"guided_regex\": \"" pattern "\"}", "guided_regex", 0}
#define S(schema) {TEXT, P "\"guided_json\": " schema "}", "guided_json", 0}
#define G(grammar) {TEXT, P "\"guided_grammar\": \"" grammar "\"}", "guided_grammar", 0}
static const body_case schema_cases[] = {
    R("(a{1000}){1000}"), R("((((a{0,99}){0,99}){0,99}){0,99}){0,99}"), R("(a|b)*a(a|b){4000}"), R("a{100000000}"), R("a{99999999999999999999}"), R("a{3,2}"),
    R("(?=a)b"), R("(?<!a)b"),
    R("(a)\\\\1"), R("("), R("[a"), R("a)"), R("[z-a]"), R("*"), R("(?P<x>a)(?P=x)"), R("\\\\p{Nonesuch}"),
    S("1"), S("\"{\""), S("{\"type\": \"nothing\"}"), S("{\"type\": 1}"), S("{\"not\": {}}"), S("{\"if\": {}, \"then\": {}}"), S("{\"$ref\": \"#/nowhere\"}"),
    S("{\"$ref\": \"http://example.org/a\"}"), S("{\"type\": \"array\", \"minItems\": 1000000000}"), S("{\"type\": \"array\", \"uniqueItems\": true}"),
    S("{\"type\": \"string\", \"minLength\": 1000000000}"), S("{\"type\": \"string\", \"pattern\": \"(a{1000}){1000}\"}"),
    S("{\"type\": \"string\", \"pattern\": \"(\"}"), S("{\"enum\": []}"),
    S("{\"type\": \"array\", \"minItems\": 3, \"maxItems\": 2}"), S("{\"type\": \"integer\", \"minimum\": 5, \"maximum\": 4}"), S("{\"properties\": 1}"),
    S("{\"required\": \"a\"}"), S("{\"anyOf\": []}"),
    S("{\"unheard_of\": 1}"),
    G("root ::= undefined"), G("root ::= ("), G("start ::= \\\"a\\\""), G("root = \\\"a\\\""), G(""), G("root ::= \\\"a"), G("root ::= [a"),
    G("root ::= a{1000000}\\na ::= b{1000000}\\nb ::= \\\"x\\\""),
    {TEXT, P "\"guided_choice\": []}", "guided_choice", 0}, {TEXT, P "\"guided_choice\": [1]}", "guided_choice", 0},
    {TEXT, P "\"guided_regex\": \"a\", \"guided_json\": {}}", "guided", 0},
    {CHAT, "{" HELLO ", \"response_format\": {\"type\": \"json_schema\"}}", "json_schema", 0},
    {CHAT, "{" HELLO ", \"response_format\": {\"type\": \"xml\"}}", "response_format", 0},
};
#undef R
#undef S
#undef G
#undef P

/* ---- templates: `bomb` picks one of the bombs in the template of checks/abuse ---- */

enum { BOMBS = 12 };

#endif
