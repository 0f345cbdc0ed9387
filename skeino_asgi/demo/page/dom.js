// Small helpers. Text goes in through `textContent` alone: nothing that anybody wrote is ever read as HTML.

export const $ = (id) => document.getElementById(id);

export function element(name, attributes, children = []) {
  const node = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  node.append(...children);
  return node;
}

export function setText(node, text) {
  if (node.textContent !== text) node.textContent = text; // an equal text must not be announced again
}

export function setBadge(node, text, tone) {
  node.hidden = !text;
  setText(node, text ?? "");
  node.dataset.tone = tone ?? "";
}

// Makes the children of `parent` those of `items`, keeping nodes (and with them focus and open state) by key.
export function reconcile(parent, items, keyOf, create, update) {
  const kept = new Map([...parent.children].map((node) => [node.dataset.key, node]));
  items.forEach((item, index) => {
    const key = String(keyOf(item));
    let node = kept.get(key);
    kept.delete(key);
    if (!node) {
      node = create(item);
      node.dataset.key = key;
    }
    if (parent.children[index] !== node) parent.insertBefore(node, parent.children[index] ?? null);
    update(node, item);
  });
  for (const node of kept.values()) node.remove();
}

export const plural = (count, noun) => `${count} ${noun}${count === 1 ? "" : "s"}`;

export function duration(seconds) {
  if (seconds === null) return "running";
  return seconds < 1 ? `${Math.round(seconds * 1000)} ms` : `${seconds.toFixed(1)} s`;
}

export function clock(iso) {
  const time = new Date(iso);
  const isToday = time.toDateString() === new Date().toDateString();
  return time.toLocaleString([], {
    ...(isToday ? {} : { day: "numeric", month: "short" }),
    hour: "2-digit",
    minute: "2-digit",
    ...(isToday ? { second: "2-digit" } : {}),
  });
}
