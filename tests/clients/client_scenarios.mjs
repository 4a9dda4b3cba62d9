// ssegate/client/client.js in Node, against a scripted server. Each scenario is answered by one line, {sentence, error};
// when all are done the process has to end by itself, for the client must leave nothing behind that keeps it.
import assert from "node:assert/strict";
import { once } from "node:events";
import { readFileSync } from "node:fs";
import { createServer } from "node:http";
import { report } from "./report.mjs";

process.stdin.pause(); // `report.mjs` waits for its end

const read = (path) => readFileSync(new URL(path, import.meta.url), "utf8");
const source = Buffer.from(read("../../ssegate/client/client.js")).toString("base64");
const { subscribe } = await import(`data:text/javascript;base64,${source}`);

const scenarios = [];
const servers = [];
const scenario = (sentence, run) => scenarios.push([sentence, run]);

// --- what the scenarios are made of ---

// A server that answers the first request by the first function, and so on; `requests` tells what it was asked.
async function serve(...script) {
  const requests = [];
  const waiting = [];
  const server = createServer(async (request, response) => {
    let body = "";
    for await (const piece of request) body += piece;
    const { method, url, headers } = request;
    requests.push({ method, url, headers, body, response });
    (script.shift() ?? hang)(response);
    for (const look of waiting) look();
  });
  await once(server.listen(0, "127.0.0.1"), "listening");
  servers.push(server);
  return {
    requests,
    url: `http://127.0.0.1:${server.address().port}`,
    asked: (count) =>
      new Promise((resolve) => {
        const look = () => requests.length >= count && resolve(requests[count - 1]);
        waiting.push(look);
        look();
      }),
  };
}

const HEAD = { "content-type": "text/event-stream" };
const hang = () => {};
const open = (text, headers) => (response) => {
  response.writeHead(200, { ...HEAD, ...headers });
  response.write(`retry: 10\n:\n${text}`);
};
const ended = (text, headers) => (response) => {
  open(text, headers)(response);
  response.end();
};
const broken = (text, headers) => (response) => {
  open(text, headers)(response);
  setImmediate(() => response.destroy());
};
const refuse = (status, problem, headers) => (response) => {
  response.writeHead(status, { "content-type": "application/problem+json", ...headers });
  response.end(problem ? JSON.stringify(problem) : undefined);
};
const drop = (response) => response.destroy();

const event = (type, data, id) =>
  `${type ? `event: ${type}\n` : ""}data: ${JSON.stringify(data)}\n${id ? `id: ${id}\n` : ""}\n`;

// A subscription whose callbacks are kept in `told`; `until` waits for what they tell.
function follow(url, options = {}) {
  const told = [];
  const waiting = new Set();
  const note = (line) => {
    told.push(line);
    for (const look of waiting) look();
  };
  const stream = subscribe(url, {
    onState: (state) => note({ state }),
    onEvent: ({ type, data, id }) => note({ event: [type, data, id] }),
    onStatus: (status, detail) => note({ status, detail }),
    ...options,
  });
  const until = (is) =>
    new Promise((resolve) => {
      const look = () => {
        const found = told.find(is);
        if (found) waiting.delete(look), resolve(found);
      };
      waiting.add(look);
      look();
    });
  return {
    stream,
    told,
    until,
    status: async (status) => (await until((line) => line.status === status)).detail,
    events: () => told.filter((line) => line.event).map((line) => line.event),
    statuses: () => told.filter((line) => line.status).map((line) => line.status),
  };
}

// A `fetch` whose answers are these lists of pieces; after the last it is refused for good.
function answers(...streams) {
  return async () => {
    const pieces = streams.shift();
    if (!pieces) return new Response(null, { status: 204 });
    const body = new ReadableStream({
      start(controller) {
        for (const piece of pieces) controller.enqueue(piece);
        controller.close();
      },
    });
    return new Response(body, { headers: HEAD });
  };
}

const ANYWHERE = "http://gate.invalid/";
const bytes = (text) => new TextEncoder().encode(text);

// Runs with timers that fire at once.
async function withoutWaiting(run) {
  const { setTimeout } = globalThis;
  globalThis.setTimeout = (action, ms) => (ms > 40_000 ? setTimeout(hang, 0) : setTimeout(action, 0));
  try {
    return await run();
  } finally {
    globalThis.setTimeout = setTimeout;
  }
}

// --- the event stream ---

scenario("it reads the standard's examples, cut at every byte", async () => {
  for (const { name, stream, hex, events, ...after } of JSON.parse(read("../vectors/eventsource.json")).cases) {
    const whole = hex ? Buffer.from(hex, "hex") : bytes(stream);
    for (let cut = 0; cut <= whole.length; cut++) {
      const pieces = cut ? [whole.slice(0, cut), whole.slice(cut)] : [...whole].map((byte) => Uint8Array.of(byte));
      const found = [];
      let ms;
      const seen = subscribe(ANYWHERE, {
        fetch: answers(pieces),
        onEvent: ({ type, text, id }) => found.push([type === "message" ? "" : type, text, id]),
        onStatus: (status, detail) => status === "waiting" && ((ms = detail.in), seen.close()),
      });
      for await (const _ of seen);
      assert.deepEqual(found, events, `${name}, cut at ${cut}`);
      if ("last_event_id" in after) assert.equal(seen.lastEventId, after.last_event_id, name);
      const wanted = after.retry_ms ?? 3000;
      assert.ok(ms >= wanted && ms <= wanted * 1.25, `${name}: ${ms}`);
    }
  }
});

scenario("data is JSON where it can be, and the text is there too", async () => {
  const found = [];
  for await (const one of subscribe(ANYWHERE, { fetch: answers([bytes('data: {"a":1}\n\ndata: a b\n\nevent: end\ndata: 0\n\n')]) })) {
    found.push([one.data, one.text]);
  }
  assert.deepEqual(found, [[{ a: 1 }, '{"a":1}'], ["a b", "a b"]]);
});

// --- the state ---

async function change(type, document, data) {
  let reset;
  const stream = subscribe(ANYWHERE, {
    fetch: answers([bytes(event("snapshot", document, "1") + event(type, data, "2") + event("end", {}, "3"))]),
    onState: (state) => (change.state = state),
    onStatus: (status, detail) => status === "reset" && (reset = detail),
  });
  for await (const _ of stream);
  if (reset) assert.equal(reset.reason, "misfit");
  return reset ? "misfit" : change.state;
}

for (const type of ["patch", "merge"]) {
  scenario(`it applies the examples of the RFC for ${type}`, async () => {
    for (const [document, data, result] of JSON.parse(read("../vectors/json_changes.json"))[type]) {
      assert.deepEqual(await change(type, document, data), result, JSON.stringify(data));
    }
  });
}

scenario("a member named __proto__ is a member", async () => {
  for (const [type, data] of [
    ["patch", '[{"op":"add","path":"/__proto__","value":{"x":1}},{"op":"add","path":"/__proto__/y","value":2}]'],
    ["merge", '{"__proto__":{"x":1,"y":2}}'],
  ]) {
    const state = await change(type, {}, JSON.parse(data));
    assert.equal(JSON.stringify(state), '{"__proto__":{"x":1,"y":2}}');
    assert.equal(state.x, undefined);
  }
});

scenario("what a change does not touch stays the same object", async () => {
  const before = { a: { b: { c: 1 }, d: { e: 1 } }, f: [{ g: 1 }, { h: 1 }] };
  const changes = { patch: [{ op: "replace", path: "/a/b/c", value: 2 }, { op: "add", path: "/f/1", value: 0 }], merge: { a: { b: { c: 2 } } } };
  for (const [type, data] of Object.entries(changes)) {
    const states = [];
    const fetch = answers([bytes(event("snapshot", before) + event(type, data) + event("end", {}))]);
    for await (const _ of subscribe(ANYWHERE, { fetch, onState: (state) => states.push(state) }));
    const [old, now] = states;
    assert.deepEqual(old, before);
    assert.equal(now.a.b.c, 2);
    assert.notEqual(now, old);
    assert.notEqual(now.a, old.a);
    assert.notEqual(now.a.b, old.a.b);
    assert.equal(now.a.d, old.a.d);
    assert.equal(now.f[0], old.f[0]);
    assert.equal(now.f.at(-1), old.f[1]);
    if (type === "merge") assert.equal(now.f, old.f);
  }
});

scenario("items are added at the end, changed in their place and removed", async () => {
  for (const [key, make] of [[undefined, (id, n) => ({ id, n })], ["at.sku", (sku, n) => ({ at: { sku }, n })], [(item) => item[0], (id, n) => [id, n]]]) {
    const states = [];
    const text = event("snapshot", [make(1, 1), make(2, 1)]) + event("removed", make(1, 1)) + event("added", make(3, 1)) + event("changed", make(2, 9));
    const fetch = answers([bytes(text + event("end", {}))]);
    for await (const _ of subscribe(ANYWHERE, { fetch, key, onState: (state) => states.push(state) }));
    assert.deepEqual(states.slice(1), [[make(2, 1)], [make(2, 1), make(3, 1)], [make(2, 9), make(3, 1)]]);
    assert.equal(states[3][1], states[2][1]);
  }
});

scenario("a change that does not fit makes it ask for a fresh snapshot at once", async () => {
  const server = await serve(
    open(event("snapshot", { a: 1 }, "e-1") + event("patch", [{ op: "remove", path: "/b" }], "e-2") + event("patch", [], "e-3")),
    open(event("snapshot", { a: 2 }, "e-4")),
  );
  const { stream, told, until } = follow(server.url, {});
  await until((line) => line.state?.a === 2);
  stream.close();
  assert.equal(server.requests[1].headers["last-event-id"], undefined);
  assert.deepEqual(
    told.map((line) => line.status ?? line.state ?? line.event[0]),
    ["connecting", "open", { a: 1 }, "snapshot", "reset", "connecting", "open", { a: 2 }, "snapshot", "closed"],
  );
  assert.deepEqual(told[4].detail, { reason: "misfit", message: "there is no b" });
});

scenario("when the changes after a fresh snapshot do not fit either it takes its time", async () => {
  const bad = event("snapshot", [], "e-1") + event("changed", { id: 1 }, "e-2");
  const server = await serve(open(bad), open(bad), open(event("snapshot", [])));
  const { stream, statuses } = follow(server.url);
  await server.asked(3);
  stream.close();
  assert.deepEqual(statuses().slice(0, 7), ["connecting", "open", "reset", "connecting", "open", "reset", "waiting"]);
});

scenario("behind a cursor of the caller's a change without a snapshot makes it ask for one", async () => {
  const server = await serve(open(event("merge", { a: 2 }, "e-2")), open(event("snapshot", { a: 2 }, "e-2")));
  const { stream, until, statuses } = follow(server.url, { lastEventId: "e-1" });
  await until((line) => line.state);
  stream.close();
  assert.deepEqual(server.requests.map(({ headers }) => headers["last-event-id"]), ["e-1", undefined]);
  assert.equal(statuses()[2], "reset");
});

scenario("on an event route the names of changes are names like others", async () => {
  const text = event("", { n: 1 }, "e-1") + event("changed", { n: 2 }, "e-2") + event("patch", { n: 3 }, "e-3") + event("end", {});
  const server = await serve(ended(text));
  const found = [];
  for await (const { type } of subscribe(server.url, { lastEventId: "e-0", onStatus: (status) => found.push(status) })) found.push(type);
  assert.deepEqual(found, ["connecting", "open", "ended", "message", "changed", "patch"]);
});

scenario("a reset discards the state, and the snapshot after it is the new one", async () => {
  const server = await serve(open(event("snapshot", { a: 1 }) + event("reset", { reason: "gap" }) + event("snapshot", { a: 2 }) + event("patch", [{ op: "add", path: "/b", value: 3 }])));
  const states = [];
  const seen = follow(server.url, { onStatus: (status) => status === "reset" && states.push(seen.stream.state) });
  await seen.until((line) => line.state?.b === 3);
  assert.deepEqual(seen.stream.state, { a: 2, b: 3 });
  assert.deepEqual(states, [undefined]);
  seen.stream.close();
});

scenario("a fault is told and the stream goes on", async () => {
  const fault = { reason: "upstream", status: 503, message: "no" };
  const server = await serve(open(event("fault", fault) + event("recovered", {}) + event("", 1)));
  const { stream, told, until, events } = follow(server.url);
  await until((line) => line.event);
  stream.close();
  assert.deepEqual(told.filter((line) => line.status).map(({ status, detail }) => [status, detail]), [["connecting", undefined], ["open", undefined], ["fault", fault], ["open", undefined], ["closed", undefined]]);
  assert.deepEqual(events(), [["message", 1, ""]]);
});

// --- connections ---

for (const [how, lose] of [["ended", ended], ["was broken", broken]]) {
  scenario(`it comes back with its cursor when the connection ${how}`, async () => {
    const server = await serve(lose(event("", 1, "e-1") + event("", 2, "e-2") + "id: e-3\n"), open(event("", 3, "e-3")));
    const { stream, until, events } = follow(server.url, { lastEventId: "earliest", headers: { "x-a": "b" } });
    await until((line) => line.event?.[1] === 3);
    assert.equal(stream.lastEventId, "e-3");
    stream.close();
      assert.deepEqual(server.requests.map(({ headers }) => [headers["last-event-id"], headers.accept, headers["x-a"]]), [["earliest", "text/event-stream", "b"], ["e-2", "text/event-stream", "b"]]);
    assert.deepEqual(events().map(([, data]) => data), [1, 2, 3]);
  });
}

scenario("a cursor of any script comes back as its UTF-8", async () => {
  const server = await serve(ended("id: ü…\ndata: 1\n\n"), open(""));
  const stream = subscribe(server.url);
  const { headers } = await server.asked(2);
  stream.close();
  assert.equal(Buffer.from(headers["last-event-id"], "latin1").toString(), "ü…");
});

scenario("a silent connection is given up, and the next one asked for at once", async () => {
  const server = await serve(open(event("", 1, "e-1")), open(event("", 2, "e-2")));
  const { stream, until, statuses } = follow(server.url, { timeout: 200 });
  await until((line) => line.event?.[1] === 2);
  stream.close();
  assert.equal(server.requests[1].headers["last-event-id"], "e-1");
  assert.deepEqual(statuses(), ["connecting", "open", "connecting", "open", "closed"]);
});

scenario("a head that does not come is given up too", async () => {
  const server = await serve(hang, open(event("", 1)));
  const { stream, until } = follow(server.url, { timeout: 200 });
  await until((line) => line.event);
  stream.close();
});

scenario("it waits longer and longer, up to half a minute, until a byte comes", async () => {
  const waits = [];
  let count = 0;
  const fetch = async () => {
    count++;
    if (count === 13) return new Response("", { headers: HEAD }); // a head alone is no success
    if (count === 14) return new Response(":\n", { headers: HEAD });
    if (count === 16) return new Response(null, { status: 204 });
    throw new TypeError("no network");
  };
  await withoutWaiting(async () => {
    for await (const _ of subscribe(ANYWHERE, { fetch, onStatus: (status, detail) => status === "waiting" && waits.push(detail) }));
  });
  assert.equal(waits.length, 15);
  const within = (at, least, most) => assert.ok(waits[at].in >= least && waits[at].in <= most, `${at}: ${waits[at].in}`);
  within(0, 3000, 3750);
  within(1, 3000, 6000);
  within(2, 6000, 12000);
  within(3, 12000, 24000);
  for (let at = 4; at < 13; at++) within(at, 15000, 30000);
  within(13, 3000, 3750);
  within(14, 3000, 6000);
  assert.equal(waits[0].error.message, "no network");
  assert.ok(new Set(waits.map((wait) => wait.in)).size > 10, "they are spread");
});

for (const status of [408, 425, 429, 500, 502, 503]) {
  scenario(`status ${status} is tried again, not before Retry-After`, async () => {
    const waits = [];
    const script = [new Response(null, { status, headers: { "retry-after": "20" } }), new Response(null, { status }), new Response(null, { status: 204 })];
    await withoutWaiting(async () => {
      const fetch = async () => script.shift();
      for await (const _ of subscribe(ANYWHERE, { fetch, onStatus: (what, detail) => what === "waiting" && waits.push(detail.in) }));
    });
    assert.ok(waits[0] >= 20_000 && waits[0] <= 25_000, waits);
    assert.ok(waits[1] <= 6000, waits);
  });
}

scenario("204 is the end, and so is an end event, whose data is kept", async () => {
  const last = { reason: "done", result: { n: 1 } };
  const server = await serve(refuse(204), open(event("end", last, "e-9") + event("", "no more")));
  const first = follow(server.url);
  assert.equal(await first.status("ended"), undefined);
  const second = follow(server.url);
  assert.deepEqual(await second.status("ended"), last);
  assert.deepEqual([second.stream.end, second.stream.status, second.stream.lastEventId], [last, "ended", "e-9"]);
  assert.deepEqual(second.events(), []);
});

for (const status of [400, 401, 403, 404, 410, 422]) {
  scenario(`status ${status} is final, and the problem is told`, async () => {
    const problem = { status, title: "No", detail: "not for you" };
    const server = await serve(refuse(status, problem));
    const seen = follow(server.url, { token: "t" });
    await assert.rejects(async () => {
      for await (const _ of seen.stream);
    }, { message: `status ${status} not for you`, status, problem });
    const told = await seen.status("failed");
    assert.deepEqual([told.status, told.problem], [status, problem]);
    assert.equal(server.requests.length, 1);
    });
}

scenario("an answer that is no event stream is final", async () => {
  const server = await serve((response) => response.writeHead(200, { "content-type": "text/html" }).end("<p>"));
  const { error } = await follow(server.url).status("failed");
  assert.match(error.message, /no event stream, but text\/html/);
});

// --- tokens ---

scenario("a token is asked for before each attempt, and once more when it is refused", async () => {
  const server = await serve(refuse(401), ended(event("", 1)), refuse(401), refuse(401, { title: "Unauthorized" }));
  let count = 0;
  const { status } = await follow(server.url, { token: async () => `t${++count}` }).status("failed");
  assert.equal(status, 401);
  assert.deepEqual(server.requests.map(({ headers }) => headers.authorization), ["Bearer t1", "Bearer t2", "Bearer t3", "Bearer t4"]);
});

scenario("a stream that ends because its token has expired goes on with a new one where it stopped", async () => {
  const server = await serve(
    open(event("", 1, "e-1") + event("expiring", { in: 60 }) + event("end", { reason: "expired" })),
    open(event("", 2, "e-2") + event("end", { reason: "done" }, "e-3")),
  );
  let count = 0;
  const { status, told } = follow(server.url, { token: () => `t${++count}` });
  assert.deepEqual(await status("ended"), { reason: "done" });
  assert.deepEqual(server.requests.map(({ headers }) => headers.authorization), ["Bearer t1", "Bearer t2"]);
  assert.deepEqual(server.requests.map(({ headers }) => headers["last-event-id"]), [undefined, "e-1"]);
  assert.deepEqual(told.filter(({ state }) => state).map(({ state }) => state), [1, 2]);
});

scenario("without a token that can be had anew an expired one ends the subscription, and so does one that was revoked", async () => {
  for (const [reason, token] of [["expired", "t"], ["revoked", () => "t"]]) {
    const server = await serve(open(event("", 1, "e-1") + event("end", { reason })));
    assert.deepEqual(await follow(server.url, { token }).status("ended"), { reason });
    assert.equal(server.requests.length, 1);
  }
});

scenario("a token that cannot be had now is asked for again", async () => {
  const server = await serve(open(event("", 1)));
  let count = 0;
  const token = () => (count++ ? "t" : Promise.reject(new Error("offline")));
  await withoutWaiting(async () => {
    const { stream, status, until } = follow(server.url, { token });
    assert.equal((await status("waiting")).error.message, "offline");
    await until((line) => line.event);
    stream.close();
  });
});

// --- streams that begin with a POST ---

scenario("a stream begun by POST is resumed by its name and never posted again", async () => {
  const server = await serve(
    broken(event("", 1, "e-1"), { "ssegate-stream": "/chat/s/7f3a" }),
    ended(event("", 2, "e-2"), { "ssegate-stream": "/chat/s/7f3a" }),
    ended(event("", 3, "e-3") + event("end", { reason: "done" }, "e-4")),
  );
  const found = [];
  const options = { body: '{"q":1}', headers: { "content-type": "application/json", "x-a": "b" }, token: "t" };
  for await (const { data } of subscribe(`${server.url}/chat?x=1`, options)) found.push(data);
  assert.deepEqual(found, [1, 2, 3]);
  const asked = server.requests.map(({ method, url, body, headers }) => [method, url, body, headers["last-event-id"], headers.authorization, headers["x-a"]]);
  assert.deepEqual(asked, [
    ["POST", "/chat?x=1", '{"q":1}', undefined, "Bearer t", "b"],
    ["GET", "/chat/s/7f3a", "", "e-1", "Bearer t", "b"],
    ["GET", "/chat/s/7f3a", "", "e-2", "Bearer t", "b"],
  ]);
});

scenario("a stream whose name is no longer known is lost", async () => {
  const server = await serve(broken(event("", 1, "e-1"), { "ssegate-stream": "/s/1" }), refuse(404));
  const { status, error } = await follow(server.url, { method: "POST" }).status("failed");
  assert.equal(status, 404);
  assert.match(error.message, /the stream is lost/);
  assert.equal(server.requests.length, 2);
});

for (const [what, answer, wanted] of [
  ["breaks before its answer", drop, /may have had its effect/],
  ["breaks and has no name", broken(event("", 1, "e-1")), /the stream is lost/],
  ["ends without a word and has no name", ended(""), /the stream is lost/],
  ["is named at another origin and breaks", broken(event("", 1), { "ssegate-stream": "//127.0.0.1:1/s" }), /the stream is lost/],
  ["is named by what is no name", ended("", { "ssegate-stream": "http://[" }), /the stream is lost/],
  ["is answered by 500", refuse(500), /status 500/],
]) {
  scenario(`a POST that ${what} is not sent again`, async () => {
    const server = await serve(answer);
    const { error } = await follow(server.url, { body: "x" }).status("failed");
      assert.match(error.message, wanted);
    assert.equal(server.requests.length, 1);
  });
}

scenario("a POST that was turned away by 503 is sent again, and without a name its clean end is the end", async () => {
  const server = await serve(refuse(503), ended(event("", 1)));
  const found = [];
  await withoutWaiting(async () => {
    for await (const { data } of subscribe(server.url, { body: "x" })) found.push(data);
  });
  assert.deepEqual(found, [1]);
  assert.deepEqual(server.requests.map(({ method, body }) => [method, body]), [["POST", "x"], ["POST", "x"]]);
});

// --- loops, and closing ---

scenario("leaving the loop closes the connection", async () => {
  const server = await serve(open(event("", 1)));
  const stream = subscribe(server.url);
  for await (const _ of stream) break;
  assert.equal(stream.status, "closed");
  await once(server.requests[0].response, "close");
});

scenario("a loop ends when the stream is closed from outside, while it waits too", async () => {
  const server = await serve(ended("retry: 100000\n" + event("", 1)));
  const abort = new AbortController();
  const stream = subscribe(server.url, { signal: abort.signal, onStatus: (status) => status === "waiting" && abort.abort() });
  for await (const _ of stream);
  assert.equal(stream.status, "closed");
});

scenario("closed at once, it asks for nothing", async () => {
  const fetch = () => assert.fail("it asked");
  subscribe(ANYWHERE, { fetch }).close();
  const stream = subscribe(ANYWHERE, { fetch, signal: AbortSignal.abort() });
  for await (const _ of stream);
  assert.equal(stream.status, "closed");
});

scenario("a loop that is slow slows the stream, and misses nothing", async () => {
  let made = 0;
  const body = new ReadableStream({
    pull(controller) {
      if (++made <= 1000) controller.enqueue(bytes(event("", made)));
      else controller.enqueue(bytes(event("end", {})));
    },
  });
  const found = [];
  let most = 0;
  for await (const { data } of subscribe(ANYWHERE, { fetch: async () => new Response(body, { headers: HEAD }) })) {
    found.push(data);
    await new Promise(setImmediate);
    most = Math.max(most, made - data);
  }
  assert.deepEqual(found, Array.from({ length: 1000 }, (_, at) => at + 1));
  assert.ok(most < 100, `${most} were waiting`);
});

scenario("what a callback throws breaks no stream, and is not hidden", async () => {
  const server = await serve(open(event("", 1) + event("", 2)));
  const uncaught = once(process, "unhandledRejection");
  const found = [];
  const onEvent = ({ data }) => {
    found.push(data);
    if (data === 1) throw new Error("mine");
    stream.close();
  };
  const stream = subscribe(server.url, { onEvent });
  for await (const _ of stream);
  assert.equal((await uncaught)[0].message, "mine");
  assert.deepEqual([found, server.requests.length], [[1, 2], 1]);
});

scenario("what can never be asked for is told at once", () => {
  assert.throws(() => subscribe("http://["), TypeError);
  assert.throws(() => subscribe("/relative"), TypeError);
  assert.throws(() => subscribe(ANYWHERE, { headers: { "no name": "x" } }), TypeError);
});

for (const [sentence, run] of scenarios) {
  let timer;
  const late = new Promise((_, reject) => {
    timer = setTimeout(() => reject(new Error("it did not come to it")), 5000);
  });
  const start = Date.now();
  const error = await Promise.race([(async () => run())(), late]).then(() => null, (error) => error.stack);
  clearTimeout(timer);
  for (const server of servers.splice(0)) {
    server.close();
    server.closeAllConnections();
  }
  report({ sentence, error, ms: Date.now() - start });
}
report({ count: scenarios.length });
