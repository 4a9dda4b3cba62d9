// Chromium by `playwright-core`, led by lines of JSON: each has an `op` and is answered by one line, {value} or {error}.
import { createInterface } from "node:readline";
import { setTimeout } from "node:timers/promises";
import { chromium } from "playwright-core";

const [executablePath] = process.argv.slice(2);
const TIMEOUT = 15_000;

const browser = await chromium.launch({
  executablePath,
  headless: true,
  timeout: TIMEOUT,
  args: [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
  ],
});
const pages = new Map();
let context = null;

// By the developer tools' protocol: playwright's own `evaluate` is `eval` in the page, which a page may forbid.
async function evaluate(page, expression) {
  const tools = await context.newCDPSession(pages.get(page));
  try {
    const settings = { awaitPromise: true, returnByValue: true };
    const { result, exceptionDetails } = await tools.send("Runtime.evaluate", { expression, ...settings });
    if (exceptionDetails) throw new Error(exceptionDetails.exception?.description ?? exceptionDetails.text);
    return result.value;
  } finally {
    await tools.detach();
  }
}

const ops = {
  // Forgets all pages, cookies and connections.
  async reset() {
    pages.clear();
    await context?.close();
    context = await browser.newContext({ ignoreHTTPSErrors: true });
    context.setDefaultTimeout(TIMEOUT);
  },
  async open({ page, url }) {
    if (!pages.has(page)) pages.set(page, await context.newPage());
    await pages.get(page).goto(url, { waitUntil: "domcontentloaded" });
  },
  async evaluate({ page, script }) {
    return evaluate(page, script);
  },
  // Waits until an expression is true.
  async wait({ page, script }) {
    const end = Date.now() + TIMEOUT;
    while (!(await evaluate(page, script))) {
      if (Date.now() > end) throw new Error("it did not come true");
      await setTimeout(20);
    }
  },
  // Takes the network away from all pages, and gives it back.
  async offline({ offline }) {
    await context.setOffline(offline);
  },
  async click({ page, selector }) {
    await pages.get(page).click(selector);
  },
  async texts({ page, selector }) {
    return pages.get(page).locator(selector).allInnerTexts();
  },
};

function answer(line) {
  process.stdout.write(JSON.stringify(line) + "\n");
}

answer({ value: browser.version() });
for await (const line of createInterface({ input: process.stdin })) {
  const { op, ...what } = JSON.parse(line);
  try {
    answer({ value: (await ops[op](what)) ?? null });
  } catch (error) {
    answer({ error: `${op} ${JSON.stringify(what)}: ${error.message}` });
  }
}
await browser.close();
