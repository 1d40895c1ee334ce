// SPDX-License-Identifier: GPL-2.0-only
// Reads the data of the page and shows it; the step is in the URL's fragment.
function fragment() { return new URLSearchParams(location.hash.slice(1)); }

// Browsers slow down who changes the address too often.
const pending = new Map();
let writing = 0;
function keep(key, value) {
  pending.set(key, String(value));
  writing = writing || setTimeout(() => {
    const now = fragment();
    for (const [k, v] of pending) now.set(k, v);
    pending.clear();
    writing = 0;
    history.replaceState(null, "", `#${now}`);
  }, 120);
}

function stepOf(view, key) {
  const wanted = fragment().get(key);
  return wanted !== null && /^-?\d+$/.test(wanted) ? Number(wanted) : view.run.start();
}

function keyboard(current) {
  document.addEventListener("keydown", (e) => {
    if (e.ctrlKey || e.metaKey || e.altKey || !current()) return;
    const t = e.target;
    if (t.matches("input[type=range]") && !e.shiftKey && /^(Arrow|Home|End)/.test(e.key)) return;
    if (t.matches("select, input[type=text], textarea") || (e.key === " " && t.matches("button, summary, input"))) return;
    if (current().key(e)) e.preventDefault();
  });
}

function tie(view, key) {
  view.listeners.push((step, playing) => { if (!playing) keep(key, step); });
  view.go(stepOf(view, key));
  addEventListener("hashchange", () => view.go(stepOf(view, key)));
}

function single(page, data) {
  const view = new RunView(data.runs[0]);
  page.append(el("main", { id: "main" }, view.root));
  tie(view, "step");
  keyboard(() => view);
  return [view];
}

// Where in run `b` the story is as far as in run `a` after `step`: the same event, as far behind it.
function counterpart(a, b, step) {
  const events = a.run.data.deliveries.map((d) => d.step), others = b.run.data.deliveries.map((d) => d.step);
  const i = upTo(events, step, (e) => e);
  if (i < 0) return -1;
  if (i >= others.length) return b.run.last;
  const end = (list, run) => (i + 1 < list.length ? list[i + 1] : run.length) - 1;
  const room = end(events, a.run) - events[i], other = end(others, b.run) - others[i];
  return others[i] + (room ? Math.round(((step - events[i]) / room) * other) : 0);
}

function compare(page, data) {
  const views = data.runs.map((run) => new RunView(run, { small: true }));
  const linked = el("input", { type: "checkbox", id: "linked", checked: true });
  let busy = false, last = views[0];
  page.append(el("header", {}, el("h1", {}, data.title), el("p", { class: "quiet" }, el("label", {}, linked, " step both together, event by event"))),
    el("main", { id: "main", class: "pair" }, views.map((v) => v.root)));
  const given = fragment().get("other") !== null;
  views.forEach((view, i) => {
    if (i && !given) view.run.start = () => counterpart(views[0], view, views[0].step);
    tie(view, i ? "other" : "step");
    view.root.addEventListener("pointerdown", () => { last = view; });
    view.root.addEventListener("focusin", () => { last = view; });
    view.listeners.push((step, playing) => {
      if (busy || !linked.checked) return;
      busy = true;
      views[1 - i].go(counterpart(view, views[1 - i], step), playing);
      busy = false;
    });
  });
  keyboard(() => last);
  return views;
}

function start() {
  const data = JSON.parse(document.getElementById("data").textContent);
  const page = document.getElementById("page");
  const views = { run: single, compare, verify: (p, d) => whole(p, d) }[data.page](page, data);
  // For measurements and tests.
  window.atomicist = { views, ready: performance.now() };
  performance.mark("atomicist-ready");
}

start();
