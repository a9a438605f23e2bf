"""The unmodified OpenAI client against a cluster's Service: one whole chat, one streamed. Prints one JSON object."""

import json
import sys

from openai import OpenAI

client = OpenAI(base_url=sys.argv[1] + "/v1", api_key="none", timeout=60)
question = "How can the layers of one model live on several machines while only one of them answers? " * 3
request = dict(model=sys.argv[2], max_tokens=16, temperature=0, messages=[{"role": "user", "content": question}])

raw = client.chat.completions.with_raw_response.create(**request)
whole = raw.parse()
streamed = client.chat.completions.with_raw_response.create(**request, stream=True, stream_options={"include_usage": True})
text, usage, finish = "", None, None
for chunk in streamed.parse():
    usage = chunk.usage or usage
    for choice in chunk.choices:
        text += choice.delta.content or ""
        finish = choice.finish_reason or finish
print(json.dumps({
    "decision": raw.headers["x-ds4-disaggregation"],
    "streamed_decision": streamed.headers["x-ds4-disaggregation"],
    "whole": whole.choices[0].message.content,
    "streamed": text,
    "finish": finish,
    "prompt_tokens": whole.usage.prompt_tokens,
    "completion_tokens": usage.completion_tokens,
    "models": [model.id for model in client.models.list()],
}))
