// SPDX-License-Identifier: GPL-2.0-only
// The data view: the stacks as memory after a step. Rows are kept and changed in place.
class MemoryView {
  constructor(run, go) {
    this.run = run;
    this.go = go;
    this.chosen = run.loss ? run.loss.slots[run.loss.slots.length - 1].address : null;
    this.open = new Set();
    this.detail = el("div", { class: "detail", "aria-live": "off" });
    this.tables = run.stacks.map((stack) => this.table(stack));
    this.box = el("div", { class: "tall", tabindex: "0", role: "group", "aria-label": "Data view, scrolls" }, el("div", { class: "body" }, this.tables.map((t) => t.root)));
    this.root = el("section", { class: "pane data", "aria-label": "Data view" },
      el("header", {}, el("h2", {}, "Data"), el("span", { class: "quiet" }, "the stacks as memory; highest address first")), this.box, this.detail);
    this.index = new Map(run.stacks.flatMap((s) => s.words.map((w) => [w.address, [s, w]])));
  }
  table(stack) {
    const state = el("span", { class: "quiet" });
    const body = el("tbody");
    const heads = [["off", "top"], ["name", "slot"], ["val", "value"], ["is", "what it is"], ["own", "owner"], ["by", "written by"]];
    const root = el("section", { class: "stack", "aria-label": stack.title },
      el("header", {}, el("h3", {}, capital(stack.title)), el("span", { class: "quiet mono" }, `top ${stack.top}`), state),
      el("div", { class: "scroll" }, el("table", { class: "slots" }, el("thead", {}, el("tr", {}, heads.map(([c, t]) => el("th", { class: c, scope: "col" }, t)))), body)));
    return { stack, root, state, body, shape: null, rows: new Map(), gaps: [] };
  }
  row(table, word) {
    const cells = ["off", "name", "val", "is", "own", "by"].map((c) => el("td", { class: c }));
    const button = el("button", { class: "slot", type: "button", title: word.address, on: { click: () => this.choose(word.address) } });
    cells[1].append(button);
    cells[0].textContent = `-0x${(table.stack.topN - word.n).toString(16)}`;
    return { tr: el("tr", { "data-address": word.address }, cells), cells, button, sign: "" };
  }
  choose(address) {
    this.chosen = this.chosen === address ? null : address;
    this.show(this.at);
  }
  chip(number, text) {
    const c = el("span", { class: "chip" }, text);
    c.style.setProperty("--chip", number < 0 ? "var(--soft)" : `var(--d${number % 6})`);
    return c;
  }
  show(step) {
    this.at = step;
    for (const t of this.tables) this.update(t, step);
    this.showDetail(step);
  }
  update(t, step) {
    const { run } = this, low = run.low(t.stack, step);
    const shown = [];
    let gap = 0, start = "";
    const close = () => { if (gap) shown.push({ gap, start }); gap = 0; };
    let live = 0;
    for (const word of t.stack.words) {
      const now = run.word(t.stack, word, step, low);
      if (now.state === "live" || now.state === "lost") live++;
      const hide = now.state === "none" || (now.state === "free" && word.address !== this.chosen && !(now.write[0] === step && now.write[3] !== 2) && !this.open.has(t.stack.key));
      if (hide) { if (!gap) start = word.address; gap++; } else { close(); shown.push({ word, now }); }
    }
    close();
    t.root.classList.toggle("empty", shown.every((s) => s.gap));
    t.state.textContent = live ? `${plural(live, "word")} in use` : t.stack.kind === "other" ? "" : "free";
    const shape = shown.map((s) => (s.gap ? `${s.start}+${s.gap}` : s.word.address)).join();
    if (shape !== t.shape) {
      t.shape = shape;
      let gaps = 0;
      this.arrange(t.body, shown.map((s) => (s.gap ? this.gap(t, gaps++, s.gap) : this.rowOf(t, s.word).tr)));
    }
    for (const s of shown) if (!s.gap) this.paint(t, s.word, s.now, step);
  }
  rowOf(t, word) {
    if (!t.rows.has(word.address)) t.rows.set(word.address, this.row(t, word));
    return t.rows.get(word.address);
  }
  // What stays is not touched: a browser would measure it again.
  arrange(body, rows) {
    const wanted = new Set(rows);
    for (const row of [...body.children]) if (!wanted.has(row)) row.remove();
    let at = body.firstChild;
    for (const row of rows) if (row === at) at = at.nextSibling; else body.insertBefore(row, at);
  }
  gap(t, index, count) {
    const key = t.stack.key;
    if (!t.gaps[index]) {
      const button = el("button", { class: "slot", type: "button", on: { click: () => {
        if (!this.open.delete(key)) this.open.add(key);
        this.show(this.at);
      } } });
      t.gaps[index] = { button, tr: el("tr", { class: "gap" }, el("td", { class: "off" }, "\u22ee"), el("td", { colspan: "5" }, button)) };
    }
    const { button, tr } = t.gaps[index];
    button.setAttribute("aria-expanded", String(this.open.has(key)));
    button.textContent = `${t.stack.kind === "other" ? "not written yet" : "free"}: ${plural(count, "word")}`;
    return tr;
  }
  paint(t, word, now, step) {
    const { run } = this, row = this.rowOf(t, word), { write } = now;
    const sign = `${now.index} ${now.state} ${this.chosen === word.address} ${write[0] === step} ${now.soon ? 1 : 0}`;
    if (sign === row.sign) return;
    row.sign = sign;
    const fresh = write[0] === step && write[3] !== 2;
    row.tr.className = [now.state, now.soon ? "soon" : "", this.chosen === word.address ? "chosen" : "", fresh ? "written" : ""].join(" ");
    const [off, , value, is, owner, by] = row.cells;
    off.textContent = `${fresh ? "\u25b8 " : ""}-0x${(t.stack.topN - word.n).toString(16)}`;
    const lostName = now.lost ? now.lost.name : "";
    row.button.textContent = lostName || run.text(write[7]) || (write[3] === 2 ? "free" : "\u2014");
    row.button.setAttribute("aria-pressed", String(this.chosen === word.address));
    set(value, write[1], now.lost ? el("del", { class: "was" }, now.lost.was) : "");
    const meaning = run.text(write[2]);
    if (now.state === "lost") {
      set(is, el("strong", {}, "\u25c4 LOST "), meaning, el("span", { class: "was" }, `was ${now.lost.was_is || "needed"}`));
    } else if (now.soon) set(is, meaning, ` \u2014 will be lost at step ${now.soon.step}`);
    else set(is, meaning);
    if (now.state === "free") set(owner, el("span", { class: "chip" }, "free"));
    else if (now.state === "lost") set(owner, this.chip(run.loss.delivery, run.tag(run.loss.delivery) || "?"));
    else set(owner, this.chip(write[4], run.tag(write[4]) || "\u2014"));
    const full = this.writer(write);
    by.textContent = full.replace("atomic_ist_", "\u2026");
    by.title = full;
  }
  writer(write) {
    const { run } = this, who = run.tag(write[5]);
    if (write[3] === 1) return `hardware, ${who}`;
    if (write[3] === 2) return "freed, overwritten";
    return `${who ? `${who}: ` : ""}${run.text(write[6])}`;
  }
  showDetail(step) {
    const { run } = this;
    if (!this.chosen || !this.index.has(this.chosen)) {
      set(this.detail, el("span", { class: "quiet" }, "Choose a slot to see who wrote it, from where, and who overwrote it."));
      this.detailFor = "";
      return;
    }
    const [stack, word] = this.index.get(this.chosen);
    const current = upTo(word.writes, step, (w) => w[0]);
    const key = `${this.chosen} ${current}`;
    if (key === this.detailFor) return;
    this.detailFor = key;
    const items = word.writes.map((w, i) => {
      const came = run.text(w[10]);
      const source = w[8] && this.index.has(w[8]) ? el("button", { type: "button", on: { click: () => this.choose(w[8]) } }, "show that slot") : "";
      const lost = run.lostSlots.get(word.address);
      const says = [w[1], run.text(w[2]) ? ` (${run.text(w[2])})` : "", ` by ${this.writer(w)}`, came ? `: ${came} ` : " "];
      const loses = lost && run.loss.kind === "overwritten" && w[0] === lost.step && i ? el("strong", { class: "bad" }, " overwrites what was needed ") : "";
      return el("li", { class: i === current ? "cur" : "" }, el("button", { type: "button", on: { click: () => this.go(w[0]) } }, `step ${w[0]}`), " ", says.join(""), loses, source);
    });
    set(this.detail, el("h3", {}, `${word.address} `, el("span", { class: "quiet" }, `${stack.title}, ${plural(word.writes.length, "write")}`)), el("ol", {}, items));
  }
  // Keep in sight what this step writes, or what was lost.
  reveal(step) {
    const { run, box } = this;
    if (box.scrollHeight <= box.clientHeight + 4) return;
    const row = box.querySelector("tr.written") || (run.loss && step === run.loss.step ? box.querySelector("tr.lost") : null);
    if (!row) return;
    const inner = row.getBoundingClientRect(), outer = box.getBoundingClientRect();
    if (inner.top < outer.top + 30 || inner.bottom > outer.bottom - 10) box.scrollTop += inner.top - outer.top - 90;
  }
}
