// SPDX-License-Identifier: GPL-2.0-only
// A whole search: findings, boundary by event, source lines; each leads down to a run.
class WholeView {
  constructor(data) {
    this.data = data;
    this.found = el("section", { class: "found", hidden: true, "aria-live": "polite", "aria-label": "What came there" });
    this.picture = el("section", { class: "picture", "aria-label": "Picture of a schedule" });
    this.view = null;
    const badge = el("span", { class: `badge ${data.passed ? "good" : "bad"}` }, data.passed ? "\u2713 passed" : data.properties.length ? "\u2715 failed" : "! not closed");
    this.root = el("main", { id: "main" },
      el("h1", {}, badge, data.image), el("p", {}, data.verdict),
      el("section", { class: "card", "aria-label": "What was covered" }, el("h2", {}, "What was covered"), el("dl", { class: "kv" }, data.facts.flatMap(([k, v]) => [el("dt", {}, k), el("dd", {}, v)]))),
      data.properties.length ? this.findings() : "", this.heat(), this.found, this.picture, this.coverage(),
      el("p", { class: "facts" }, "Made by: ", el("code", {}, `${data.command} --html page.html`)));
  }
  schedule(text) {
    const known = Object.hasOwn(this.data.pictures, text);
    return known ? el("button", { type: "button", title: "Show its picture", on: { click: () => this.show(text) } }, `\u25b8 ${text}`) : el("code", { title: "No picture of it is in this page" }, text);
  }
  findings() {
    const rows = this.data.properties.map((p) => {
      const list = el("details", {}, el("summary", {}, plural(p.count, "schedule")));
      list.addEventListener("toggle", () => {
        if (list.children.length > 1) return;
        const items = p.findings.map(([schedule, subject, expected, found, where]) => el("li", {}, this.schedule(schedule), el("div", { class: "quiet" }, `${subject}${expected ? ` expected ${expected}` : ""}${found ? ` found ${found}` : ""} at ${where}`)));
        if (p.count > p.findings.length) items.push(el("li", { class: "quiet" }, `and ${number(p.count - p.findings.length)} more (verify --json has all)`));
        list.append(el("p", { class: "quiet" }, p.means), el("ul", { class: "list" }, items));
      });
      return el("tr", {}, el("td", { class: "mono" }, p.number), el("td", {}, p.title, list), el("td", { class: "num" }, number(p.count)));
    });
    const pictures = Object.keys(this.data.pictures).length;
    return el("section", { class: "card", "aria-label": "Findings" }, el("h2", {}, "Findings"),
      el("p", { class: "quiet" }, `Schedules with \u25b8 have their picture in this page (${number(pictures)}); of any other, atomicist view makes one.`),
      el("table", { class: "plain" }, el("thead", {}, el("tr", {}, ["property", "what must hold", "findings"].map((t, i) => el("th", { scope: "col", class: i === 2 ? "num" : "" }, t)))), el("tbody", {}, rows)));
  }
  level(cell) {
    const times = cell[0] + cell[1] + cell[2];
    return times < 10 ? 1 : times < 1000 ? 2 : times < 100000 ? 3 : 4;
  }
  heat() {
    const reached = this.data.functions.filter((f) => f.reached), rest = this.data.functions.filter((f) => !f.reached);
    const bad = (f) => f.rows.reduce((n, r) => n + r[3].reduce((m, c) => m + (c ? c[3] : 0), 0), 0);
    const signs = [["h1", "", "under 10 times"], ["h2", "", "under 1,000"], ["h3", "", "under 100,000"], ["h4", "", "more"], ["worse", "\u2715", "a property is violated"], ["", "\u2013", "did not come there"]];
    const legend = el("div", { class: "legend" }, signs.map(([cls, sign, text]) => el("span", {}, this.swatch(cls, sign), text)));
    const all = el("details", {}, el("summary", {}, `Not reached: ${plural(rest.length, "function")}`), el("p", { class: "mono" }, rest.map((f) => f.name).join(", ")));
    return el("section", { class: "card", "aria-label": "What came where" }, el("h2", {}, "What came where"),
      el("p", { class: "quiet" }, `A row for each boundary, named by the instruction behind it; a column for each event (${this.data.events.join(", ")}). Open a function, then choose a cell.`),
      legend, [...reached].sort((a, b) => (bad(b) > 0) - (bad(a) > 0)).map((f) => this.func(f, bad(f))), rest.length ? all : "");
  }
  swatch(cls, sign) {
    const i = el("i", {}, sign);
    const mix = { h1: 10, h2: 22, h3: 36, h4: 50 }[cls];
    if (mix) i.style.background = `color-mix(in srgb, var(--good) ${mix}%, var(--panel))`;
    if (cls === "worse") { i.style.background = "var(--bad-back)"; i.style.color = "var(--bad)"; i.style.borderColor = "var(--bad)"; }
    return i;
  }
  func(f, bad) {
    const strip = this.strip(f);
    const said = `${f.reached} of ${plural(f.rows.length, "boundary").replace("boundarys", "boundaries")}`;
    const node = el("details", { class: "func" }, el("summary", {}, el("span", { class: "name" }, f.name), el("span", { class: "strip" }, strip),
      el("span", { class: "quiet" }, said, bad ? el("strong", { class: "bad" }, ` \u2715 ${number(bad)}`) : " \u2713")));
    node.addEventListener("toggle", () => { if (node.open && node.children.length === 1) node.append(this.table(f)); });
    return node;
  }
  // Small: a column for each boundary, a row for each event.
  strip(f) {
    const w = Math.max(2.5, Math.min(7, 640 / f.rows.length)), h = 7;
    const parts = [];
    f.rows.forEach((r, x) => r[3].forEach((c, y) => {
      if (!c) return;
      const rect = sv("rect", { x: x * w, y: y * (h + 1), width: w - 0.5, height: h });
      rect.style.fill = c[3] ? "var(--bad)" : `color-mix(in srgb, var(--good) ${[0, 18, 36, 56, 80][this.level(c)]}%, var(--panel))`;
      parts.push(rect);
      if (c[3] && w >= 4) { const cross = sv("path", { d: `M${x * w + 0.5} ${y * (h + 1) + 1} l${w - 1.5} ${h - 2} m0 ${2 - h} l${1.5 - w} ${h - 2}`, stroke: "var(--panel)" }); cross.style.strokeWidth = "1"; parts.push(cross); }
    }));
    return sv("svg", { width: f.rows.length * w, height: 4 * (h + 1), viewBox: `0 0 ${f.rows.length * w} ${4 * (h + 1)}`, role: "img", preserveAspectRatio: "xMinYMid meet", "aria-label": `${f.name}: events ${this.data.events.join(", ")} from above, boundaries from the left` }, parts);
  }
  table(f) {
    const rows = f.rows.map((r) => el("tr", {}, el("td", {}, r[0]), r[3].map((c, e) => el("td", { class: "cell" }, this.cell(f, r, c, e))), el("td", {}, r[1]), el("td", { class: "src2" }, r[2])));
    return el("div", { class: "scroll" }, el("table", { class: "heat" }, el("thead", {}, el("tr", {}, el("th", { scope: "col" }, "at"), this.data.events.map((e) => el("th", { scope: "col" }, e)), el("th", { scope: "col" }, "before"), el("th", { scope: "col", class: "src2" }, "source"))), el("tbody", {}, rows)));
  }
  cell(f, row, c, e) {
    if (!c) return el("span", { class: "none" }, "\u2013");
    const times = c[0] + c[1] + c[2];
    const text = times > 9999999 ? `${Math.round(times / 1000000)}M` : number(times);
    return el("button", { type: "button", class: c[3] ? "worse" : `h${this.level(c)}`, "aria-label": `${this.data.events[e]} at ${f.name}${row[0]}: ${number(times)} times${c[3] ? `, ${c[3]} findings, worst ${c[4]}` : ", nothing found"}`,
      on: { click: () => this.tell(f, row, c, e) } }, c[3] ? `\u2715 ${text}` : text);
  }
  tell(f, row, c, e) {
    const place = `${f.name}${row[0] === "+0x0" ? "" : row[0]}`, event = this.data.events[e];
    const said = [];
    if (c[0]) said.push(`delivered ${plural(c[0], "time")}, one by one`);
    if (c[1]) said.push(`${plural(c[1], "time")} as one of a class whose outcome was known`);
    if (c[2]) said.push(`${plural(c[2], "context")} met here behind a commit, each covered by certificates with this event first`);
    // Where nothing was found there is no finding's schedule: any picture with this event in this function.
    const name = event.replace("#", ""), near = c[3] ? c[5] : Object.keys(this.data.pictures).filter((s) => s.split(",").some((part) => part.startsWith(`${name}@${f.name}`) && /^(\+|$)/.test(part.slice(name.length + 1 + f.name.length))));
    this.found.hidden = false;
    set(this.found, el("button", { type: "button", class: "close", on: { click: () => { this.found.hidden = true; } } }, "\u2715 close"),
      el("h3", {}, `${event} at ${place} `, el("span", { class: "quiet mono" }, row[1])), el("p", {}, `${capital(said.join("; "))}. `, c[3] ? el("strong", { class: "bad" }, `\u2715 ${plural(c[3], "finding")}, the worst is ${c[4]}.`) : el("strong", { class: "good" }, "\u2713 Nothing found.")),
      near.length ? el("ul", { class: "list" }, near.map((s) => el("li", {}, this.schedule(s)))) : el("p", { class: "quiet" }, "No picture of it is in this page; atomicist view makes one of any schedule."));
  }
  async show(schedule, step) {
    const packed = Uint8Array.from(atob(this.data.pictures[schedule].gz), (ch) => ch.charCodeAt(0));
    const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
    const run = JSON.parse(await new Response(stream).text());
    if (this.view) this.view.stop();
    this.view = new RunView(run, { small: true });
    this.found.hidden = true;
    set(this.picture, el("div", { class: "card" }, el("button", { type: "button", on: { click: () => { this.view.stop(); this.view = null; set(this.picture); keep("run", ""); } } }, "\u2715 close this picture"), this.view.root));
    this.view.listeners.push((at, playing) => { if (!playing) keep("step", at); });
    keep("run", schedule);
    this.view.go(step ?? this.view.run.start());
    this.picture.scrollIntoView();
    return this.view;
  }
  coverage() {
    const { files, functions } = this.data;
    const total = functions.reduce((n, f) => n + f.rows.length, 0), reached = functions.reduce((n, f) => n + f.reached, 0);
    const parts = files.map((file) => {
      const hit = file.lines.filter((l) => l[2]).length;
      const node = el("details", {}, el("summary", {}, el("span", { class: "mono" }, file.name), el("span", { class: "quiet" }, ` ${hit} of ${plural(file.lines.length, "line")} with code`)));
      node.addEventListener("toggle", () => {
        if (node.children.length > 1) return;
        const rows = file.lines.map(([n, text, some, all]) => el("tr", { class: some ? "" : "miss" }, el("td", {}, String(n)), el("td", { title: "instructions reached, of all" }, some ? `${some}/${all}` : `\u2715 0/${all}`), el("td", {}, text)));
        node.append(el("div", { class: "scroll" }, el("table", { class: "lines" }, el("tbody", {}, rows))));
      });
      return node;
    });
    return el("section", { class: "card", "aria-label": "Coverage by source line" }, el("h2", {}, "Coverage by source line"),
      el("p", { class: "quiet" }, `An event came to ${number(reached)} of ${plural(total, "instruction")} of all code that is known. A line is reached where an event came to the boundary before one of its instructions.`),
      files.length ? parts : el("p", {}, "This image says nothing of source lines; the functions are above."));
  }
}

function whole(page, data) {
  const view = new WholeView(data);
  page.append(view.root);
  keyboard(() => view.view);
  const wanted = fragment().get("run"), step = fragment().get("step");
  if (wanted && Object.hasOwn(data.pictures, wanted)) view.show(wanted, step === null ? undefined : Number(step));
  return [view];
}
