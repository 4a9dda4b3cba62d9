// npm `eventsource`
import { EventSource } from "eventsource";
import { follow, argument as url } from "./report.mjs";

follow(new EventSource(url));
