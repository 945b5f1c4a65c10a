import assert from 'node:assert/strict';
import { after, before, test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import OpenAI from 'openai';
import { busy, start } from './mesh.mjs';

let network, client, model;

before(async () => {
  network = await start(2);
  client = connect(network);
  model = (await client.models.list()).data[0].id;
});

after(async () => {
  await network?.stop();
});

/** An SDK client that does not retry: what a call returns is what the node said first. */
function connect(to) {
  return new OpenAI({ baseURL: `${to.api}/v1`, apiKey: 'none', maxRetries: 0, timeout: 60_000 });
}

/** A chat with one question, answered by the likeliest tokens unless told otherwise. */
function ask(extra) {
  return { model, messages: [{ role: 'user', content: 'What is Mesh?' }], temperature: 0, ...extra };
}

async function complete(extra) {
  return client.chat.completions.create(ask(extra));
}

async function streamed(extra) {
  const chunks = [];
  for await (const chunk of await client.chat.completions.create(ask({ stream: true, ...extra }))) chunks.push(chunk);
  const text = chunks.map((c) => c.choices[0]?.delta.content ?? '').join('');
  return { chunks, text };
}

test('chat', async () => {
  const { data, response } = await client.chat.completions.create(ask()).withResponse();
  const [choice] = data.choices;
  assert.match(choice.message.content, /peer-to-peer/);
  assert.equal(choice.finish_reason, 'stop');
  assert.equal(data.model, model);
  assert.equal(data.usage.total_tokens, data.usage.prompt_tokens + data.usage.completion_tokens);
  assert.ok(data.usage.completion_tokens > 5);
  assert.ok(response.headers.get('mesh-receipt').startsWith(data.id.slice('chatcmpl-'.length)));
  assert.ok(network.hosts.some((h) => h.peer === response.headers.get('mesh-host')));
});

test('stream', async () => {
  const whole = await complete();
  const { chunks, text } = await streamed();
  assert.equal(text, whole.choices[0].message.content);
  assert.equal(chunks[0].choices[0].delta.role, 'assistant');
  assert.equal(chunks.at(-1).choices[0].finish_reason, 'stop');
  assert.ok(chunks.every((c) => c.usage === undefined));
});

test('stream of a long answer', async () => {
  // On a busy machine several tokens share an event, so a short answer may come in one piece; a long one may not.
  const { chunks } = await streamed({ temperature: 1, ignore_eos: true, max_tokens: 400 });
  const pieces = chunks.filter((c) => c.choices[0].delta.content);
  assert.ok(pieces.length > 3, `${pieces.length} pieces`);
});

test('stream with the helper of the SDK', async () => {
  const runner = client.chat.completions.stream(ask());
  const content = await runner.finalContent();
  assert.equal(content, (await complete()).choices[0].message.content);
});

test('usage in a stream', async () => {
  const { usage } = await complete();
  const { chunks } = await streamed({ stream_options: { include_usage: true } });
  const last = chunks.at(-1);
  assert.deepEqual(last.choices, []);
  assert.deepEqual(last.usage, usage);
  assert.ok(chunks.slice(0, -1).every((c) => c.usage === null));
});

test('stop', async () => {
  const full = (await complete()).choices[0].message.content;
  const words = full.split(/\s+/);
  const stop = `${words[3]} ${words[4]}`;
  const want = full.slice(0, full.indexOf(stop));
  for (const s of [stop, ['never\u0000', stop]]) {
    const { message, finish_reason } = (await complete({ stop: s })).choices[0];
    assert.deepEqual([message.content, finish_reason], [want, 'stop']);
  }
  assert.equal((await streamed({ stop })).text, want);
});

test('max tokens', async () => {
  const { choices, usage } = await complete({ max_completion_tokens: 5 });
  assert.equal(choices[0].finish_reason, 'length');
  assert.equal(usage.completion_tokens, 5);
});

test('n', async () => {
  const one = (await complete()).choices[0].message.content;
  const { choices } = await complete({ n: 3 });
  assert.deepEqual(choices.map((c) => [c.index, c.message.content]), [[0, one], [1, one], [2, one]]);
});

test('seed', async () => {
  const distinct = new Set();
  for (const seed of [1, 2, 3, 4]) {
    const extra = { seed, temperature: 2, max_tokens: 40 };
    const [a, b] = await Promise.all([complete(extra), complete(extra)]);
    assert.equal(a.choices[0].message.content, b.choices[0].message.content);
    distinct.add(a.choices[0].message.content);
  }
  assert.ok(distinct.size > 1, 'four seeds at temperature 2 gave one answer');
  const extra = { seed: 7, temperature: 1 };
  assert.equal((await complete(extra)).choices[0].message.content, (await streamed(extra)).text);
});

test('logprobs', async () => {
  const extra = { logprobs: true, top_logprobs: 3 };
  const [choice] = (await complete(extra)).choices;
  const { chunks } = await streamed(extra);
  for (const tokens of [choice.logprobs.content, chunks.flatMap((c) => c.choices[0].logprobs?.content ?? [])]) {
    assert.equal(Buffer.from(tokens.flatMap((t) => t.bytes)).toString(), choice.message.content);
    for (const t of tokens) {
      assert.ok(t.logprob <= 0);
      assert.equal(t.top_logprobs.length, 3);
      assert.deepEqual([t.top_logprobs[0].token, t.top_logprobs[0].logprob], [t.token, t.logprob]);
    }
  }
});

test('completions', async () => {
  const extra = { model, prompt: 'Mesh is a', max_tokens: 8, temperature: 0 };
  const whole = (await client.completions.create(extra)).choices[0].text;
  let text = '';
  for await (const chunk of await client.completions.create({ ...extra, stream: true })) text += chunk.choices[0].text;
  assert.ok(whole);
  assert.equal(text, whole);
});

test('embeddings', async () => {
  // The SDK asks for base64 unless told otherwise, and decodes it.
  const input = ['What is Mesh?', 'A receipt is'];
  const { data, usage, model: name } = await client.embeddings.create({ model, input });
  assert.equal(name, model);
  assert.deepEqual(data.map((d) => d.index), [0, 1]);
  assert.ok(usage.prompt_tokens > 1 && usage.total_tokens === usage.prompt_tokens);
  const dimensions = data[0].embedding.length;
  for (const [i, text] of input.entries()) {
    const one = await client.embeddings.create({ model, input: text, dimensions, encoding_format: 'float' });
    assert.deepEqual(one.data[0].embedding.map(Math.fround), data[i].embedding);
    const square = data[i].embedding.reduce((sum, x) => sum + x * x, 0);
    assert.ok(Math.abs(square - 1) < 1e-3, `length ${Math.sqrt(square)}`);
  }
  const error = await client.embeddings.create({ model, input, dimensions: dimensions + 1 }).then(() => null, (e) => e);
  assert.deepEqual([error.status, error.code, error.param], [400, 'invalid_value', 'dimensions']);
});

const refusals = {
  'unknown model': [{ model: 'no-such-model' }, 404, 'model_not_found', 'model'],
  'wrong type': [{ temperature: 'hot' }, 400, 'invalid_type', 'temperature'],
  'too long': [{ messages: [{ role: 'user', content: 'What is Mesh? '.repeat(5000) }] }, 400, 'context_length_exceeded', 'messages'],
};
for (const [name, [extra, status, code, param]] of Object.entries(refusals)) {
  test(`error: ${name}`, async () => {
    const of = (e) => ({ status: e.status, code: e.code, param: e.param });
    for (const stream of [false, true]) {
      const error = await complete({ ...extra, stream }).then(() => null, (e) => e);
      assert.ok(error instanceof OpenAI.APIError, `${error}`);
      assert.deepEqual(of(error), { status, code, param });
    }
  });
}

test('error: bad JSON', async () => {
  const res = await fetch(`${network.api}/v1/chat/completions`, {
    method: 'POST', headers: { 'content-type': 'application/json' }, body: '{"model":',
  });
  assert.equal(res.status, 400);
  assert.equal((await res.json()).error.code, 'invalid_json');
});

test('error: no host', async () => {
  const alone = await start(1);
  try {
    const c = connect(alone);
    await c.chat.completions.create(ask());
    process.kill(alone.hosts[0].pid, 'SIGKILL');
    const error = await c.chat.completions.create(ask()).then(() => null, (e) => e);
    assert.ok(error instanceof OpenAI.InternalServerError, `${error}`);
    assert.deepEqual([error.status, error.code], [503, 'no_host']);
  } finally {
    await alone.stop();
  }
});

/** Starts k streams of many long choices; resolves when all have ended. */
function long(k, signal, began = () => {}) {
  return Promise.all(Array.from({ length: k }, async () => {
    const stream = await client.chat.completions.create(
      ask({ stream: true, n: 16, temperature: 1, ignore_eos: true }), { signal });
    for await (const _ of stream) began();
  }));
}

// The same work is first done to its end, to know that it would have taken longer.
test('cancel', async (t) => {
  let k = 1;
  for (; ; k *= 2) {
    assert.ok(k <= 64, 'this machine is too fast for the test');
    const start = performance.now();
    await long(k);
    if (performance.now() - start > 4000) break;
  }
  // The second is the product's. That a busy machine takes longer once does not count.
  let took;
  for (let tries = 0; tries < 3; tries++) {
    const control = new AbortController();
    let ended;
    await new Promise((began) => {
      ended = long(k, control.signal, began).catch((e) => e);
    });
    const slots = await busy(network);
    assert.ok(slots > 0, 'the hosts are idle while they stream');
    const left = performance.now();
    control.abort();
    while ((await busy(network)) > 0) {
      assert.ok(performance.now() - left < 10_000, 'the slots are still busy after 10 s');
      await sleep(10);
    }
    took = performance.now() - left;
    t.diagnostic(`${slots} busy slots were free after ${Math.round(took)} ms`);
    await ended;
    if (took <= 1000) return;
  }
  assert.fail(`free after ${took} ms, the third time`);
});
