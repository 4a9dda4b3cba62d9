// What every client here says on standard output: one JSON object per line. It leaves when its input ends.

export function report(line) {
  process.stdout.write(JSON.stringify(line) + "\n");
}

// The names an event of the gate may have; `message` is the unnamed one.
export const TYPES = ["message", "snapshot", "patch", "added", "changed", "removed", "reset", "fault", "recovered", "end"];

export function reportEvent(event) {
  report({ type: event.type, id: event.lastEventId, data: event.data });
}

export function follow(source) {
  for (const type of TYPES) source.addEventListener(type, reportEvent);
  source.onopen = () => report({ open: true });
  source.onerror = () => report({ error: true, closed: source.readyState === 2 });
}

export const argument = process.argv[2];

process.stdin.resume();
process.stdin.on("end", () => process.exit(0));
