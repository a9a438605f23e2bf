"""The official Python clients of OpenAI and Anthropic, unmodified, over every endpoint, whole and streamed. Run by `cargo xtask sdk`."""

import json
import os

import anthropic
import openai

URL, MODEL = os.environ["DS4_URL"], os.environ["DS4_MODEL_NAME"]
OPENAI = openai.OpenAI(base_url=f"{URL}/v1", api_key="key", max_retries=0)
ANTHROPIC = anthropic.Anthropic(base_url=URL, api_key="key", max_retries=0)
MESSAGES = [{"role": "user", "content": "the cat that is on the mat"}]
PARAMETERS = {
    "type": "object", "required": ["city", "days"], "additionalProperties": False,
    "properties": {"city": {"type": "string", "enum": ["Rome", "Catania"]}, "days": {"type": "integer", "minimum": 1, "maximum": 99}},
}
SCHEMA = {"type": "object", "required": ["a"], "additionalProperties": False, "properties": {"a": {"type": "integer", "minimum": 0, "maximum": 99}}}


def check_arguments(text):
    value = json.loads(text) if isinstance(text, str) else text
    assert value["city"] in ("Rome", "Catania") and 1 <= value["days"] <= 99, value


def prompt(usage):
    """Anthropic counts tokens that were computed earlier apart."""
    return usage.input_tokens + usage.cache_read_input_tokens


def openai_models():
    assert [model.id for model in OPENAI.models.list()] == [MODEL]
    assert OPENAI.models.retrieve(MODEL).id == MODEL


def openai_chat():
    asked = {"model": MODEL, "messages": MESSAGES, "max_completion_tokens": 12, "temperature": 0, "seed": 1}
    whole = OPENAI.chat.completions.create(**asked, n=2, logprobs=True, top_logprobs=2)
    text = whole.choices[0].message.content
    assert text and len(whole.choices) == 2 and whole.usage.total_tokens > 12 and whole._request_id
    assert len(whole.choices[0].logprobs.content[0].top_logprobs) == 2
    chunks = list(OPENAI.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True}))
    told = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert told == text, (told, text)
    assert chunks[-1].usage.completion_tokens == 12 or chunks[-2].choices[0].finish_reason == "stop"
    with OPENAI.chat.completions.stream(model=MODEL, messages=MESSAGES, max_completion_tokens=12, temperature=0) as stream:
        stream.until_done()
        told = stream.current_completion_snapshot.choices[0].message.content
    assert told == text, (told, text)


def openai_thinking():
    asked = {"model": MODEL, "messages": MESSAGES, "max_tokens": 40, "temperature": 0, "reasoning_effort": "high", "extra_body": {"thinking": {"type": "enabled", "budget_tokens": 8}}}
    message = OPENAI.chat.completions.create(**asked).choices[0].message
    assert message.reasoning_content, message
    chunks = OPENAI.chat.completions.create(**asked, stream=True)
    assert any(getattr(chunk.choices[0].delta, "reasoning_content", None) for chunk in chunks)


def openai_tools():
    tool = {"type": "function", "function": {"name": "weather", "description": "of a city", "parameters": PARAMETERS}}
    asked = {"model": MODEL, "tools": [tool], "tool_choice": "required", "parallel_tool_calls": False, "max_tokens": 300}
    message = OPENAI.chat.completions.create(**asked, messages=MESSAGES).choices[0].message
    call = message.tool_calls[0]
    check_arguments(call.function.arguments)
    chunks = list(OPENAI.chat.completions.create(**asked, messages=MESSAGES, stream=True))
    deltas = [delta for chunk in chunks for delta in chunk.choices[0].delta.tool_calls or []]
    assert deltas[0].id and deltas[0].function.name == "weather"
    check_arguments("".join(delta.function.arguments for delta in deltas))
    assert chunks[-1].choices[0].finish_reason == "tool_calls"
    turn = [*MESSAGES, message.model_dump(exclude_none=True), {"role": "tool", "tool_call_id": call.id, "content": "sunny"}]
    again = OPENAI.chat.completions.create(model=MODEL, tools=[tool], messages=turn, max_tokens=5)
    assert again.usage.prompt_tokens > 300


def openai_formats():
    form = {"type": "json_schema", "json_schema": {"name": "answer", "strict": True, "schema": SCHEMA}}
    text = OPENAI.chat.completions.create(model=MODEL, messages=MESSAGES, response_format=form, max_tokens=60).choices[0].message.content
    assert 0 <= json.loads(text)["a"] <= 99
    response = OPENAI.responses.create(model=MODEL, input="q", max_output_tokens=60, text={"format": {"type": "json_schema", "name": "answer", "schema": SCHEMA}})
    assert 0 <= json.loads(response.output_text)["a"] <= 99


def openai_completions():
    asked = {"model": MODEL, "prompt": "the house", "max_tokens": 6, "temperature": 0, "logprobs": 1}
    whole = OPENAI.completions.create(**asked)
    chunks = OPENAI.completions.create(**asked, stream=True)
    assert "".join(chunk.choices[0].text for chunk in chunks) == whole.choices[0].text != ""


def openai_responses():
    asked = {"model": MODEL, "input": "the cat that is on the mat", "max_output_tokens": 12, "temperature": 0, "instructions": "be brief"}
    whole = OPENAI.responses.create(**asked)
    assert whole.output_text and whole.usage.output_tokens <= 12 and whole.status in ("incomplete", "completed")
    events = list(OPENAI.responses.create(**asked, stream=True))
    assert events[0].type == "response.created" and events[-1].response.output_text == whole.output_text
    tool = {"type": "function", "name": "weather", "parameters": PARAMETERS, "strict": True}
    asked = {"model": MODEL, "tools": [tool], "tool_choice": "required", "max_output_tokens": 300, "parallel_tool_calls": False}
    call = OPENAI.responses.create(**asked, input="q").output[0]
    check_arguments(call.arguments)
    with OPENAI.responses.stream(**asked, input="q") as stream:
        kinds = {event.type for event in stream}
        check_arguments(stream.get_final_response().output[0].arguments)
    assert "response.function_call_arguments.delta" in kinds
    turn = [{"role": "user", "content": "q"}, call.model_dump(exclude_none=True), {"type": "function_call_output", "call_id": call.call_id, "output": "sunny"}]
    reasoned = OPENAI.responses.create(model=MODEL, input=turn, max_output_tokens=6, reasoning={"effort": "low"})
    assert reasoned.output[0].type == "reasoning"
    refused(openai.BadRequestError, lambda: OPENAI.responses.create(model=MODEL, input="q", previous_response_id="resp_1"))


def anthropic_messages():
    asked = {"model": MODEL, "max_tokens": 12, "messages": MESSAGES, "system": "be brief", "extra_body": {"temperature": 0}}
    whole = ANTHROPIC.messages.create(**asked)
    text = whole.content[0].text
    assert text and whole.stop_reason in ("max_tokens", "end_turn") and whole._request_id
    assert ANTHROPIC.messages.count_tokens(model=MODEL, messages=MESSAGES, system="be brief").input_tokens == prompt(whole.usage)
    with ANTHROPIC.messages.stream(**asked) as stream:
        assert "".join(stream.text_stream) == text
        assert stream.get_final_message().usage.output_tokens == whole.usage.output_tokens
    assert [model.id for model in ANTHROPIC.models.list()] == [MODEL]


def anthropic_thinking():
    asked = {"model": MODEL, "max_tokens": 1100, "messages": MESSAGES, "thinking": {"type": "enabled", "budget_tokens": 1024}}
    whole = ANTHROPIC.messages.create(**asked)
    assert whole.content[0].type == "thinking" and whole.content[0].thinking
    with ANTHROPIC.messages.stream(**asked) as stream:
        kinds = {event.type for event in stream}
    assert "thinking" in kinds, kinds
    turn = [*MESSAGES, {"role": "assistant", "content": [block.model_dump(exclude_none=True) for block in whole.content]}, {"role": "user", "content": "and?"}]
    assert ANTHROPIC.messages.create(model=MODEL, max_tokens=4, messages=turn).usage.output_tokens <= 4


def anthropic_tools():
    tool = {"name": "weather", "description": "of a city", "input_schema": PARAMETERS}
    asked = {"model": MODEL, "max_tokens": 300, "tools": [tool], "tool_choice": {"type": "any", "disable_parallel_tool_use": True}}
    whole = ANTHROPIC.messages.create(**asked, messages=MESSAGES)
    use = whole.content[0]
    assert whole.stop_reason == "tool_use"
    check_arguments(use.input)
    with ANTHROPIC.messages.stream(**asked, messages=MESSAGES) as stream:
        check_arguments(stream.get_final_message().content[0].input)
    result = {"type": "tool_result", "tool_use_id": use.id, "content": [{"type": "text", "text": "sunny"}]}
    turn = [*MESSAGES, {"role": "assistant", "content": [use.model_dump(exclude_none=True)]}, {"role": "user", "content": [result]}]
    assert prompt(ANTHROPIC.messages.create(model=MODEL, max_tokens=5, tools=[tool], messages=turn).usage) > 300


def refused(kind, work):
    try:
        work()
    except kind:
        return
    raise AssertionError(f"expected {kind.__name__}")


def errors():
    refused(openai.NotFoundError, lambda: OPENAI.chat.completions.create(model="other", messages=MESSAGES))
    refused(openai.BadRequestError, lambda: OPENAI.chat.completions.create(model=MODEL, messages=[]))
    refused(anthropic.NotFoundError, lambda: ANTHROPIC.messages.create(model="other", max_tokens=1, messages=MESSAGES))
    refused(anthropic.BadRequestError, lambda: ANTHROPIC.messages.create(model=MODEL, max_tokens=5000, messages=MESSAGES))
    bad = openai.OpenAI(base_url=f"{URL}/v1", api_key="wrong", max_retries=0)
    refused(openai.AuthenticationError, lambda: bad.models.list())


for check in [openai_models, openai_chat, openai_thinking, openai_tools, openai_formats, openai_completions, openai_responses,
              anthropic_messages, anthropic_thinking, anthropic_tools, errors]:
    check()
    print("ok", check.__name__)
