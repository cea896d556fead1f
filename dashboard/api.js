// Reading the API. Of every question the last answer is kept, and asked for again by
// its ETag: one that says the same numbers costs no transfer and no work.

import { learn } from "./format.js";

const kept = new Map(); // question → {etag, answer, at}
const most = 64;
const longest = 7000; // characters of an address: some servers on the way take 8192
const parts = 32; // of a batch
const patience = 15_000; // ms; the server itself gives up after 5 s

export class Refused extends Error {
  constructor(message, status) {
    super(message);
    this.status = status;
  }
}

const rounds = new WeakMap(); // signal → what was asked in its round: nothing twice

// get returns {answer, at, took}: while its numbers stay, the answer is the same object; at
// is when they were those of the database, took how many ms it took to read them. What is asked in one go is asked in one request.
export function get(path, params, signal) {
  const q = new URLSearchParams();
  for (const [key, value] of Object.entries(params)) {
    for (const v of Array.isArray(value) ? value : [value]) if (v !== "" && v !== undefined) q.append(key, v);
  }
  const query = q.size ? `${path}?${q}` : path;
  if (!rounds.has(signal)) rounds.set(signal, { asked: new Map(), next: [] });
  const round = rounds.get(signal);
  if (!round.asked.has(query)) {
    const answer = new Promise((resolve, reject) => {
      if (round.next.push({ query, resolve, reject }) === 1) queueMicrotask(() => batches(round.next.splice(0)).forEach((b) => together(b, signal)));
    });
    round.asked.set(query, answer);
  }
  return round.asked.get(query);
}

// batches are as many as fit into an address, and a batch.
function batches(questions) {
  const list = [];
  let room = 0;
  for (const q of questions) {
    const length = encodeURIComponent(q.query).length + 3;
    if (length > room || list.at(-1).length === parts) {
      list.push([]);
      room = longest;
    }
    room -= length;
    list.at(-1).push(q);
  }
  return list;
}

// together asks several questions at once. What takes longer than the others may wait for
// is asked again alone; so are all where batches are unknown, or too long on their way.
async function together(questions, signal) {
  const before = questions.map((q) => kept.get(q.query));
  try {
    const q = new URLSearchParams(questions.map((q) => ["q", q.query]));
    const { response, body } = await ask(`api/batch?${q}`, before.map((b) => b?.etag), signal);
    if ([400, 404, 414, 431].includes(response.status)) return questions.forEach((q) => alone(q, signal));
    if (!response.ok && response.status !== 304) throw refused(response.status, body);
    for (const [i, q] of questions.entries()) {
      const { status, etag, body: answer, took_ms: took } = response.status === 304 ? { status: 304 } : body.answers[i];
      if (status === 202 || status === 413 || (status === 304 && !before[i])) alone(q, signal);
      else settle(q, before[i], status, etag, answer, response, took);
      if (answer) await turn(); // each is shown in a task of its own, as if it had come alone
    }
  } catch (err) {
    for (const q of questions) q.reject(err);
  }
}

const turn = () =>
  new Promise((done) => {
    const { port1, port2 } = new MessageChannel();
    port1.onmessage = () => done(port1.close());
    port2.postMessage(0);
  });

async function alone(q, signal) {
  try {
    const before = kept.get(q.query), began = performance.now();
    const { response, body } = await ask(`api/${q.query}`, [before?.etag], signal);
    settle(q, before, response.status, response.headers.get("ETag"), body, response, performance.now() - began);
  } catch (err) {
    q.reject(err);
  }
}

// ask returns a response and what is in it, but for a 304.
async function ask(address, tags, signal) {
  const have = tags.filter(Boolean).join(", ");
  let response;
  try {
    response = await fetch(address, { signal: AbortSignal.any([signal, AbortSignal.timeout(patience)]), cache: "no-store", headers: have ? { "If-None-Match": have } : {} });
    return { response, body: response.status === 304 ? null : await response.json() };
  } catch (err) {
    if (signal.aborted) throw err;
    if (!response) throw new Refused("The server does not answer. Is the application running, and the network there?", 0);
    throw new Refused(`The server answered ${response.status}, and not in JSON. If it asks for a password, reload the page.`, response.status);
  }
}

// settle gives a question its answer.
function settle(q, before, status, etag, answer, response, took) {
  if (status === 304) {
    before.took = took ?? before.took;
    keep(q.query, before);
    if (!before.answer.stale) before.at = Date.now();
    return q.resolve(before);
  }
  if (status !== 200 && q.query !== "health") return q.reject(refused(status, answer));
  learn(answer);
  // The clocks of both may differ: only the server's own says how old an answer is.
  const age = answer.stale ? Date.parse(response.headers.get("Date")) - Date.parse(answer.as_of) : 0;
  const now = { etag: etag ?? "", answer, at: Date.now() - Math.max(age, 0), took: took ?? 0 };
  if (now.etag) keep(q.query, now);
  q.resolve(now);
}

function keep(query, entry) {
  kept.delete(query); // and to the end
  kept.set(query, entry);
  if (kept.size > most) kept.delete(kept.keys().next().value);
}

function refused(status, body) {
  const message = body?.error ?? "";
  const sentence = message && `${message[0].toUpperCase()}${message.slice(1)}.`;
  switch (status) {
    case 401:
    case 403:
      return new Refused("You are not let in any more. Reload the page to sign in.", status);
    case 503:
      return new Refused(`${sentence} Counting goes on. This page tries again by itself.`, status);
  }
  return new Refused(message ? `The server says: ${message}.` : `The server answered ${status}.`, status);
}
