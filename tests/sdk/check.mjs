// The official Node clients of OpenAI and Anthropic, unmodified, over every endpoint, whole and streamed. Run by `cargo xtask sdk`.
import assert from "node:assert/strict";

import Anthropic from "@anthropic-ai/sdk";
import OpenAI from "openai";

const url = process.env.DS4_URL;
const model = process.env.DS4_MODEL_NAME;
const openai = new OpenAI({ baseURL: `${url}/v1`, apiKey: "key", maxRetries: 0 });
const anthropic = new Anthropic({ baseURL: url, apiKey: "key", maxRetries: 0 });
const messages = [{ role: "user", content: "the cat that is on the mat" }];
const parameters = {
  type: "object", required: ["city", "days"], additionalProperties: false,
  properties: { city: { type: "string", enum: ["Rome", "Catania"] }, days: { type: "integer", minimum: 1, maximum: 99 } },
};
const collect = async (stream) => {
  const all = [];
  for await (const part of stream) all.push(part);
  return all;
};
const checkArguments = (value) => {
  const given = typeof value === "string" ? JSON.parse(value) : value;
  assert(["Rome", "Catania"].includes(given.city) && given.days >= 1 && given.days <= 99, JSON.stringify(given));
};

const checks = {
  async models() {
    assert.deepEqual((await collect(openai.models.list())).map((card) => card.id), [model]);
    assert.deepEqual((await collect(anthropic.models.list())).map((card) => card.id), [model]);
  },
  async chat() {
    const asked = { model, messages, max_tokens: 12, temperature: 0 };
    const whole = await openai.chat.completions.create(asked);
    const chunks = await collect(await openai.chat.completions.create({ ...asked, stream: true, stream_options: { include_usage: true } }));
    assert.equal(chunks.map((chunk) => chunk.choices[0]?.delta.content ?? "").join(""), whole.choices[0].message.content);
    assert.equal(chunks.at(-1).usage.total_tokens, whole.usage.total_tokens);
  },
  async tools() {
    const tool = { type: "function", function: { name: "weather", parameters } };
    const asked = { model, messages, tools: [tool], tool_choice: "required", parallel_tool_calls: false, max_tokens: 300 };
    checkArguments((await openai.chat.completions.create(asked)).choices[0].message.tool_calls[0].function.arguments);
    const final = await openai.chat.completions.stream(asked).finalChatCompletion();
    checkArguments(final.choices[0].message.tool_calls[0].function.arguments);
  },
  async thinking() {
    const asked = { model, messages, max_tokens: 30, reasoning_effort: "medium", thinking: { type: "enabled", budget_tokens: 8 } };
    assert((await openai.chat.completions.create(asked)).choices[0].message.reasoning_content);
  },
  async completions() {
    const asked = { model, prompt: "the house", max_tokens: 6, temperature: 0 };
    const whole = await openai.completions.create(asked);
    const chunks = await collect(await openai.completions.create({ ...asked, stream: true }));
    assert.equal(chunks.map((chunk) => chunk.choices[0]?.text ?? "").join(""), whole.choices[0].text);
  },
  async responses() {
    const asked = { model, input: "the cat that is on the mat", max_output_tokens: 12, temperature: 0 };
    const whole = await openai.responses.create(asked);
    const events = await collect(await openai.responses.create({ ...asked, stream: true }));
    const told = events.filter((event) => event.type === "response.output_text.delta").map((event) => event.delta).join("");
    assert.equal(told, whole.output_text);
    const tool = { type: "function", name: "weather", parameters, strict: true };
    const final = await openai.responses.stream({ model, input: "q", tools: [tool], tool_choice: "required", max_output_tokens: 300, parallel_tool_calls: false }).finalResponse();
    checkArguments(final.output[0].arguments);
  },
  async messages() {
    const asked = { model, messages, max_tokens: 12, temperature: 0 };
    const whole = await anthropic.messages.create(asked);
    const final = await anthropic.messages.stream(asked).finalMessage();
    assert.deepEqual(final.content[0].text, whole.content[0].text);
    const count = await anthropic.messages.countTokens({ model, messages });
    assert.equal(count.input_tokens, whole.usage.input_tokens + whole.usage.cache_read_input_tokens);
  },
  async messagesTools() {
    const asked = { model, messages, max_tokens: 300, tools: [{ name: "weather", input_schema: parameters }], tool_choice: { type: "tool", name: "weather", disable_parallel_tool_use: true } };
    const whole = await anthropic.messages.create(asked);
    checkArguments(whole.content[0].input);
    checkArguments((await anthropic.messages.stream(asked).finalMessage()).content[0].input);
  },
  async messagesThinking() {
    const asked = { model, messages, max_tokens: 1100, thinking: { type: "enabled", budget_tokens: 1024 } };
    assert.equal((await anthropic.messages.stream(asked).finalMessage()).content[0].type, "thinking");
  },
  async errors() {
    await assert.rejects(openai.chat.completions.create({ model: "other", messages }), OpenAI.NotFoundError);
    await assert.rejects(anthropic.messages.create({ model, max_tokens: 0, messages }), Anthropic.BadRequestError);
  },
};

for (const [name, check] of Object.entries(checks)) {
  await check();
  console.log("ok", name);
}
