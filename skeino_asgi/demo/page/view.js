// Rendering: brings the page in line with the state. What people do is in `app.js`.

import { $, clock, duration, element, plural, reconcile, setBadge, setText } from "./dom.js";
import { isActive, state } from "./state.js";

const TONES = {
  success: "good", error: "bad", timeout: "bad", interrupted: "wait", paused: "wait",
  running: "work", pending: "work", busy: "work",
};

export function render() {
  renderThreads();
  renderHead();
  renderTranscript();
  renderComposer();
  renderRuns();
}

function renderThreads() {
  $("no-threads").hidden = state.threads.length > 0;
  reconcile($("thread-list"), state.threads, (row) => row.thread_id, (row) => {
    const link = element("a", { class: "thread", href: `#${encodeURIComponent(row.thread_id)}` }, [
      element("span", { class: "title" }),
      element("time", {}),
      element("span", { class: "badge" }),
    ]);
    return element("li", {}, [link]);
  }, (item, row) => {
    const link = item.firstChild;
    const [title, time, badge] = link.children;
    setText(title, row.title ?? row.thread_id);
    setBadge(badge, row.status === "idle" ? null : row.status, TONES[row.status]);
    setText(time, clock(row.updated_at));
    link.setAttribute("aria-current", String(row.thread_id === state.threadId));
  });
}

function renderHead() {
  const row = state.threads.find((one) => one.thread_id === state.threadId);
  setText($("thread-title"), row?.title ?? "New thread");
  setText($("thread-id"), state.threadId ?? "");
  setBadge($("thread-status"), row?.status, TONES[row?.status]);
  $("delete-thread").hidden = !row;
  document.title = row?.title ? `${row.title} · skeino demo` : "skeino demo";
}

// The messages, and after the last one of each run a link to that run, and why it failed if it did.
function transcript() {
  const messages = state.thread?.messages ?? [];
  const parts = [];
  messages.forEach((message, index) => {
    parts.push({ key: `m${index}`, kind: "message", role: message.role, text: message.text });
    if (message.run_id && messages[index + 1]?.run_id !== message.run_id) parts.push(...endOf(message.run_id));
  });
  if (state.turn) {
    const next = messages.length;
    parts.push({ key: `m${next}`, kind: "message", role: "user", text: state.turn.asked });
    parts.push({ key: `m${next + 1}`, kind: "message", role: "assistant", text: state.turn.text, streaming: true });
    parts.push({ key: `r${state.turn.runId}`, kind: "run", runId: state.turn.runId });
  }
  if (state.problem) parts.push({ key: "problem", kind: "note", text: state.problem, tone: "bad" });
  return parts;
}

function endOf(runId) {
  const run = state.runs.find((one) => one.run_id === runId);
  const parts = [{ key: `r${runId}`, kind: "run", runId }];
  if (run?.status === "error" || run?.status === "timeout") {
    parts.unshift({ key: `e${runId}`, kind: "note", text: reason(run), tone: "bad" });
  } else if (run?.status === "interrupted") {
    parts.unshift({ key: `e${runId}`, kind: "note", text: reason(run), tone: "wait" });
  }
  return parts;
}

// Rows say when an exception came, too ("after the response: …"); here the sentence is enough.
const reason = (run) => (run.error?.message ?? "").replace(/^(before|during|after) the response: /, "");

export function renderTranscript() {
  const scroller = $("scroller");
  const isAtEnd = scroller.scrollHeight - scroller.scrollTop - scroller.clientHeight < 60;
  $("welcome").hidden = state.threadId !== null || state.turn !== null || state.problem !== null;
  $("transcript").setAttribute("aria-busy", String(state.turn !== null));
  reconcile($("transcript"), transcript(), (part) => part.key + part.kind, (part) => {
    if (part.kind !== "run") return element("div", {});
    const link = element("button", { type: "button", class: "run-link" });
    link.addEventListener("click", () => reveal(part.runId));
    return link;
  }, (node, part) => {
    if (part.kind === "run") {
      const run = state.runs.find((one) => one.run_id === part.runId);
      setText(node, run ? `Run ${short(run.run_id)} · ${facts(run)}` : "Run …");
      node.disabled = !run;
    } else {
      node.className = part.kind === "note" ? "note" : `message ${part.role}${part.streaming ? " streaming" : ""}`;
      if (part.tone) node.dataset.tone = part.tone;
      setText(node, part.text);
    }
  });
  $("approval").hidden = state.turn !== null || !state.thread?.question;
  setText($("question"), state.thread?.question ?? "");
  if (isAtEnd) toEnd();
}

function renderComposer() {
  const isBusy = state.turn !== null;
  const isWaiting = Boolean(state.thread?.question);
  $("message").disabled = isWaiting && !isBusy;
  $("message").placeholder = isWaiting && !isBusy ? "Approve or decline first" : "Message";
  setText($("send"), isBusy ? "Stop" : "Send");
  $("send").disabled = isWaiting && !isBusy;
  for (const button of document.querySelectorAll(".suggestions button")) button.disabled = isBusy || isWaiting;
}

function renderRuns() {
  $("no-runs").hidden = state.runs.length > 0;
  setText($("run-count"), state.runs.length ? plural(state.runs.length, "run") : "");
  const byRun = Map.groupBy(state.checkpoints, (checkpoint) => checkpoint.run_id);
  reconcile($("run-list"), state.runs, (run) => run.run_id, createRun, (item, run) => {
    updateRun(item, run, (byRun.get(run.run_id) ?? []).toReversed());
  });
}

function createRun(run) {
  return element("li", { class: "run", "data-run": run.run_id }, [
    element("details", {}, [
      element("summary", {}, [
        element("span", { class: "asked" }),
        element("span", { class: "badge" }),
        element("span", { class: "chevron", "aria-hidden": "true" }),
        element("span", { class: "facts" }),
      ]),
      element("div", { class: "body" }, [
        element("p", { class: "error" }),
        element("p", { class: "mono" }),
        element("ol", { class: "checkpoints", "aria-label": "Checkpoints" }),
      ]),
    ]),
  ]);
}

function updateRun(item, run, checkpoints) {
  const [summary, body] = item.firstChild.children;
  const [asked, badge, , line] = summary.children;
  const [error, id, list] = body.children;
  const status = run.paused && run.status === "success" ? "paused" : run.status;
  const isRefused = run.status === "success" && run.http_status >= 400;
  const message = state.thread?.messages.find((one) => one.run_id === run.run_id && one.role === "user");
  const current = isActive(run) ? state.turn?.asked : undefined;
  setText(asked, message?.text ?? current ?? `Run ${short(run.run_id)}`);
  setBadge(badge, isRefused ? `refused ${run.http_status}` : status, isRefused ? "wait" : TONES[status]);
  setText(line, `${clock(run.created_at)} · ${facts(run)}`);
  error.hidden = !run.error;
  error.dataset.tone = run.status === "interrupted" ? "wait" : "bad";
  setText(error, run.error ? `${run.error.type?.split(".").at(-1) ?? run.error.code}: ${run.error.message}` : "");
  setText(id, `run ${run.run_id}`);
  reconcile(list, checkpoints, (one) => one.checkpoint_id, () => element("li", { class: "checkpoint" }, [
    element("span", { class: "step" }),
    element("div", {}, [
      element("p", {}, [element("span", {}), element("span", { class: "source" })]),
      element("p", { class: "mono" }),
    ]),
  ]), (node, one) => {
    const [step, { children: [what, checkpointId] }] = node.children;
    setText(step, String(one.step));
    step.title = `Step ${one.step}`;
    setText(what.firstChild, summaryOf(one));
    setText(what.lastChild, ` · ${one.source} · ${plural(one.message_count, "message")}`);
    setText(checkpointId, one.checkpoint_id);
  });
}

function summaryOf(checkpoint) {
  if (checkpoint.waiting) return `Paused in ${checkpoint.next.join(", ")}`;
  if (checkpoint.source === "input") return "Input received";
  return checkpoint.next.length ? `Next: ${checkpoint.next.join(", ")}` : "The end";
}

const short = (id) => id.slice(-6); // a UUIDv7 begins with its time: the end tells runs apart

function facts(run) {
  const length = isActive(run) ? "running" : duration(run.duration);
  const count = isActive(run)
    ? state.checkpoints.filter((one) => one.run_id === run.run_id).length
    : run.checkpoint_count;
  return `${length} · ${plural(count, "checkpoint")}`;
}

function reveal(runId) {
  show("runs");
  const item = document.querySelector(`[data-run="${CSS.escape(runId)}"]`);
  if (!item) return;
  item.firstChild.open = true;
  item.classList.remove("shown");
  void item.offsetWidth; // start the animation anew
  item.classList.add("shown");
  item.scrollIntoView({ block: "nearest" });
  item.querySelector("summary").focus({ preventScroll: true });
}

export function toEnd() {
  $("scroller").scrollTop = $("scroller").scrollHeight;
}

export function show(view) {
  document.body.dataset.view = view;
  for (const button of document.querySelectorAll(".views button")) {
    button.setAttribute("aria-current", String(button.dataset.view === view));
  }
}
