// npm `@microsoft/fetch-event-source`: made for browsers, of which it wants no more than these two names.
import { report, argument as url } from "./report.mjs";

globalThis.window = globalThis;
globalThis.document = { hidden: false, addEventListener() {}, removeEventListener() {} };
const { default: library } = await import("@microsoft/fetch-event-source");

await library.fetchEventSource(url, {
  openWhenHidden: true,
  async onopen(response) {
    if (response.status !== 200) throw new Error(`status ${response.status}`);
    report({ open: true });
  },
  onmessage(message) {
    report({ type: message.event || "message", id: message.id, data: message.data });
  },
  onclose() {
    // For this client an end is final, unless it is told that this one is not.
    throw new Error("the stream ended");
  },
  onerror(error) {
    report({ error: String(error) });
  },
});
