// npm `json-server` with the records that its first argument has, on a port of the system's choice.
import jsonServer from "json-server";
import { report, argument as records } from "./report.mjs";

const server = jsonServer.create();
server.use(jsonServer.defaults({ logger: false }));
server.use(jsonServer.router(JSON.parse(records)));
const listener = server.listen(0, "127.0.0.1", () => report({ port: listener.address().port }));
