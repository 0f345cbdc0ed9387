// The page: it reads JSON, streams turns, and puts text on the page as text only.

import { $, setText } from "./dom.js";
import { readEvents } from "./events.js";
import { isActive, state, threadPath } from "./state.js";
import { render, renderTranscript, show, toEnd } from "./view.js";

const POLL_MILLISECONDS = 2500;
const POLL_IN_TURN_MILLISECONDS = 400;

const DECISIONS = { approve: "Approved.", decline: "Declined." };

// ── Reading ──────────────────────────────────────────────────────────────────────────────────────────────

async function read(path) {
  const response = await fetch(path, { cache: "no-store" });
  if (response.status === 404) return null;
  if (!response.ok) throw new Error(`${path}: ${response.status}`);
  return response.json();
}

// `rows` alone is what a poll asks for; the rest follows when the rows have changed.
async function refresh({ rows = false, endOfTurn = false } = {}) {
  const threadId = state.threadId;
  const path = threadId && threadPath(threadId);
  try {
    const [threads, runs] = await Promise.all([read("/threads"), path ? read(`${path}/runs`) : []]);
    const changed = JSON.stringify(runs) !== JSON.stringify(state.runs) || runs?.some(isActive);
    const [thread, checkpoints] =
      path && (changed || !rows)
        ? await Promise.all([read(path), read(`${path}/history`)])
        : [state.thread, state.checkpoints];
    setText($("offline"), "");
    if (threadId !== state.threadId) return; // another thread was chosen meanwhile
    Object.assign(state, { threads, runs: runs ?? [], checkpoints: checkpoints ?? [] });
    if (endOfTurn) state.turn = null; // at once with the messages that take its place
    if (!state.turn) state.thread = thread;
    if (threadId && !thread && !state.turn) choose(null); // it was deleted elsewhere
    render();
  } catch {
    setText($("offline"), "The server does not answer. Trying again…");
  }
}

let polledAt = 0;

async function poll() {
  const pause = state.turn ? POLL_IN_TURN_MILLISECONDS : POLL_MILLISECONDS;
  if (!document.hidden && Date.now() - polledAt >= pause) {
    await refresh({ rows: true });
    polledAt = Date.now();
  }
  setTimeout(poll, POLL_IN_TURN_MILLISECONDS);
}

// ── A turn ───────────────────────────────────────────────────────────────────────────────────────────────

async function takeTurn(body, asked) {
  if (state.turn) return;
  const turn = { asked, text: "", runId: null, abort: new AbortController() };
  Object.assign(state, { turn, problem: null });
  render();
  toEnd();
  let outcome = "The turn was stopped.";
  try {
    const response = await fetch("/chat", {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify({ thread_id: state.threadId, ...body }),
      signal: turn.abort.signal,
    });
    if (!response.ok) {
      state.problem = outcome = (await response.json()).detail;
    } else {
      for await (const [name, data] of readEvents(response.body)) {
        if (name === "run") {
          turn.runId = data.run_id;
          if (state.threadId === null) remember(data.thread_id);
          refresh({ rows: true });
        } else if (name === "token") {
          turn.text += data.text;
          renderTranscript();
        } else if (name === "waiting") {
          outcome = `The graph has paused: ${data.question}`;
        } else if (name === "error") {
          outcome = `The turn failed: ${data.message}`;
        } else if (name === "end" && turn.text) {
          outcome = ""; // the answer itself is read out
        }
      }
    }
  } catch (error) {
    if (error.name !== "AbortError") state.problem = outcome = "The connection was lost before the turn had ended.";
  }
  if (state.turn !== turn) return; // another thread was chosen meanwhile
  await finishTurn(turn);
  setText($("announcer"), outcome);
}

async function finishTurn(turn) {
  await untilRunEnded(turn.runId, state.threadId);
  await refresh({ endOfTurn: true });
  if (state.turn === turn) state.turn = null; // the server has gone
  render();
  const focused = document.activeElement;
  if (focused !== document.body && !focused.closest("#approval, .composer")) return; // it is needed elsewhere
  if (state.thread?.question) $("approval").querySelector("button").focus({ preventScroll: true });
  else if (!matchMedia("(pointer: coarse)").matches) $("message").focus({ preventScroll: true });
}

// A run's end is committed soon after its response.
async function untilRunEnded(runId, threadId) {
  for (let attempt = 0; runId && attempt < 20; attempt += 1) {
    const runs = await read(`${threadPath(threadId)}/runs`).catch(() => null);
    const run = runs?.find((one) => one.run_id === runId);
    if (run && !isActive(run)) return;
    await new Promise((resolve) => setTimeout(resolve, 50));
  }
}

// ── Threads ──────────────────────────────────────────────────────────────────────────────────────────────

function remember(threadId) {
  state.threadId = threadId;
  history.replaceState(null, "", threadId ? `#${encodeURIComponent(threadId)}` : location.pathname);
}

function choose(threadId) {
  state.turn?.abort.abort();
  remember(threadId);
  Object.assign(state, { thread: null, runs: [], checkpoints: [], turn: null, problem: null });
  render();
}

async function openThread(threadId) {
  choose(threadId);
  show("chat");
  await refresh();
  toEnd();
}

async function remove() {
  const response = await fetch(threadPath(state.threadId), { method: "DELETE" });
  if (response.ok || response.status === 404) {
    choose(null);
    setText($("announcer"), "The thread was deleted.");
  } else {
    state.problem = (await response.json()).detail;
  }
  await refresh();
}

// ── What people do ───────────────────────────────────────────────────────────────────────────────────────

$("composer").addEventListener("submit", (event) => {
  event.preventDefault();
  if (state.turn) return state.turn.abort.abort();
  const message = $("message").value.trim();
  if (!message) return $("message").focus();
  $("message").value = "";
  takeTurn({ message }, message);
});

$("message").addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  if (!state.turn) $("composer").requestSubmit(); // Enter does not stop a turn: one may be typing ahead
});

document.querySelector(".suggestions").addEventListener("click", (event) => {
  const message = event.target.dataset?.message;
  if (message) takeTurn({ message }, message);
});

$("approval").addEventListener("submit", (event) => {
  event.preventDefault();
  const resume = event.submitter?.value ?? "approve";
  takeTurn({ resume }, DECISIONS[resume]);
});

$("new-thread").addEventListener("click", () => {
  choose(null);
  show("chat");
  $("message").focus();
});

$("delete-thread").addEventListener("click", () => {
  $("confirm").returnValue = "keep";
  $("confirm").showModal();
});
$("confirm").addEventListener("close", () => {
  if ($("confirm").returnValue === "delete") remove();
});

$("thread-list").addEventListener("click", (event) => {
  if (event.target.closest("a")) show("chat"); // also when it is the one that is open already
});

document.querySelector(".views").addEventListener("click", (event) => {
  if (event.target.dataset?.view) show(event.target.dataset.view);
});

addEventListener("hashchange", () => openThread(decodeURIComponent(location.hash.slice(1)) || null));
document.addEventListener("visibilitychange", () => document.hidden || refresh({ rows: true }));

show("chat");
render();
await refresh();
toEnd();
poll();
