// The list: entries in memory, bounded, and of these a window of rows in the document. While
// it is paused what comes does not touch the document: nothing moves by a pixel.
import { clockOf, count, dayOf, fieldsOf, h, inline, levelOf, levelWord, on, parse, rect, severity,
	span, stampOf, summaryOf, valueText, visible, workerColour, workerTag } from "./text.js";

const MOST_ROWS = 400, FAST_ROWS = 120, STEP = 100, NEAR = 300;
const MOST_ENTRIES = 10_000, MOST_CHARS = 8_000_000;
const GAP = 60;

export class List {
	constructor(box, hooks) {
		this.box = box;
		this.hooks = hooks; // open(row), paused(), load(entry, row), older()
		this.style = "clock";
		this.clear();
		on(box, "scroll", () => this.scrolled(), { passive: true });
		on(document, "selectionchange", () => {
			const found = document.getSelection();
			if (this.following && !found.isCollapsed && box.contains(found.anchorNode)) this.pause("select");
		});
		new ResizeObserver(() => { if (this.following) this.toEnd(); }).observe(box);
	}

	clear() {
		this.entries = [];
		this.base = 0; // the index of the first entry
		this.chars = 0;
		this.start = this.end = 0;
		this.following = true;
		this.reason = "";
		this.missed = 0;
		this.marks = 0;
		this.selected = null;
		this.top = 0; // where the list has scrolled itself to
		this.box.replaceChildren();
	}

	get last() { return this.base + this.entries.length; }
	get oldest() { return this.entries.find((entry) => entry.n)?.n; }
	at(index) { return this.entries[index - this.base]; }

	add(entries) {
		if (!entries.length) return;
		for (const entry of entries) this.chars += entry.text.length;
		this.entries.push(...entries);
		this.trim();
		if (this.following) this.showEnd(entries.length);
		else {
			this.missed += entries.filter((entry) => entry.kind === "record").length;
			const to = Math.min(this.last, this.start + MOST_ROWS);
			if (this.fillsBelow && this.end < to) {
				this.box.append(...this.rows(this.end, to));
				this.end = to;
			}
			this.hooks.paused();
		}
	}

	addBefore(entries) {
		for (const entry of entries) this.chars += entry.text.length;
		this.entries.unshift(...entries);
		this.base -= entries.length;
	}

	trim() {
		let drop = 0, chars = this.chars;
		const least = this.entries.length - MOST_ENTRIES;
		if (least <= 0 && chars <= MOST_CHARS) return;
		while (drop < least + 500 || chars > MOST_CHARS) {
			if (drop >= this.entries.length - 1) break;
			chars -= this.entries[drop++].text.length;
		}
		this.entries.splice(0, drop);
		this.base += drop;
		this.chars = chars;
		this.hooks.trimmed();
	}

	// Replace an entry of a hole by the records in it.
	replace(entry, entries) {
		const place = this.entries.indexOf(entry);
		if (place < 0) return;
		for (const each of entries) this.chars += each.text.length;
		this.entries.splice(place, 1, ...entries);
		const top = this.anchor();
		this.show(Math.min(this.start, this.base + place), top);
	}

	rows(from, to) {
		const rows = [];
		for (let index = from; index < to; index++) {
			rows.push(this.row(this.at(index), index > this.base ? this.at(index - 1) : null));
		}
		return rows;
	}

	// Whether the reader has scrolled up.
	left() {
		const { scrollTop, scrollHeight, clientHeight } = this.box;
		return scrollTop < this.top - 2 && scrollHeight - clientHeight - scrollTop > 4;
	}

	showEnd(added) {
		if (this.left()) {
			this.pause("scroll");
			this.missed = added;
			return;
		}
		const fast = added >= FAST_ROWS;
		const from = Math.max(this.base, this.last - (fast ? FAST_ROWS : MOST_ROWS), fast ? 0 : this.start);
		if (fast || this.end < from || !this.box.childElementCount) {
			this.box.replaceChildren(...this.rows(from, this.last));
		} else {
			const fresh = this.rows(this.end, this.last);
			if (added < 9 && this.end > 0) for (const row of fresh) row.classList.add("new");
			this.box.append(...fresh);
			for (let index = this.start; index < from; index++) this.box.firstElementChild?.remove();
		}
		this.start = from;
		this.end = this.last;
		this.toEnd();
	}

	toEnd() {
		this.box.scrollTop = this.box.scrollHeight;
		this.top = this.box.scrollTop;
	}

	// Show from an index on, and if `top` is given have its row stay where it is.
	show(from, top = null) {
		this.start = Math.max(this.base, Math.min(from, this.last - 1));
		this.end = Math.min(this.last, this.start + MOST_ROWS);
		this.box.replaceChildren(...this.rows(this.start, this.end));
		this.restore(top);
	}

	anchor() {
		const edge = rect(this.box).top;
		for (const row of this.box.children) {
			const { top, bottom } = rect(row);
			if (bottom > edge + 1) return { entry: row.entry, y: top };
		}
		return null;
	}

	scrolled() {
		const { scrollTop, scrollHeight, clientHeight } = this.box;
		const below = scrollHeight - clientHeight - scrollTop;
		if (this.following) {
			if (this.left()) this.pause("scroll");
			return;
		}
		if (scrollTop < NEAR) this.extendAbove();
		if (below < NEAR) this.extendBelow();
		if (below < 2 && this.reason === "scroll" && this.end === this.last && !this.fillsBelow) this.follow();
	}

	extendAbove() {
		if (this.start <= this.base) { this.hooks.older(); return; }
		const from = Math.max(this.base, this.start - STEP);
		const top = this.anchor();
		this.box.prepend(...this.rows(from, this.start));
		this.start = from;
		while (this.end - this.start > MOST_ROWS) { this.box.lastElementChild.remove(); this.end--; }
		this.restore(top);
	}

	extendBelow() {
		if (this.end >= this.last) return;
		const top = this.anchor();
		if (this.end < this.base) { // what follows has been forgotten
			const from = this.box.lastElementChild.entry.n + 1, to = this.entries[0].n - 1;
			this.addBefore([hole(from, to)]);
			this.end = this.base;
			this.start = this.end - this.box.childElementCount;
		}
		const to = Math.min(this.last, this.end + STEP);
		this.box.append(...this.rows(this.end, to));
		this.end = to;
		while (this.end - this.start > MOST_ROWS) { this.box.firstElementChild.remove(); this.start++; }
		this.restore(top);
	}

	restore(top) {
		if (!top) return;
		const row = [...this.box.children].find((each) => each.entry === top.entry);
		if (row) this.box.scrollTop += rect(row).top - top.y;
	}

	pause(reason) {
		if (!this.following) { if (reason === "space") this.reason = reason; return; }
		this.following = false;
		this.reason = reason;
		this.missed = 0;
		this.hooks.paused();
	}

	follow() {
		this.following = true;
		this.fillsBelow = false;
		this.missed = this.top = 0;
		this.box.replaceChildren();
		this.start = this.end = 0;
		if (this.entries.length) this.showEnd(0);
		this.hooks.paused();
	}

	select(row, focus = true) {
		if (this.selected === row) { if (focus) row?.focus({ preventScroll: true }); return; }
		if (this.selected) { this.selected.classList.remove("selected"); this.selected.tabIndex = -1; }
		this.selected = row;
		if (!row) return;
		row.classList.add("selected");
		row.tabIndex = 0;
		if (focus) {
			row.focus({ preventScroll: true });
			const { top, bottom } = rect(row);
			const box = rect(this.box);
			if (top < box.top || bottom > box.bottom) row.scrollIntoView({ block: "nearest" });
		}
	}

	move(step) {
		if (this.following) this.pause("select");
		const rows = this.box.children;
		if (!rows.length) return;
		let row = this.selected?.isConnected ? this.selected : null;
		if (!row) row = step > 0 ? this.topRow() : rows[rows.length - 1];
		else {
			if (step > 0 && !row.nextElementSibling) this.extendBelow();
			if (step < 0 && !row.previousElementSibling) this.extendAbove();
			row = (step > 0 ? row.nextElementSibling : row.previousElementSibling) || row;
		}
		this.select(row);
	}

	topRow() {
		const top = this.anchor();
		return [...this.box.children].find((row) => row.entry === top?.entry) || this.box.firstElementChild;
	}

	// The entry that is read: the selected one in sight, or the topmost.
	place() {
		const box = rect(this.box), row = this.selected && rect(this.selected);
		return row && row.bottom > box.top && row.top < box.bottom ? this.selected.entry : this.anchor()?.entry;
	}

	// Scroll to an entry, in the middle, and select it.
	reveal(index, focus = true) {
		this.pause("open");
		if (index < this.start || index >= this.end) this.show(index - MOST_ROWS / 2);
		const row = this.box.children[index - this.start];
		if (!row) return null;
		row.scrollIntoView({ block: "center" });
		this.select(row, focus);
		return row;
	}

	// The next entry of which `wanted` is true, from the one that is read on.
	next(wanted, step = 1) {
		const from = this.selected?.isConnected ? this.selected.entry
			: this.following ? null : this.place();
		const size = this.entries.length;
		let place = from ? this.entries.indexOf(from) : step > 0 ? -1 : size;
		for (let tried = 0; tried < size; tried++) {
			place = (place + step + size) % size;
			if (wanted(this.entries[place])) return this.base + place;
		}
		return -1;
	}

	row(entry, before) {
		const row = entry.kind === "record" ? this.recordRow(entry, before) : this.ruleRow(entry);
		row.entry = entry;
		return row;
	}

	ruleRow(entry) {
		const row = h("article", { class: `row rule ${entry.kind}`, tabindex: "-1" });
		if (entry.kind === "skip") {
			const gone = entry.gone ? ", no longer held by the server" : "";
			row.append(h("span", {}, `skipped ${count(entry.count)} records${gone}`));
			if (!entry.gone) {
				row.append(" – ", h("button", { onclick: () => this.hooks.load(entry) }, "load"));
			}
		} else row.append(h("span", {}, visible(entry.text)));
		return row;
	}

	recordRow(entry, before) {
		const record = parse(entry.text);
		const level = String(record.level ?? "info");
		const name = severity(record.level_number ?? level);
		const row = h("article", { class: `row ${name}`, tabindex: "-1" });
		if (record.logger === "logagg" && record.event) row.classList.add("event");
		if (entry.hit) row.classList.add("hit");
		const stamp = String(record.timestamp ?? "");
		row.append(...this.rules(stamp, before));
		const worker = record.worker == null ? "" : String(record.worker);
		const logger = String(record.logger ?? "");
		const line = h("div", { class: "line" },
			h("span", { class: "late", title: record.late === true ? "came after later records" : null },
				record.late === true ? "~" : ""),
			h("time", { class: "time", title: inline(stamp) }, clockOf(stamp, this.style)),
			h("span", { class: "level" }, levelWord(level)),
			h("span", { class: `worker c${workerColour(worker)}` }, worker ? workerTag(worker).slice(0, 12) : ""),
			h("span", { class: "logger", title: inline(logger) },
				logger.length > 12 ? "…" + inline(logger.slice(-11)) : inline(logger)),
			h("span", { class: "message" }, inline(String(record.message ?? "").slice(0, 4000))));
		for (const [key, value] of fieldsOf(record).slice(0, 20)) {
			line.append(h("span", { class: "field" }, h("span", { class: "key" }, `${inline(key.slice(0, 60))}=`),
				inline(valueText(value).slice(0, 200))));
		}
		const broke = summaryOf(record.exception);
		if (broke) line.append(h("span", { class: "broke" }, inline(broke.slice(0, 400))));
		row.append(line);
		return row;
	}

	rules(stamp, before) {
		const earlier = before ? before.stamp : "";
		if (!earlier || !stamp) return [];
		const day = dayOf(stamp, this.style), seconds = (new Date(stamp) - new Date(earlier)) / 1000;
		const texts = [];
		if (day && day !== dayOf(earlier, this.style)) texts.push(day);
		if (seconds >= GAP) texts.push(`${clockOf(stamp, this.style).slice(0, -4)}, ${span(seconds)} of silence`);
		return texts.map((text) => h("div", { class: "between" }, text));
	}
}

export const hole = (from, to) => ({ kind: "skip", text: "", stamp: "", from, to, count: to - from + 1 });

export function entryOf(line) {
	const cut = line.indexOf(" ");
	const n = Number(line.slice(0, cut)), text = line.slice(cut + 1);
	if (text[0] === "!") return { kind: "note", n, text: JSON.parse(text.slice(1)), stamp: "" };
	return { kind: "record", n, text, level: severity(levelOf(text)), stamp: stampOf(text) };
}
