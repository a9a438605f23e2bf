"""Every answer against the types that OpenAI and Anthropic publish, generated from their own API descriptions: strictly, nothing missing, nothing
converted, no field that they do not know but those listed. Run by `cargo xtask sdk`."""

import json
import os
import urllib.error
import urllib.request

import anthropic.types
import openai.types
import openai.types.chat
import openai.types.responses
import pydantic

URL, MODEL = os.environ["DS4_URL"], os.environ["DS4_MODEL_NAME"]
# DeepSeek's own API has reasoning like this. The list of models is one for both APIs, so each sees the other's fields; context_length is what other
# servers of open models tell.
OURS = {
    "ChatCompletionMessage": {"reasoning_content"}, "ChoiceDelta": {"reasoning_content"},
    "Model": {"type", "display_name", "created_at", "context_length"},
}
MESSAGES = [{"role": "user", "content": "the cat that is on the mat"}]
PARAMETERS = {"type": "object", "required": ["city"], "additionalProperties": False, "properties": {"city": {"type": "string", "enum": ["Rome"]}}}
CHECKED = {}


def request(path, body=None):
    data = None if body is None else json.dumps({"model": MODEL, **body}).encode()
    asked = urllib.request.Request(URL + path, data, {"content-type": "application/json", "authorization": "Bearer key"})
    with urllib.request.urlopen(asked, timeout=120) as answer:
        return answer.read().decode()


def unknown(value, at):
    """Fields that the published type does not have."""
    if isinstance(value, pydantic.BaseModel):
        for name in (value.model_extra or {}).keys() - OURS.get(type(value).__name__, set()):
            yield f"{at}.{name}"
        for name in type(value).model_fields:
            yield from unknown(getattr(value, name, None), f"{at}.{name}")
    elif isinstance(value, (list, tuple)):
        for i, item in enumerate(value):
            yield from unknown(item, f"{at}[{i}]")
    elif isinstance(value, dict):
        for name, item in value.items():
            yield from unknown(item, f"{at}.{name}")


def check(kind, text):
    """`text` is exactly a `kind`."""
    try:
        value = pydantic.TypeAdapter(kind).validate_json(text, strict=True)
    except pydantic.ValidationError as error:
        raise SystemExit(f"{text}\n{error}") from error
    name = getattr(kind, "__name__", None) or str(kind).rsplit(".", 1)[-1]
    extra = list(unknown(value, name))
    assert not extra, (extra, text)
    CHECKED[name] = CHECKED.get(name, 0) + 1
    return value


def events(text):
    """The data of a stream's events, and their names where they have one."""
    for block in text.split("\n\n"):
        lines = dict(line.split(": ", 1) for line in block.splitlines() if ": " in line and not line.startswith(":"))
        if "data" in lines and lines["data"] != "[DONE]":
            yield lines.get("event"), lines["data"]


def stream(kind, path, body, named=False):
    found = list(events(request(path, {**body, "stream": True})))
    assert found, path
    for name, data in found:
        check(kind, data)
        assert not named or json.loads(data)["type"] == name, (name, data)
    return found


def chat():
    kinds = openai.types.chat
    tool = {"type": "function", "function": {"name": "weather", "parameters": PARAMETERS}}
    schema = {"type": "json_schema", "json_schema": {"name": "x", "schema": PARAMETERS}}
    for extra in [
        {}, {"n": 2, "logprobs": True, "top_logprobs": 3}, {"reasoning_effort": "high"}, {"tools": [tool], "tool_choice": "required"},
        {"tools": [tool], "tool_choice": "none"}, {"response_format": schema}, {"stop": ["a", "e"]}, {"service_tier": "flex"},
    ]:
        body = {"messages": MESSAGES, "max_completion_tokens": 60, "temperature": 0, **extra}
        check(kinds.ChatCompletion, request("/v1/chat/completions", body))
        stream(kinds.ChatCompletionChunk, "/v1/chat/completions", {**body, "stream_options": {"include_usage": True}})


def completions():
    for extra in [{}, {"logprobs": 2}, {"n": 2}]:
        body = {"prompt": "the cat", "max_tokens": 8, "temperature": 0, **extra}
        check(openai.types.Completion, request("/v1/completions", body))
        for _, data in events(request("/v1/completions", {**body, "stream": True})):
            # The published type is that of a whole answer: in a stream the real API tells null until the end.
            check(openai.types.Completion, data.replace('"finish_reason":null', '"finish_reason":"stop"'))


def responses():
    kinds = openai.types.responses
    tool = {"type": "function", "name": "weather", "parameters": PARAMETERS, "strict": True}
    for extra in [{}, {"reasoning": {"effort": "high"}}, {"tools": [tool], "tool_choice": "required"}, {"instructions": "short"}]:
        body = {"input": "the cat", "max_output_tokens": 60, "temperature": 0, **extra}
        check(kinds.Response, request("/v1/responses", body))
        stream(kinds.ResponseStreamEvent, "/v1/responses", body, named=True)


def messages():
    kinds = anthropic.types
    tool = {"name": "weather", "input_schema": PARAMETERS}
    for extra in [{}, {"thinking": {"type": "enabled", "budget_tokens": 1024}, "max_tokens": 1100}, {"tools": [tool], "tool_choice": {"type": "any"}}, {"stop_sequences": ["a"]}]:
        body = {"messages": MESSAGES, "max_tokens": 60, "temperature": 0, **extra}
        check(kinds.Message, request("/v1/messages", body))
        found = stream(kinds.RawMessageStreamEvent | Ping, "/v1/messages", body, named=True)
        assert [name for name, _ in found][-1] == "message_stop"
    check(kinds.MessageTokensCount, request("/v1/messages/count_tokens", {"messages": MESSAGES}))


class Ping(pydantic.BaseModel):
    """In Anthropic's description of streams, and not among its types."""

    type: str = pydantic.Field(pattern="^ping$")


def models():
    check(openai.types.Model, request(f"/v1/models/{MODEL}"))
    listed = json.loads(request("/v1/models"))
    assert listed["object"] == "list"
    for model in listed["data"]:
        check(openai.types.Model, json.dumps(model))


def errors():
    """OpenAI's error object has these four members; Anthropic's types have one for each status."""
    for path in ["/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages"]:
        try:
            request(path, {"messages": 1, "prompt": {}, "input": 1})
            raise SystemExit(f"{path}: expected a refusal")
        except urllib.error.HTTPError as refused:
            text = refused.read().decode()
            assert refused.code == 400, text
            if path == "/v1/messages":
                check(anthropic.types.ErrorResponse, text)
            else:
                check(openai.types.shared.ErrorObject, json.dumps(json.loads(text)["error"]))


for part in [models, completions, chat, responses, messages, errors]:
    part()
print(", ".join(f"{count} {name}" for name, count in sorted(CHECKED.items())))
