/** What the stream says of itself. `reset` is told, but is no status that lasts. */
export type Status = "connecting" | "open" | "waiting" | "fault" | "ended" | "failed" | "closed";

export interface StreamEvent<Data = unknown> {
  /** `message` when the event has no name. */
  type: string;
  /** The data, read as JSON where it is JSON; else the text. */
  data: Data;
  /** The data as it came. */
  text: string;
  /** The cursor behind this event; empty if the stream gives none. */
  id: string;
}

/** An answer's `application/problem+json` (RFC 9457). */
export interface Problem {
  status?: number;
  title?: string;
  detail?: string;
  [member: string]: unknown;
}

/** Why a subscription failed for good; `status` is missing where no answer said so. */
export interface SubscriptionError extends Error {
  status?: number;
  problem?: Problem;
}

/** The detail that comes with each status. */
export interface StatusDetails {
  connecting: undefined;
  open: undefined;
  /** `in` is in milliseconds; `error` is what broke the connection, if it did not end cleanly. */
  waiting: { in: number; error?: Error };
  /** The gate has trouble with the API behind it; the stream stays, and `open` tells that it is over. */
  fault: { reason: string; status: number | null; message: string };
  /** The state is discarded, a new one follows. `misfit`: a change did not fit the state that is here. */
  reset: { reason: "gap" | "unknown-cursor" | "misfit" | (string & {}); message?: string };
  /** Over for good; undefined where the gate did not say why. */
  ended: End | undefined;
  /** Over for good, by an error. */
  failed: { status?: number; problem?: Problem; error: SubscriptionError };
  closed: undefined;
}

export interface End {
  reason: string;
  result?: unknown;
  [member: string]: unknown;
}

export type StatusListener = <Name extends keyof StatusDetails>(status: Name, detail: StatusDetails[Name]) => void;

export interface Options<State = any, Data = any> {
  /**
   * Sent as `Authorization: Bearer`. A function is called before each attempt; after a 401 it is called once more, and when the
   * stream has ended because the token had expired, which then goes on with the new one where it stopped.
   */
  token?: string | null | (() => string | null | undefined | Promise<string | null | undefined>);
  /** Called after each change. Only what a change touches is a new object; the rest stays the same one. */
  onState?: (state: State, event: StreamEvent) => void;
  /** Called for each event that is none of the gate's own (`reset`, `fault`, `recovered`, `end`), after `onState`; also for `expiring`. */
  onEvent?: (event: StreamEvent<Data>) => void;
  onStatus?: StatusListener;
  /** `GET`, or `POST` if there is a body. What is neither GET nor HEAD is never sent again once an answer has begun. */
  method?: string;
  body?: BodyInit | null;
  headers?: HeadersInit;
  credentials?: RequestCredentials;
  /** Closes the subscription. */
  signal?: AbortSignal;
  /** Where to begin: the `lastEventId` of another subscription, or `earliest`. */
  lastEventId?: string;
  /** Milliseconds without a byte after which a connection is taken for dead: 45000, three of the gate's heartbeats. */
  timeout?: number;
  /** What tells the entries of a list apart: a path like `items.key` of the route, `id` if not given, or a function. */
  key?: string | ((item: any) => unknown);
  /** Used in place of the global one. */
  fetch?: typeof fetch;
}

/**
 * In a `for await` loop it gives its events from when the loop began, ends when the stream has ended for good or was closed,
 * and throws a `SubscriptionError` when it failed for good. Leaving the loop closes it. A slow loop slows the stream: a few
 * events wait for it, the others stay in the network and at the gate.
 */
export interface Subscription<State = any, Data = any> extends AsyncIterable<StreamEvent<Data>> {
  close(): void;
  /** Undefined until the first snapshot. */
  readonly state: State | undefined;
  readonly status: Status;
  /** The cursor; empty before the first. */
  readonly lastEventId: string;
  /** The data of the `end`, once it came. */
  readonly end: End | undefined;
}

/**
 * Follow an event stream until it ends for good. Callbacks begin after this has returned.
 *
 * @throws TypeError when the URL or the headers cannot be.
 */
export function subscribe<State = any, Data = any>(
  url: string | URL,
  options?: Options<State, Data>,
): Subscription<State, Data>;
