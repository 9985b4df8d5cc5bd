// A request for pictures, answered by server-sent events.

/** The events of one request, as they come. Throws an Error with what the service said. */
export async function* events(fields, key, signal) {
  const headers = {"Content-Type": "application/json"};
  if (key) headers.Authorization = `Bearer ${key}`;
  const body = JSON.stringify({...fields, stream: true, partial_images: 100, timeline: true});
  const answer = await fetch("v1/images/generations", {method: "POST", headers, body, signal});
  if (!answer.ok) throw await reason(answer);
  const reader = answer.body.getReader(), decoder = new TextDecoder();
  let begun = [], last = ""; // what has come of an event, and its last character
  for (;;) {
    const {done, value} = await reader.read();
    // Only what is new is looked at: a large picture comes in thousands of pieces.
    const text = last + decoder.decode(value ?? new Uint8Array(), {stream: !done});
    const parts = text.split("\n\n");
    const rest = parts.pop();
    if (parts.length) {
      parts[0] = begun.join("") + parts[0];
      begun = [];
    }
    begun.push(rest.slice(0, -1));
    last = rest.slice(-1);
    for (const part of parts) {
      const data = part.split("\n").filter(line => line.startsWith("data: ")).map(line => line.slice(6)).join("\n");
      if (!data) continue; // a comment, so that the connection stays open
      const event = JSON.parse(data);
      if (event.type === "error") throw told(event.error, "");
      yield event;
    }
    if (done) return;
  }
}

/** What an answer says went wrong, as an Error; `param` is the field at fault, where it is one. */
export async function reason(answer) {
  try {
    const {error} = await answer.json();
    const wait = answer.headers.get("Retry-After");
    return told(error, wait && answer.status === 429 ? ` (again in ${wait} s)` : "");
  } catch {
    return new Error(`the service answered ${answer.status}`);
  }
}

function told(error, more) {
  return Object.assign(new Error(error.message + more), {param: error.param});
}
