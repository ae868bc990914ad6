/* The API of this server: OpenAI's, with server-sent events. */

/** A request that failed. `kind` is the key of its words; `message` is what the server said. */
class ApiError extends Error {
  constructor(kind, message, facts = {}) {
    super(message);
    this.kind = kind;
    Object.assign(this, facts);
  }
}

const KINDS = { 400: "error_400", 401: "error_401", 403: "error_403", 404: "error_404", 408: "error_408", 413: "error_413",
  422: "error_400", 429: "error_429", 500: "error_500", 503: "error_503", 504: "error_408" };

let key = kept.get(forThisTab, "key") || "";

/** Sends a request and returns the response if its status is a good one. Paths are relative to the page, so that it can
    be below a path of a proxy. */
async function call(path, body, signal) {
  const headers = { ...(body && { "Content-Type": "application/json" }), ...(key && { Authorization: `Bearer ${key}` }) };
  let response;
  try {
    response = await fetch(path, { method: body ? "POST" : "GET", headers, body: body && JSON.stringify(body), signal,
      cache: "no-store" });
  } catch (error) {
    if (signal?.aborted) throw error;
    throw new ApiError("error_network", String(error.message));
  }
  if (response.ok) return response;
  let said = {};
  try { said = (await response.json()).error || {}; } catch { /* not from this server: a proxy's page, say */ }
  throw new ApiError(KINDS[response.status] || "error_other", said.message || response.statusText,
    { status: response.status, param: said.param, wait: Number(response.headers.get("Retry-After")) || null });
}

/** The objects of a stream of server-sent events; an error event is thrown, and so is an end without [DONE]. */
async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    let piece;
    try { piece = await reader.read(); } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new ApiError("error_broken", String(error.message));
    }
    if (piece.done) throw new ApiError("error_broken", "");
    rest += piece.value;
    const lines = rest.split(/\r?\n/);
    rest = lines.pop();
    for (const line of lines) {
      if (!line.startsWith("data:")) continue;
      const data = line.slice(5).trim();
      if (data === "[DONE]") return;
      const event = JSON.parse(data);
      if (event.error) throw new ApiError("error_stream", event.error.message || "", { param: event.error.param });
      yield event;
    }
  }
}

/** The request again, for a terminal: a key is left out. */
function asCurl(path, body) {
  const quoted = JSON.stringify(body, null, 1).replaceAll("'", "'\\''");
  const auth = key ? ' \\\n  -H "Authorization: Bearer $FOUNDRY_API_KEY"' : "";
  return `curl ${new URL(path, location.href)} \\\n  -H 'Content-Type: application/json'${auth} \\\n  -d '${quoted}'\n`;
}
