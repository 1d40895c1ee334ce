// SPDX-License-Identifier: GPL-2.0-only
// The procedure view: time goes down, a column a stack, a bar a stage.
const GUTTER = 44;
const ARROW = 20;

class ProcedureView {
  constructor(run, go) {
    this.run = run;
    this.go = go;
    this.heads = el("div", { class: "heads" });
    this.svg = sv("svg", { class: "proc", role: "img" });
    this.box = el("div", { class: "tall", tabindex: "0", role: "group", "aria-label": "Procedure view, scrolls" }, this.heads, this.svg);
    this.hint = el("span", { class: "quiet" }, "time goes down; a column a stack");
    this.many = run.data.columns.length > 5;
    this.root = el("section", { class: "pane procedure", "aria-label": "Procedure view" },
      el("header", {}, el("h2", {}, "Procedure"), this.hint), this.box);
    this.svg.addEventListener("click", (e) => {
      const y = e.clientY - this.svg.getBoundingClientRect().top;
      this.go(this.stepAt(y));
    });
    new ResizeObserver(() => { if (this.box.clientWidth !== this.width) this.draw(); }).observe(this.box);
  }
  // Where each segment lies, and the arrows in the gap above it.
  layout() {
    const { segments, arrows } = this.run.data;
    let y = 30;
    this.rows = segments.map((s, k) => {
      const before = k ? segments[k - 1][4] : -1;
      const here = arrows.filter((a) => (a.kind === "return" ? a.step === before && k : a.step === s[3]));
      const firsts = here.map((a, i) => ({ ...a, y: y + 17 + i * ARROW }));
      y += here.length ? here.length * ARROW + 6 : 3;
      const n = s[4] - s[3] + 1;
      const isNew = this.isFirst(k);
      const height = Math.max(isNew ? 33 : 20, Math.min(84, 8 + 6.5 * Math.sqrt(n)));
      const row = { segment: s, top: y, bottom: y + height, arrows: firsts, isNew };
      y += height;
      return row;
    });
    const last = segments[segments.length - 1];
    this.closing = arrows.filter((a) => a.kind === "return" && a.step === last[4]).map((a, i) => ({ ...a, y: y + 14 + i * ARROW }));
    y += this.closing.length * ARROW + 6;
    this.endTop = y;
    this.height = y + (this.run.data.verdict.outcome === "resumed" ? 30 : 22);
  }
  isFirst(k) {
    const segments = this.run.data.segments;
    return segments[k][0] >= 0 && segments.findIndex((s) => s[0] === segments[k][0]) === k;
  }
  y(step) {
    if (step < 0) return 16;
    const row = this.rows[Math.max(0, upTo(this.rows, step, (r) => r.segment[3]))];
    const [, , , first, last] = row.segment;
    return row.top + ((step - first + 0.5) / (last - first + 1)) * (row.bottom - row.top);
  }
  stepAt(y) {
    const i = upTo(this.rows, y, (r) => r.top);
    if (i < 0) return -1;
    const row = this.rows[i];
    const [, , , first, last] = row.segment;
    const at = Math.min(0.999, (y - row.top) / (row.bottom - row.top));
    return first + Math.floor(at * (last - first + 1));
  }
  x(column) { return GUTTER + (this.index.get(column) + 0.5) * this.wide; }
  cut(text, room) { const n = Math.floor(room / 6.1); return text.length <= n ? text : `${text.slice(0, Math.max(1, n - 1))}\u2026`; }
  // A stage's title in as many of its words as there is room for.
  short(text, room) {
    if (text.length * 6.1 <= room) return text;
    const comma = text.split(",")[0].split(" ");
    while (comma.length > 1 && comma.join(" ").length * 6.1 > room) comma.pop();
    return this.cut(comma.join(" "), room);
  }
  draw() {
    const { data } = this.run;
    this.width = this.box.clientWidth;
    if (!this.width) return;
    const { columns } = data;
    this.index = new Map(columns.map((c, i) => [c.key, i]));
    this.wide = Math.max(58, Math.min(150, (this.width - GUTTER - 4) / columns.length));
    const total = GUTTER + this.wide * columns.length + 4;
    if (!this.rows) this.layout();
    this.svg.setAttribute("width", total);
    this.svg.setAttribute("height", this.height);
    this.svg.setAttribute("aria-label", `Procedure: ${plural(data.deliveries.length, "event")}, ${number(this.run.length)} steps. The same in words is at the end of the page.`);
    this.heads.style.width = `${total}px`;
    const gutter = el("div", { class: "quiet" }, "step");
    gutter.style.width = `${GUTTER}px`;
    set(this.heads, gutter, ...columns.map((c) => {
      const head = el("div", {}, capital(c.title), el("span", {}, { ist: "IST", main: "main", context: "" }[c.kind] ?? ""));
      head.style.width = `${this.wide}px`;
      return head;
    }));
    const parts = columns.map((c) => sv("line", { class: "lane", x1: this.x(c.key), x2: this.x(c.key), y1: 0, y2: this.height }));
    parts.push(...this.waits(), this.context(8, 16, this.wide < 84 ? "context" : "interrupted"));
    if (data.verdict.outcome === "resumed") parts.push(this.context(this.endTop, 20, "runs again"));
    this.rows.forEach((row, k) => parts.push(...this.bar(row, k)));
    for (const row of this.rows) for (const a of row.arrows) parts.push(this.arrow(a));
    for (const a of this.closing) parts.push(this.arrow(a));
    parts.push(...this.loss(total));
    this.line = sv("line", { class: "cursor", x1: 0, x2: total });
    this.flag = sv("rect", { class: "flag", x: 0, width: GUTTER - 6, height: 15, rx: 3 });
    this.flagWord = sv("text", { class: "flagword", x: (GUTTER - 6) / 2, "text-anchor": "middle" });
    set(this.svg, ...parts, this.line, this.flag, this.flagWord);
    if (this.at !== undefined) { this.show(this.at); this.reveal(); }
  }
  context(y, height, word) {
    const x = this.x("context"), w = this.wide - 10;
    return sv("g", {}, sv("rect", { class: "bar s-context", x: x - w / 2, y, width: w, height, rx: 3 }),
      sv("text", { x, y: y + height / 2 + 4, "text-anchor": "middle" }, this.cut(word, w)));
  }
  colour(d) { return d < 0 ? "var(--soft)" : `var(--d${d % 6})`; }
  bar(row, k) {
    const [d, stage, column, first, last] = row.segment;
    if (d < 0) return [];
    const x = this.x(column), w = this.wide - 10, h = row.bottom - row.top;
    const title = this.run.data.stages[stage].title;
    const rect = sv("rect", { class: "bar", x: x - w / 2, y: row.top, width: w, height: h, rx: 3 });
    const depth = { save1: 34, save2: 26, save3: 22, kernelize: 30, untrain: 12, copy: 18, walk: 18, commit: 44, kernel: 14, handler: 38, return: 9, refuse: 40 }[stage] ?? 20;
    rect.style.fill = `color-mix(in srgb, ${this.colour(d)} ${depth}%, var(--panel))`;
    rect.style.stroke = this.colour(d);
    const steps = first === last ? `step ${first}` : `steps ${first} to ${last}`;
    const g = sv("g", {}, sv("title", {}, `${this.run.who(d)}: ${title} (${steps}). ${this.run.data.stages[stage].about}`), rect);
    if (row.isNew) {
      g.append(sv("text", { class: "who", x, y: row.top + 14, "text-anchor": "middle" }, this.cut(this.run.tag(d), w)),
        sv("text", { x, y: row.top + 27, "text-anchor": "middle" }, this.short(title, w)));
    } else {
      const before = this.rows[k - 1];
      const again = before && before.segment[0] !== d;
      const text = again ? `${this.run.tag(d)}: ${title}` : title;
      if (again && h >= 33) g.append(sv("text", { class: "who", x, y: row.top + h / 2 - 3, "text-anchor": "middle" }, this.cut(this.run.tag(d), w)),
        sv("text", { x, y: row.top + h / 2 + 11, "text-anchor": "middle" }, this.short(title, w)));
      else g.append(sv("text", { x, y: row.top + h / 2 + 4, "text-anchor": "middle" }, this.short(again && w < 90 ? title : text, w)));
    }
    const parts = [g];
    if (h > 11) parts.push(sv("text", { class: "tick", x: GUTTER - 8, y: row.top + 9, "text-anchor": "end" }, String(first)));
    const next = this.rows[k + 1];
    const hit = next && next.segment[3] === last + 1 && this.run.data.deliveries.find((e) => e.step === last + 1 && e.inside === d);
    if (hit) parts.push(...this.hit(row, x, w, d, this.run.data.deliveries.indexOf(hit)));
    return parts;
  }
  hit(row, x, w, d, by) {
    const y = row.bottom;
    let path = `M${x - w / 2} ${y}`;
    const teeth = 6;
    for (let i = 1; i <= teeth * 2; i++) path += ` L${x - w / 2 + (w * i) / (teeth * 2)} ${y + (i % 2 ? 5 : 0)}`;
    const done = this.run.data.deliveries[d];
    const words = [`hit by ${this.run.tag(by)}`];
    if (done.completed_by >= 0 && done.completed_by !== d && done.inside < by) words.push(`completed by ${this.run.tag(done.completed_by)}`);
    return [sv("path", { class: "hit", d: path }),
      ...this.lines(words).map((t, i) => sv("text", { class: "hitword halo", x, y: y + 29 + i * 11, "text-anchor": "middle" }, t))];
  }
  // Each on one line, or at its last "by" on two.
  lines(words) {
    return words.map((t) => (this.wide < 80 ? t.replace("completed", "done") : t)).flatMap((t) => (t.length * 5.6 <= this.wide - 6 ? [t] : [t.replace(/ by .*/, " by"), t.replace(/^.* by /, "")]));
  }
  // Between being hit and going on, an entry waits: a dotted line.
  waits() {
    const parts = [];
    this.rows.forEach((row, k) => {
      const d = row.segment[0];
      if (d < 0) return;
      const next = this.rows.findIndex((r, i) => i > k && r.segment[0] === d);
      if (next > k + 1) parts.push(sv("line", { class: "wait", x1: this.x(row.segment[2]), x2: this.x(row.segment[2]), y1: row.bottom, y2: this.rows[next].top }));
    });
    return parts;
  }
  arrow(a) {
    const from = this.x(a.from), to = this.x(a.to), tag = this.run.tag(a.delivery);
    const text = { deliver: tag, commit: "commit", copy: `copy of ${tag}`, return: "IRET" }[a.kind];
    const about = { deliver: `${this.run.who(a.delivery)} is delivered`, commit: `${this.run.who(a.delivery)} commits`,
      copy: `${this.run.who(a.by)} copies and commits for ${this.run.who(a.delivery)}`, return: `${this.run.who(a.delivery)} returns` }[a.kind];
    const g = sv("g", {}, sv("title", {}, `${about} (step ${a.step})`));
    if (from === to) {
      const r = from + 2;
      g.append(sv("path", { class: `arrow ${a.kind}`, d: `M${r} ${a.y - 7} h14 q5 0 5 5 v2 q0 5 -5 5 h-9` }),
        sv("path", { class: `head ${a.kind}`, d: `M${r + 1} ${a.y + 5} l7 -4 v8 z` }),
        sv("text", { class: "halo small", x: from - 6, y: a.y + 3, "text-anchor": "end" }, text));
      return g;
    }
    const way = Math.sign(to - from), half = (this.wide - 10) / 2;
    const end = to - way * 3;
    const start = from;
    g.append(sv("circle", { class: `head ${a.kind}`, cx: start, cy: a.y, r: 2.5 }),
      sv("path", { class: `arrow ${a.kind}`, d: `M${start} ${a.y} H${end - way * 6}` }),
      sv("path", { class: `head ${a.kind}`, d: `M${end} ${a.y} l${-way * 8} -4.5 v9 z` }),
      sv("text", { class: "halo", x: (start + end) / 2, y: a.y - 3.5, "text-anchor": "middle" }, this.cut(text, Math.max(Math.abs(to - from) - 18, half))));
    return g;
  }
  loss(total) {
    const { loss } = this.run;
    if (!loss || loss.kind !== "overwritten") return [];
    const y = this.y(loss.step);
    return [sv("line", { class: "lossline", x1: GUTTER - 4, x2: total, y1: y, y2: y }),
      sv("text", { class: "lossword halo", x: total - 6, y: y - 5, "text-anchor": "end" }, "LOST here")];
  }
  show(step) {
    this.at = step;
    if (!this.line) return;
    const y = this.y(step);
    this.line.setAttribute("y1", y);
    this.line.setAttribute("y2", y);
    this.flag.setAttribute("y", y - 7.5);
    this.flagWord.setAttribute("y", y + 4);
    this.flagWord.textContent = step < 0 ? "start" : String(step);
  }
  reveal() {
    if (!this.line) return;
    const y = this.y(this.at), box = this.box, head = this.heads.offsetHeight;
    const top = y + head;
    if (top < box.scrollTop + head + 40 || top > box.scrollTop + box.clientHeight - 40) box.scrollTop = Math.max(0, top - box.clientHeight / 2);
  }
}
