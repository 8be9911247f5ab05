// The histogram: records by time, stacked by level. Drag: a range; click: go there.
import { clockOf, count, framed, h, on, put, rect, severity } from "./text.js";

const BARS = 90, WINDOW = 900, LEVELS = ["critical", "error", "warning", "info", "debug"];

export class Strip {
	constructor(box, hooks) {
		this.box = box;
		this.hooks = hooks;
		this.cursor = -1;
		this.draw = framed(() => this.drawNow());
		this.reset(false);
		on(box, "pointerdown", (e) => this.press(e));
		on(box, "pointermove", (e) => this.drag(e));
		on(box, "pointerup", (e) => this.release(e));
		on(box, "pointercancel", () => this.unmark());
		on(box, "keydown", (e) => this.key(e));
		for (let number = 0; number < BARS; number++) box.append(h("i", {}));
		this.bars = [...box.querySelectorAll("i")];
	}

	reset(past) {
		this.past = past;
		this.seconds = new Map(); // second → severity → number
		this.draw();
	}

	count(cells) {
		for (const [stamp, level, worker, number] of cells) {
			if (!this.hooks.chosen(level, worker)) continue;
			const second = Date.parse(`${stamp}Z`) / 1000;
			if (!second) continue;
			let found = this.seconds.get(second);
			if (!found) this.seconds.set(second, found = {});
			const name = severity(level);
			found[name] = (found[name] || 0) + number;
		}
		this.draw();
	}

	span() {
		let first = Infinity, last = -Infinity;
		for (const second of this.seconds.keys()) {
			if (second < first) first = second;
			if (second > last) last = second;
		}
		if (this.past) return last < first ? [0, BARS] : [first, Math.max(last + 1, first + BARS)];
		const now = Math.floor(Date.now() / 1000), newest = last < first ? now : Math.max(last, now - WINDOW);
		const end = last > now - WINDOW ? Math.max(now, last) : newest; // old files: where they end
		for (const second of this.seconds.keys()) if (second < end - 2 * WINDOW) this.seconds.delete(second);
		return [end - WINDOW + 1, end + 1];
	}

	drawNow() {
		const [first, end] = this.span();
		this.first = first;
		this.width = (end - first) / BARS;
		const bars = Array.from({ length: BARS }, () => ({}));
		for (const [second, found] of this.seconds) {
			const bar = bars[Math.floor((second - first) / this.width)];
			if (bar) for (const name in found) bar[name] = (bar[name] || 0) + found[name];
		}
		const totals = bars.map((bar) => Object.values(bar).reduce((a, b) => a + b, 0));
		const most = Math.max(...totals, 1);
		bars.forEach((bar, place) => {
			const stops = [];
			let height = 0;
			for (const name of LEVELS) {
				if (!bar[name]) continue;
				const grown = Math.max(bar[name] / most * 100, name === "error" || name === "critical" ? 8 : 2);
				stops.push(`var(--bar-${name}) ${height}% ${height + grown}%`);
				height += grown;
			}
			const look = stops.length ? `linear-gradient(to top, ${stops.join(", ")}, transparent ${height}% 100%)` : "";
			const element = this.bars[place];
			if (element.look !== look) { element.style.backgroundImage = look; element.look = look; }
			element.dataset.count = totals[place];
			if (bar.error || bar.critical) element.dataset.bad = (bar.error || 0) + (bar.critical || 0);
			else delete element.dataset.bad;
		});
		this.totals = totals;
		const total = totals.reduce((a, b) => a + b, 0);
		this.box.setAttribute("aria-label", `${count(total)} records from ${this.label(0)} to ` +
			`${this.label(BARS)}; arrows choose a time, Shift and arrows a range, Enter goes there`);
		put("strip-from", this.label(0));
		put("strip-to", this.label(BARS));
	}

	stamp(bar) { return new Date((this.first + bar * this.width) * 1000).toISOString(); }
	label(bar) { return this.first ? clockOf(this.stamp(bar)).slice(0, 8) : ""; }

	barAt(e) {
		const { left, width } = rect(this.box);
		return Math.max(0, Math.min(BARS - 1, Math.floor((e.clientX - left) / width * BARS)));
	}

	mark(from, to) {
		this.from = Math.min(from, to);
		this.to = Math.max(from, to);
		this.bars.forEach((bar, place) => bar.classList.toggle("marked", place >= this.from && place <= this.to));
	}

	unmark() {
		this.pressed = null;
		for (const bar of this.bars) bar.classList.remove("marked");
	}

	press(e) {
		if (e.button) return;
		this.box.setPointerCapture(e.pointerId);
		this.pressed = this.barAt(e);
		this.frozen = [this.first, this.width];
		this.mark(this.pressed, this.pressed);
	}

	drag(e) {
		if (this.pressed == null) { this.hint(this.barAt(e)); return; }
		this.mark(this.pressed, this.barAt(e));
		this.hint(this.barAt(e));
	}

	hint(bar) {
		this.box.title = `${this.label(bar)}: ${count(this.totals?.[bar] || 0)} records`;
		this.box.setAttribute("aria-valuenow", bar);
		this.box.setAttribute("aria-valuetext", this.box.title);
	}

	release() {
		if (this.pressed == null) return;
		this.go();
	}

	go() {
		const { from, to } = this;
		[this.first, this.width] = this.frozen || [this.first, this.width];
		const since = this.stamp(from), until = this.stamp(to + 1);
		this.unmark();
		if (from === to) this.hooks.jump(since, until);
		else this.hooks.range(since, until);
	}

	key(e) {
		const step = { ArrowLeft: -1, ArrowRight: 1 }[e.key];
		if (step) {
			e.preventDefault();
			e.stopPropagation();
			if (this.cursor < 0) this.cursor = this.other = BARS - 1;
			else this.cursor = Math.max(0, Math.min(BARS - 1, this.cursor + step));
			if (!e.shiftKey) this.other = this.cursor;
			this.frozen = [this.first, this.width];
			this.mark(this.other, this.cursor);
			this.hint(this.cursor);
		} else if (e.key === "Enter" && this.cursor >= 0) {
			e.preventDefault();
			e.stopPropagation();
			this.go();
			this.cursor = -1;
		} else if (e.key === "Escape") { this.cursor = -1; this.unmark(); }
	}
}
