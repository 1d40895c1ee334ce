// SPDX-License-Identifier: GPL-2.0-only
// One run, and what it looks like after each step. Knows nothing of how it is shown.
class Run {
  constructor(data) {
    this.data = data;
    this.length = data.steps.length;
    this.last = this.length - 1;
    this.loss = data.lost && data.lost.slots.length ? data.lost : null;
    this.lostSlots = new Map((this.loss ? this.loss.slots : []).map((s) => [s.address, s]));
    this.events = data.steps.flatMap((s, i) => (s[0] === 0 ? [] : [i]));
    this.stageStarts = data.segments.map((s) => s[3]);
    this.stacks = data.stacks.map((s) => ({ ...s, topN: BigInt(s.top), bottomN: BigInt(s.bottom),
      low: s.low.map(([step, low]) => [step, BigInt(low)]),
      words: s.words.map(([address, writes]) => ({ address, n: BigInt(address), writes })) }));
    this.frames = data.frames.map(([a, size, since, until]) => ({ from: BigInt(a), to: BigInt(a) + BigInt(size), since, until }));
    this.order();
    this.registers();
  }
  // The stack with the lost slot first, then as they are used.
  order() {
    const kinds = ["ist", "main", "task", "irq", "entry", "other"];
    const rank = (s) => (s.words.some((w) => this.lostSlots.has(w.address)) ? -1 : kinds.indexOf(s.kind));
    const first = (s) => Math.min(...s.words.map((w) => w.writes[0][0]));
    this.stacks.sort((a, b) => rank(a) - rank(b) || first(a) - first(b));
  }
  // Register files at every 64th step, so that any step is near one.
  registers() {
    let now = { ...this.data.start };
    this.saved = [];
    this.data.steps.forEach((s, i) => {
      if (i % 64 === 0) this.saved.push({ ...now });
      now.RIP = s[7];
      for (const [r, v] of s[6]) now[r] = v;
    });
    this.final = now;
  }
  registersAfter(step) {
    if (step < 0) return { ...this.data.start };
    const base = Math.floor(step / 64);
    const now = { ...this.saved[base] };
    for (let i = base * 64; i <= step; i++) for (const [r, v] of this.data.steps[i][6]) now[r] = v;
    now.RIP = this.data.steps[Math.min(step + 1, this.last)][7];
    return now;
  }
  text(index) { return this.data.strings[index]; }
  tag(number) {
    if (number < 0) return "";
    const who = this.data.deliveries[number].who.replace(/^the /, "");
    const match = /^(first|second|third|fourth|fifth|(\d+)th) (.*)$/.exec(who);
    if (!match) return who;
    const names = ["first", "second", "third", "fourth", "fifth"];
    return `${match[3]} ${match[2] || names.indexOf(match[1]) + 1}`;
  }
  who(number) { return number < 0 ? "the interrupted context" : this.data.deliveries[number].who; }
  stage(step) {
    const i = upTo(this.data.segments, step, (s) => s[3]);
    return i < 0 ? null : this.data.segments[i];
  }
  stageTitle(segment) { return segment ? this.data.stages[segment[1]].title : ""; }
  low(stack, step) {
    if (stack.kind === "other") return stack.bottomN; // variables, no stack
    const i = upTo(stack.low, step, (l) => l[0]);
    return i < 0 ? stack.topN : stack.low[i][1];
  }
  // What a word is after `step`: {write, index, state}; state is none, live, free or lost.
  word(stack, word, step, low) {
    const index = upTo(word.writes, step, (w) => w[0]);
    if (index < 0) return { write: null, index, state: "none" };
    const write = word.writes[index];
    const lost = this.lostSlots.get(word.address);
    if (lost && step >= lost.step) return { write, index, state: "lost", lost };
    let state = write[3] !== 2 && word.n >= low ? "live" : "free";
    for (const f of this.frames) if (word.n >= f.from && word.n < f.to && step >= f.since && step < f.until) state = "live";
    return { write, index, state, soon: lost && state === "live" ? lost : null };
  }
  start() { return this.loss ? this.loss.step : this.data.verdict.property ? this.last : Math.max(0, this.events[0] ?? 0); }
  label(step) {
    if (step < 0) return "the beginning";
    return this.text(this.data.steps[step][2]);
  }
}
