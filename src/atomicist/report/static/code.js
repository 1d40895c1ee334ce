// SPDX-License-Identifier: GPL-2.0-only
// The code view: the instruction of a step between its neighbours, its source, the registers.
class CodeView {
  constructor(run, go) {
    this.run = run;
    this.go = go;
    this.around = 6;
    this.lines = Array.from({ length: 2 * this.around + 1 }, () => {
      const parts = { number: el("span"), text: el("span", { class: "text" }), at: el("span", { class: "at" }) };
      const li = el("li", {}, parts.number, el("div", {}, parts.text, parts.at));
      const line = { li, ...parts, step: -1 };
      li.addEventListener("click", () => this.go(line.step));
      return line;
    });
    this.source = el("div", { class: "src" });
    this.registers = new Map(Object.keys(run.data.start).map((name) => {
      const value = el("dd");
      return [name, { root: el("div", {}, el("dt", {}, name), value), value, shown: "" }];
    }));
    const list = el("ol", { class: "listing", "aria-label": "Instructions around this step" }, this.lines.map((l) => l.li));
    this.root = el("section", { class: "pane code", "aria-label": "Code view" },
      el("header", {}, el("h2", {}, "Code"), el("span", { class: "quiet" }, "registers after the step")),
      el("div", { class: "tall" }, el("div", { class: "body" }, list, this.source, el("dl", { class: "regs" }, [...this.registers.values()].map((r) => r.root)))));
  }
  show(step) {
    const { run } = this, { steps } = run.data;
    const first = Math.max(-1, Math.min(step - this.around, run.length - this.lines.length));
    this.lines.forEach((line, i) => {
      const at = first + i;
      line.step = at;
      line.li.hidden = at >= run.length || (at < 0 && at !== -1);
      if (line.li.hidden) return;
      line.number.textContent = at < 0 ? "" : String(at);
      const kind = at < 0 ? 1 : steps[at][0];
      line.text.textContent = at < 0 ? `start: ${run.data.context.about}` : run.text(steps[at][2]);
      line.at.textContent = at < 0 || kind === 3 ? "" : run.text(steps[at][1]);
      line.li.className = `${at === step ? "cur" : ""} ${kind ? "event" : ""}`;
      if (at === step) line.li.setAttribute("aria-current", "step"); else line.li.removeAttribute("aria-current");
    });
    const where = step < 0 ? "" : run.text(steps[step][3]);
    this.source.hidden = !where;
    if (where) set(this.source, el("span", { class: "quiet" }, where), el("code", {}, run.text(steps[step][4])));
    const now = run.registersAfter(step), changed = new Map(step < 0 ? [] : steps[step][6]);
    const before = changed.size ? run.registersAfter(step - 1) : null;
    for (const [name, r] of this.registers) {
      const is = changed.has(name) && name !== "RIP";
      const text = is ? `${before[name]}>${now[name]}` : now[name];
      if (text === r.shown) continue;
      r.shown = text;
      r.root.className = is ? "changed" : "";
      set(r.value, is ? el("del", { title: "before" }, before[name]) : "", now[name]);
    }
  }
}
