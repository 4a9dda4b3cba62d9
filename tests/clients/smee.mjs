// npm `smee-client`: takes deliveries out of a stream and posts them to a server on this machine
import { SmeeClient } from "smee-client";
import { argument as source, report } from "./report.mjs";

const logger = {
  info: (...words) => report({ info: words.join(" ") }),
  error: (...words) => report({ error: words.join(" ") }),
};
const client = new SmeeClient({ source, target: process.argv[3], logger });
await client.start();
report({ open: true });
