// Clients that ask again with `Last-Event-ID` by themselves: resuming.mjs LIBRARY URL {"method", "headers", "body"}
// Each says `over` when it will never ask again.
import { createEventSource } from "eventsource-client";
import { EventSource } from "eventsource";
import { follow, report } from "./report.mjs";

const [library, url, options] = process.argv.slice(2);
const { method, headers, body } = JSON.parse(options ?? "{}");

const libraries = {
  // npm `eventsource`: whatever is no GET without headers goes through its own `fetch` option.
  eventsource() {
    const source = new EventSource(url, {
      fetch: (input, init) => fetch(input, { ...init, method, body, headers: { ...init.headers, ...headers } }),
    });
    follow(source);
    source.addEventListener("error", () => source.readyState === EventSource.CLOSED && report({ over: true }));
  },

  "eventsource-client"() {
    const client = createEventSource({
      url,
      method,
      headers,
      body,
      onConnect: () => report({ open: true }),
      onMessage: ({ event, id, data }) => report({ type: event ?? "message", id, data }),
      onDisconnect: () => setImmediate(() => client.readyState === "closed" && report({ over: true })),
    });
  },

  // npm `@microsoft/fetch-event-source`: made for browsers, of which it wants no more than these two names. It has to be told
  // what an end is, and that 204 is one for good.
  async "fetch-event-source"() {
    globalThis.window = globalThis;
    globalThis.document = { hidden: false, addEventListener() {}, removeEventListener() {} };
    const { default: library } = await import("@microsoft/fetch-event-source");
    const over = new AbortController();
    await library.fetchEventSource(url, {
      method,
      headers,
      body,
      signal: over.signal,
      openWhenHidden: true,
      async onopen({ status }) {
        if (status === 204) return over.abort();
        if (status !== 200) throw new Error(`status ${status}`);
        report({ open: true });
      },
      onmessage: ({ event, id, data }) => report({ type: event || "message", id, data }),
      onclose() {
        throw new Error("the stream ended");
      },
      onerror: (error) => report({ error: String(error) }),
    });
    report({ over: true });
  },
};

await libraries[library]();
