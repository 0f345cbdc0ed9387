// What the page shows. `app.js` changes it, `view.js` reads it.

export const state = {
  threadId: decodeURIComponent(location.hash.slice(1)) || null,
  threads: [],
  thread: null, // its row, its messages, its question
  runs: [],
  checkpoints: [],
  turn: null, // what is being streamed: { asked, text, runId, abort }
  problem: null, // why the last turn could not even begin
};

export const isActive = (run) => run.status === "running" || run.status === "pending";

export const threadPath = (threadId) => `/threads/${encodeURIComponent(threadId)}`;
