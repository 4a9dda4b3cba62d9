// npm `oidc-provider` on a port of the system's choice, for the clients that its first argument names (their secret is
// their name): access tokens that are JWTs. `resource` says how they are made: https://orders.example/?alg=ES256&ttl=5.
// Told `{"do": "rotate", "keep_old": …}` it signs by new keys from then on, and publishes the ones before too or not; told
// `{"do": "count"}` it says how often each path has been asked for.
import { generateKeyPairSync } from "node:crypto";
import { createServer } from "node:http";
import { createInterface } from "node:readline";
import { Provider } from "oidc-provider";
import { argument, report } from "./report.mjs";

console.info = console.error; // it gives notices there, and standard output is for our lines

const { clients, audience, scopes } = JSON.parse(argument);

const MADE = {
  RS256: () => generateKeyPairSync("rsa", { modulusLength: 2048 }),
  ES256: () => generateKeyPairSync("ec", { namedCurve: "P-256" }),
  EdDSA: () => generateKeyPairSync("ed25519"),
};

let generation = 0;

function makeKeys() {
  generation += 1;
  return Object.entries(MADE).map(([alg, make]) => {
    const jwk = make().privateKey.export({ format: "jwk" });
    return { ...jwk, alg, use: "sig", kid: `${alg}-${generation}` };
  });
}

function resourceServer(_, resource) {
  const wanted = new URL(resource).searchParams;
  return {
    audience,
    scope: scopes,
    accessTokenFormat: "jwt",
    accessTokenTTL: Number(wanted.get("ttl")),
    jwt: { sign: { alg: wanted.get("alg") } },
  };
}

function makeProvider(issuer, keys) {
  return new Provider(issuer, {
    clients: clients.map((name) => ({
      client_id: name,
      client_secret: name,
      grant_types: ["client_credentials"],
      response_types: [],
      redirect_uris: [],
    })),
    scopes: scopes.split(" "),
    jwks: { keys },
    features: {
      clientCredentials: { enabled: true },
      devInteractions: { enabled: false },
      resourceIndicators: { enabled: true, getResourceServerInfo: resourceServer },
    },
  });
}

const counts = {};
let answer;

const server = createServer((request, response) => {
  const path = request.url.split("?")[0];
  counts[path] = (counts[path] ?? 0) + 1;
  answer(request, response);
});

server.listen(0, "127.0.0.1", () => {
  const issuer = `http://127.0.0.1:${server.address().port}`;
  let keys = makeKeys();

  function begin(published) {
    answer = makeProvider(issuer, published).callback();
  }

  const orders = {
    // Of those that fit it signs by the first.
    rotate({ keep_old: keepOld }) {
      const made = makeKeys();
      begin(keepOld ? [...made, ...keys] : made);
      keys = made;
      return { kids: made.map((key) => key.kid) };
    },
    count: () => ({ counts }),
  };

  createInterface({ input: process.stdin }).on("line", (line) => {
    const order = JSON.parse(line);
    report(orders[order.do](order));
  });
  begin(keys);
  report({ issuer });
});
