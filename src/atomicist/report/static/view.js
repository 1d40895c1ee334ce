// SPDX-License-Identifier: GPL-2.0-only
// One run on the page: its verdict, what was lost, the controls and the three views.
class RunView {
  constructor(data, options) {
    this.run = new Run(data);
    this.options = options || {};
    this.listeners = [];
    const go = (step) => this.go(step);
    this.procedure = new ProcedureView(this.run, go);
    this.memory = new MemoryView(this.run, go);
    this.code = new CodeView(this.run, go);
    this.buildControls();
    this.live = el("div", { class: "hidden", "aria-live": "polite", role: "status" });
    this.root = el("article", { class: "run", "aria-label": `Run of ${data.image}` }, this.header(), this.lost(), this.controls,
      el("div", { class: `panes ${this.procedure.many ? "many" : ""}` }, this.procedure.root, this.memory.root, this.code.root), this.live, this.below());
    this.step = null;
  }
  header() {
    const { data } = this.run, bad = data.verdict.property;
    const heading = this.options.small ? "h2" : "h1";
    return el("header", {},
      el(heading, {}, el("span", { class: `badge ${bad ? "bad" : "good"}` }, bad ? `\u2715 ${bad}` : "\u2713 nothing lost"), bad ? `Violated: ${data.verdict.title || "a property that is not in the table"}` : data.verdict.outcome === "resumed" ? "The interrupted context runs again, unchanged" : capital(data.verdict.outcome)),
      el("div", { class: "schedule" }, data.schedule),
      el("p", { class: "facts" }, `${data.image} (${data.config.join(" ")})`, data.build_id ? ` \u00b7 build id ${data.build_id.slice(0, 16)}` : "", ` \u00b7 from: ${data.context.about} \u00b7 ${number(this.run.length)} steps on the reference interpreter`));
  }
  lost() {
    const { data, loss } = this.run, v = data.verdict;
    if (!v.property) {
      const words = v.outcome === "resumed" ? `${plural(data.deliveries.length, "event")}, each handled; every register and all memory of the interrupted context are as before.` : "The entry gave up deliberately, and had cause to.";
      return el("section", { class: "lost good", "aria-label": "Outcome" }, el("p", {}, el("strong", { class: "good" }, "\u2713 "), words), data.notes.map((n) => el("p", {}, n)));
    }
    const parts = [];
    if (loss) {
      const heading = loss.kind === "overwritten" ? `Lost: what ${this.run.who(loss.delivery)} had interrupted` : `Wrong: ${loss.slots[0].name}`;
      const labels = loss.kind === "overwritten" ? ["slot", "was", "overwritten with"] : ["slot", "expected", "found"];
      const cell = (value, means, tag) => el("td", {}, el(tag, {}, value), means ? el("span", { class: "means" }, means) : "");
      parts.push(el("h2", { class: "bad" }, `\u25c4 ${heading}`));
      const jump = el("button", { type: "button", on: { click: () => this.go(loss.step) } }, `Show step ${loss.step}`);
      const by = loss.by >= 0 ? `Overwritten by ${this.run.who(loss.by)}. ` : "";
      parts.push(el("div", { class: "cols" },
        el("div", { class: "scroll" }, el("table", {}, el("thead", {}, el("tr", {}, labels.map((l) => el("th", { scope: "col" }, l)))),
          el("tbody", {}, loss.slots.map((s) => el("tr", {}, el("th", { scope: "row" }, s.name), cell(s.was, s.was_is, loss.kind === "overwritten" ? "del" : "span"), cell(s.now, s.now_is, "span")))))),
        el("div", { class: "say" }, el("p", {}, by, jump), data.how.slice(0, this.options.small ? 2 : 5).map((s) => el("p", {}, s)), data.notes.map((n) => el("p", {}, n)))));
    } else {
      parts.push(el("h2", { class: "bad" }, `${v.property}: ${v.title}`), el("div", { class: "say" }, el("p", {}, v.means),
        v.subject ? el("p", { class: "mono" }, `${v.subject}${v.expected ? ` expected ${v.expected}` : ""}${v.found ? ` found ${v.found}${v.found_is ? ` (${v.found_is})` : ""}` : ""}, at ${v.where}`) : "",
        data.how.map((s) => el("p", {}, s)), data.notes.map((n) => el("p", {}, n))));
    }
    return el("section", { class: "lost", "aria-label": "What is lost" }, parts);
  }
  buildControls() {
    const button = (label, title, action, cls) => el("button", { type: "button", title, "aria-label": title, class: cls || "", on: { click: action } }, label);
    this.slider = el("input", { type: "range", min: "-1", max: String(this.run.last), step: "1", "aria-label": "Step of the run", on: { input: () => this.go(Number(this.slider.value)) } });
    this.count = el("output");
    this.playing = null;
    this.playButton = button("\u25b6 play", "Play or pause (space)", () => this.play(), "play");
    this.what = el("span", { class: "what" });
    this.where = el("span", { class: "quiet" });
    const lossButton = this.run.loss ? button("\u25c4 loss", "Go to where it is lost (l)", () => this.go(this.run.loss.step), "bad") : "";
    this.controls = el("div", { class: "controls", role: "toolbar", "aria-label": "Steps" },
      el("span", { class: "group" }, button("\u21e4", "To the beginning (Home)", () => this.go(-1), "wide"), button("\u00ab event", "Previous event (shift left, or p)", () => this.event(-1)), button("\u2039 stage", "Previous stage ([)", () => this.stage(-1), "wide"), button("\u2190", "Step back (left)", () => this.go(this.step - 1))),
      this.playButton,
      el("span", { class: "group" }, button("\u2192", "Step on (right)", () => this.go(this.step + 1)), button("stage \u203a", "Next stage (])", () => this.stage(1), "wide"), button("event \u00bb", "Next event (shift right, or n)", () => this.event(1)), button("\u21e5", "To the end (End)", () => this.go(this.run.last), "wide")),
      lossButton, this.slider, this.count, el("div", { class: "now" }, this.what, this.where));
  }
  below() {
    const { data } = this.run;
    const keys = [["\u2190 \u2192", "step back, step on"], ["Shift \u2190 \u2192, p n", "previous, next event"], ["[ ]", "previous, next stage"], ["Home End", "beginning, end"], ["space", "play, pause"], ["l", "to the loss"], ["h", "these keys"]];
    this.help = el("details", {}, el("summary", {}, "Keys"), el("dl", { class: "keys" }, keys.flatMap(([k, t]) => [el("dt", {}, el("kbd", {}, k)), el("dd", {}, t)])));
    const stages = el("details", {}, el("summary", {}, "Stages"), el("dl", { class: "kv" }, Object.values(data.stages).flatMap((s) => [el("dt", {}, s.title), el("dd", {}, s.about)])));
    return el("div", { class: "below" },
      el("details", { class: "text" }, el("summary", {}, "The same in words"), el("pre", {}, data.words.join("\n"))),
      this.options.small ? "" : this.help, stages,
      data.command ? el("p", { class: "facts" }, "Made by: ", el("code", {}, data.command)) : "");
  }
  event(way) {
    const { events } = this.run;
    const found = way > 0 ? events.find((e) => e > this.step) : [...events].reverse().find((e) => e < this.step);
    this.go(found ?? (way > 0 ? this.run.last : -1));
  }
  stage(way) {
    const starts = this.run.stageStarts;
    const found = way > 0 ? starts.find((e) => e > this.step) : [...starts].reverse().find((e) => e < this.step);
    this.go(found ?? (way > 0 ? this.run.last : -1));
  }
  play() {
    if (this.playing) return this.stop();
    if (this.step >= this.run.last) this.go(-1);
    this.playButton.textContent = "\u2016 pause";
    this.playing = setInterval(() => { if (this.step >= this.run.last) this.stop(); else this.go(this.step + 1, true); }, 110);
  }
  stop() {
    clearInterval(this.playing);
    this.playing = null;
    this.playButton.textContent = "\u25b6 play";
  }
  go(wanted, playing) {
    const step = Math.max(-1, Math.min(this.run.last, Math.round(wanted) || 0));
    if (!playing && this.playing) this.stop();
    if (step === this.step) return;
    this.step = step;
    this.procedure.show(step);
    this.memory.show(step);
    this.code.show(step);
    const text = `step ${step < 0 ? "\u2013" : number(step)} of ${number(this.run.last)}`;
    this.slider.value = String(step);
    this.slider.setAttribute("aria-valuetext", `${text}: ${this.run.label(step)}`);
    this.count.textContent = text;
    const segment = this.run.stage(step);
    const owner = step < 0 ? -1 : this.run.data.steps[step][5];
    this.what.textContent = step < 0 ? "the beginning" : this.run.label(step);
    this.where.textContent = step < 0 ? this.run.data.context.about : `${this.run.who(owner)}, ${this.run.stageTitle(segment)}, at ${this.run.text(this.run.data.steps[step][1])}`;
    if (!this.playing) this.live.textContent = `${text}: ${this.what.textContent}; ${this.where.textContent}`;
    // Last, for these ask where things are: so the browser lays out once.
    this.procedure.reveal();
    this.memory.reveal(step);
    for (const f of this.listeners) f(step, Boolean(playing));
  }
  key(e) {
    const keys = { ArrowLeft: () => (e.shiftKey ? this.event(-1) : this.go(this.step - 1)), ArrowRight: () => (e.shiftKey ? this.event(1) : this.go(this.step + 1)),
      n: () => this.event(1), p: () => this.event(-1), "]": () => this.stage(1), "[": () => this.stage(-1), Home: () => this.go(-1), End: () => this.go(this.run.last),
      " ": () => this.play(), l: () => this.run.loss && this.go(this.run.loss.step), h: () => { this.help.open = !this.help.open; if (this.help.open) this.help.scrollIntoView({ block: "nearest" }); } };
    const action = keys[e.key];
    if (!action) return false;
    action();
    return true;
  }
}
