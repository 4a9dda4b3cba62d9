// npm `event-source-polyfill` on fetch: the cursor travels in the query.
import polyfill from "event-source-polyfill";
import { follow, argument as url } from "./report.mjs";

follow(new polyfill.EventSourcePolyfill(url));
