// Follows an event stream of ssegate. How to use it is said in client.d.ts.

const MOST_UNREAD = 64; // events; then no more are read

export function subscribe(url, options = {}) {
  const { token, body, key = "id", timeout = 45_000, fetch = globalThis.fetch, signal: closing } = options;
  const { document, location } = globalThis;
  const method = options.method ?? (body == null ? "GET" : "POST");
  const address = new URL(url, document?.baseURI ?? location?.href);
  const given = new Headers(options.headers);
  const renews = typeof token === "function";
  const keyOf = key.call ? key : (item) => key.split(".").reduce((value, name) => value?.[name], item);

  let name; // where this very stream is resumed
  let retry = 3000;
  let failures = 0; // waits since the last byte
  let again; // ms until the next connection at least; undefined is the usual wait
  let isOver, failure;
  let isSecondTry; // after a 401
  let isStateRoute; // it sent a snapshot
  let isResumed; // this connection began behind a cursor
  let isDoubtful; // no change fitted since one did not
  let connection, timer, wake;
  let heard = Infinity; // when the last byte came, while connected
  let queue; // once somebody iterates
  const waiting = [];

  const me = { status: "connecting", state: undefined, end: undefined, lastEventId: options.lastEventId ?? "", close };
  me[Symbol.asyncIterator] = () => {
    queue ??= [];
    return events();
  };

  // Errors in callbacks are left uncaught.
  function call(callback, ...what) {
    try {
      callback?.(...what);
    } catch (error) {
      Promise.reject(error);
    }
  }

  function report(status, detail) {
    if (status !== "reset") me.status = status;
    call(options.onStatus, status, detail);
  }

  function listen(verb) {
    for (const type of ["online", "pageshow"]) globalThis[verb]?.(type, hurry);
    document?.[verb]("visibilitychange", hurry);
    closing?.[verb]("abort", close);
  }

  function finish(status, detail) {
    if (isOver) return;
    isOver = true;
    clearTimeout(timer);
    connection?.abort();
    listen("removeEventListener");
    report(status, detail);
    stir();
  }

  function fail(message, status, problem) {
    failure = Object.assign(new Error(message), { status, problem });
    finish("failed", { status, problem, error: failure });
  }

  function close() {
    queue?.splice(0);
    finish("closed");
  }

  const stirred = () => new Promise((resolve) => waiting.push(resolve));
  const stir = () => waiting.splice(0).forEach((resolve) => resolve());

  async function* events() {
    try {
      for (;;) {
        while (queue.length) {
          stir();
          yield queue.shift();
        }
        if (failure) throw failure;
        if (isOver) return;
        await stirred();
      }
    } finally {
      close();
    }
  }

  function receive(type, text) {
    let data = text;
    try {
      data = JSON.parse(text);
    } catch {}
    if (type === "end" && renews && data?.reason === "expired") giveUp();
    else if (type === "end") finish("ended", (me.end = data));
    else if (type === "fault") report("fault", data);
    else if (type === "recovered") report("open");
    else if (type === "reset") {
      me.state = undefined;
      isResumed = false;
      report("reset", data);
    } else {
      const event = { type, data, text, id: me.lastEventId };
      if (!keepUp(event)) return;
      call(options.onEvent, event);
      queue?.push(event);
      stir();
    }
  }

  // Returns whether there is something to tell.
  function keepUp(event) {
    const { type, data } = event;
    const change = Object.hasOwn(CHANGES, type) && CHANGES[type];
    const isWhole = type === "message" || type === "snapshot";
    if (!change && !isWhole) return true;
    isStateRoute ||= type === "snapshot";
    try {
      if (change && me.state === undefined) misfit("there is no snapshot");
      me.state = isWhole ? data : change(me.state, data, keyOf);
    } catch ({ message }) {
      // On an event route such a name means anything; on a state route newcomers have a snapshot.
      if (!isStateRoute && !(options.onState && (isResumed || me.state !== undefined))) return true;
      again = isDoubtful ? undefined : 0;
      isDoubtful = true;
      me.state = undefined;
      me.lastEventId = "";
      report("reset", { reason: "misfit", message });
      connection.abort();
      return false;
    }
    isDoubtful &&= isWhole;
    call(options.onState, me.state, event);
    return !isOver;
  }

  function watch() {
    clearTimeout(timer);
    heard = Date.now();
    timer = setTimeout(giveUp, timeout);
  }

  function rest() {
    clearTimeout(timer);
    heard = Infinity;
  }

  function giveUp() {
    again = failures ? undefined : 0;
    connection.abort();
  }

  async function connect() {
    const { signal } = connection;
    const isFirst = !name;
    const mayAct = isFirst && !/^(GET|HEAD)$/i.test(method);
    const secret = renews ? await token() : token;
    if (isOver) return;
    const headers = new Headers(given);
    headers.set("accept", "text/event-stream");
    if (secret) headers.set("authorization", `Bearer ${secret}`);
    const cursor = new TextEncoder().encode(me.lastEventId); // as headers are bytes
    if (cursor.length) headers.set("last-event-id", String.fromCharCode(...cursor));

    watch();
    const request = { headers, signal, cache: "no-store", credentials: options.credentials };
    let answer;
    try {
      answer = await fetch((name ?? address).href, isFirst ? { ...request, method, body } : request);
    } catch (error) {
      if (mayAct) fail(`${method} broke off before its answer; it may have had its effect`);
      throw error;
    }
    if (isOver) return;
    const { status } = answer;
    if (status === 204) return finish("ended", me.end);
    if (status !== 200) return refused(answer, mayAct);
    const type = answer.headers.get("content-type");
    if (!/^text\/event-stream *(;|$)/i.test(type)) return fail(`the answer is no event stream, but ${type}`, status);
    isSecondTry = false;
    isResumed = me.lastEventId !== "";
    report("open");

    let count = 0;
    let error;
    try {
      const path = answer.headers.get("ssegate-stream");
      const found = path && new URL(path, answer.url || address);
      if (found?.origin === address.origin) name = found; // no other origin gets our headers
      count = await read(answer.body.getReader(), signal);
    } catch (broken) {
      error = broken;
    }
    // What may act is not sent twice.
    if (mayAct && !name) count ? finish("ended") : fail("the stream is lost: it has no name");
    if (error) throw error;
  }

  // Returns how many events came, if the end was clean.
  async function read(reader, signal) {
    signal.addEventListener("abort", () => reader.cancel().catch(() => {})); // not every `fetch` does
    const decoder = new TextDecoder();
    const parse = makeParser();
    let count = 0;
    while (!signal.aborted) {
      watch();
      const { done, value } = await reader.read();
      if (signal.aborted) break;
      if (done) return count;
      if (value.length) failures = 0;
      for (const { id, ms, type, text } of parse(decoder.decode(value, { stream: true }))) {
        me.lastEventId = id ?? me.lastEventId;
        retry = ms ?? retry;
        if (!type) continue;
        count++;
        receive(type, text);
        if (signal.aborted) return 0;
      }
      while (queue?.length > MOST_UNREAD) {
        rest(); // it is we who are slow
        await stirred();
      }
    }
    return 0;
  }

  async function refused(answer, mayAct) {
    const { status } = answer;
    if (status === 401 && renews && !isSecondTry) {
      isSecondTry = true;
      return void (again = 0);
    }
    if ([408, 425, 429, 503].includes(status) || (status >= 500 && !mayAct)) {
      again = Math.max(0, answer.headers.get("retry-after") * 1000) || undefined;
      throw new Error(`status ${status}`);
    }
    let problem;
    try {
      problem = JSON.parse(await answer.text());
    } catch {}
    const lost = name && status === 404 ? "the stream is lost: " : "";
    fail(`${lost}status ${status} ${problem?.detail ?? problem?.title ?? ""}`.trim(), status, problem);
  }

  async function run() {
    await null; // the caller goes first
    while (!isOver) {
      again = undefined;
      connection = new AbortController();
      report("connecting");
      let error;
      try {
        if (!isOver) await connect();
      } catch (caught) {
        error = caught;
      }
      rest();
      connection.abort();
      if (!isOver && again !== 0) await pause(error);
    }
  }

  async function pause(error) {
    const usual = failures && Math.min(30_000, Math.max(retry, 250) * 2 ** failures) * (1 - Math.random() / 2);
    const least = Math.max(retry, again ?? 0) * (1 + Math.random() / 4);
    const ms = Math.min(Math.max(least, usual), 2 ** 31 - 1); // a longer timer fires at once
    failures++;
    report("waiting", { in: ms, error });
    if (isOver) return;
    await new Promise((resolve) => {
      timer = setTimeout(resolve, ms);
      wake = () => again || resolve((failures = 0)); // Retry-After holds
    });
    wake = undefined;
  }

  // Somebody is back; timers may have slept.
  function hurry() {
    if (document?.visibilityState === "hidden") return;
    wake?.();
    if (Date.now() - heard > timeout) giveUp();
  }

  listen("addEventListener");
  if (closing?.aborted) close();
  run();
  return me;
}

// WHATWG HTML, 9.2.6; the text may be cut anywhere.
function makeParser() {
  let rest = "";
  let isAfterCr; // then an LF belongs to it
  let type = "";
  let data = [];
  let id;
  return function* (text) {
    if (!text) return;
    if (isAfterCr && text[0] === "\n") text = text.slice(1);
    isAfterCr = text.endsWith("\r");
    const lines = text.split(/\r\n|\r|\n/);
    lines[0] = rest + lines[0];
    rest = lines.pop();
    for (const line of lines) {
      const [, field, value] = /^([^:]*):? ?(.*)$/s.exec(line);
      if (!line) {
        yield { id, type: data.length && (type || "message"), text: data.join("\n") };
        type = "";
        data = [];
        id = undefined;
      } else if (field === "data") data.push(value);
      else if (field === "event") type = value;
      else if (field === "id" && !value.includes("\0")) id = value;
      else if (field === "retry" && /^[0-9]+$/.test(value)) yield { ms: +value };
    }
  };
}

// Each returns a new state; what it does not touch stays the same object.
const CHANGES = { patch, merge, added: item("add"), changed: item("replace"), removed: item("remove") };

function misfit(what) {
  throw new Error(what);
}

function item(op) {
  return (list, one, keyOf) => {
    if (!Array.isArray(list)) misfit("there is no list");
    const key = keyOf(one) ?? misfit("there is no key");
    return edit(list, [op === "add" ? "-" : `${list.findIndex((other) => keyOf(other) === key)}`], op, one);
  };
}

// RFC 7396
function merge(target, change) {
  if (!isObject(change)) return change;
  const members = new Map(isObject(target) ? Object.entries(target) : []);
  for (const [name, value] of Object.entries(change)) {
    if (value === null) members.delete(name);
    else members.set(name, merge(members.get(name), value));
  }
  return Object.fromEntries(members);
}

// RFC 6902
function patch(state, operations) {
  let root = { "": state }; // the whole state has a place too
  for (let { op, path, from, value } of operations) {
    const to = pointer(path);
    if (op === "test") {
      if (sorted(to.reduce(member, root)) !== sorted(value)) misfit(`${path} differs`);
      continue;
    }
    if (op === "move" || op === "copy") {
      const source = pointer(from);
      value = source.reduce(member, root);
      if (path.startsWith(`${from}/`) && op === "move") misfit(`${from} is moved into itself`);
      if (op === "move") root = edit(root, source, "remove");
      op = "add";
    }
    if (op !== "remove" && value === undefined) misfit(`there is no value`);
    root = edit(root, to, op, value);
  }
  return member(root, "");
}

// Copies what is on the way to a place.
function edit(node, [name, ...more], op, value) {
  if (more.length) return edit(node, [name], "replace", edit(member(node, name), more, op, value));
  const gone = { add: 0, replace: 1, remove: 1 }[op] ?? misfit(`there is no ${op}`);
  const isList = Array.isArray(node);
  if (!isList && !isObject(node)) misfit(`there is no ${name}`);
  if (isList && name === "-") name = `${node.length}`;
  if (gone || (isList && name !== `${node.length}`)) member(node, name);
  const copy = isList ? [...node] : { ...node, [name]: value };
  if (isList) copy.splice(name, gone, ...(op === "remove" ? [] : [value]));
  else if (op === "remove") delete copy[name];
  return copy;
}

function member(node, name) {
  // Own members, but not `length`.
  if (typeof node !== "object" || !{}.propertyIsEnumerable.call(node, name)) misfit(`there is no ${name}`);
  return node[name];
}

// RFC 6901
function pointer(text) {
  if ((text && text[0] !== "/") || /~(?![01])/.test(text)) misfit(`${text} is no pointer`);
  return text.split("/").map((name) => name.replaceAll("~1", "/").replaceAll("~0", "~"));
}

function isObject(value) {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

// Members come in any order.
function sorted(value) {
  const sort = (_, one) => (isObject(one) ? Object.fromEntries(Object.entries(one).sort(([a], [b]) => (a < b ? -1 : 1))) : one);
  return JSON.stringify(value, sort);
}
