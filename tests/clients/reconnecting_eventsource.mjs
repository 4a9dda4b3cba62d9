// npm `reconnecting-eventsource`, which goes on where an EventSource gives up, with the cursor in the query.
// It takes note of the cursor for types that were asked for by `addEventListener` only.
import { EventSource } from "eventsource";
import ReconnectingEventSource from "reconnecting-eventsource";
import { follow, argument as url } from "./report.mjs";

// Published as CommonJS, it comes wrapped or bare, as the runtime likes.
const Reconnecting = ReconnectingEventSource.default ?? ReconnectingEventSource;
follow(new Reconnecting(url, { eventSourceClass: EventSource, max_retry_time: 150 }));
