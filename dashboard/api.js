// Reading the API. Of every address the last answer is kept, and asked for again by
// its ETag: one that says the same numbers costs no transfer and no work.

import { learn } from "./format.js";

const kept = new Map(); // address → {etag, answer}
const most = 64;
const patience = 15_000; // ms; the server itself gives up after 5 s

export class Refused extends Error {
  constructor(message, status) {
    super(message);
    this.status = status;
  }
}

const rounds = new WeakMap(); // signal → what was asked in its round: nothing twice

// get returns {answer, at}: while its numbers stay, the answer is the same object; at is
// when they were those of the database.
export function get(path, params, signal) {
  const q = new URLSearchParams();
  for (const [key, value] of Object.entries(params)) {
    for (const v of Array.isArray(value) ? value : [value]) if (v !== "" && v !== undefined) q.append(key, v);
  }
  const address = `api/${path}?${q}`;
  if (!rounds.has(signal)) rounds.set(signal, new Map());
  const round = rounds.get(signal);
  if (!round.has(address)) round.set(address, ask(path, address, signal));
  return round.get(address);
}

async function ask(path, address, signal) {
  const before = kept.get(address);
  let response, body;
  try {
    response = await fetch(address, { signal: AbortSignal.any([signal, AbortSignal.timeout(patience)]), cache: "no-store", headers: before ? { "If-None-Match": before.etag } : {} });
    body = response.status === 304 ? null : await response.json();
  } catch (err) {
    if (signal.aborted) throw err;
    if (!response) throw new Refused("The server does not answer. Is the application running, and the network there?", 0);
    throw new Refused(`The server answered ${response.status}, and not in JSON. If it asks for a password, reload the page.`, response.status);
  }
  if (response.status === 304) {
    keep(address, before);
    if (!before.answer.stale) before.at = Date.now();
    return before;
  }
  if (!response.ok && path !== "health") throw new Refused(said(response.status, body.error), response.status);
  // The clocks of both may differ: only the server's own says how old an answer is.
  const age = body.stale ? Date.parse(response.headers.get("Date")) - Date.parse(body.as_of) : 0;
  const now = { etag: response.headers.get("ETag") ?? "", answer: body, at: Date.now() - Math.max(age, 0) };
  if (body.as_of) learn(body);
  if (now.etag) keep(address, now);
  return now;
}

function keep(address, entry) {
  kept.delete(address); // and to the end
  kept.set(address, entry);
  if (kept.size > most) kept.delete(kept.keys().next().value);
}

function said(status, message) {
  switch (status) {
    case 401:
    case 403:
      return "You are not let in any more. Reload the page to sign in.";
    case 503:
      return "The database does not answer in time. Counting goes on without it; the application's log knows more. This page tries again by itself.";
  }
  return message ? `The server says: ${message}.` : `The server answered ${status}.`;
}
